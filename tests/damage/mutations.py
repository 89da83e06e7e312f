"""Ways in which a file can be damaged: its bytes, and what it holds. All of them follow from a seed."""

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

DEEP = "@deep@"
LONG = "@long@"
TWICE = "@twice@"
JUNK: tuple[Any, ...] = (
    None, True, False, -1, 0, 3, 0.5, -2.5, 10**20, 10**299, 1e308, float("nan"), float("inf"), "", "text", "7", "\x00",
    "\ud800", "../x", "x" * 300_000, [], {}, [[]], [1, "a"], {"a": 1}, [None] * 20_000, DEEP, LONG,
)  # fmt: skip


def damaged(data: bytes, count: int, seed: int, form: str) -> Iterator[tuple[str, bytes]]:
    """`count` damaged versions of a file, each with words that say what was done.

    Args:
        data: the whole file.
        count: how many.
        seed: of every choice.
        form: "json" or "rows" for what can be damaged as JSON too, "tensors" for safetensors, "bytes" for others.
    """
    chance = random.Random(seed)
    structured = {"json": _json, "rows": _rows, "tensors": _tensors}.get(form)
    yield "empty", b""
    for _ in range(count - 1):
        if structured is not None and chance.random() < 0.7:
            yield structured(data, chance)
        else:
            kind = chance.choice(_BYTES)
            yield kind.__name__, kind(data, chance)


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 20))):
        changed[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(changed)


def _remove(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.randrange(1, 40) :]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    end = start + chance.randrange(1, 400)
    return data[:end] + data[start:]


def _insert(data: bytes, chance: random.Random) -> bytes:
    what = chance.choice(
        (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 50_000, b'{"a":' * 50_000, b"9" * 5_000, b"\n", b'"', b"\\ud800")
    )
    start = chance.randrange(len(data) + 1)
    return data[:start] + what + data[start:]


def _noise(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((1, 8, 1000, 100_000)))


_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_cut, _flip, _remove, _repeat, _insert, _noise)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value within `value`."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def _json(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    what, text = change(json.loads(data), chance)
    return what, text.encode("utf-8", "surrogatepass")


def _rows(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    lines = data.splitlines(keepends=True)
    number = chance.randrange(len(lines))
    what, text = change(json.loads(lines[number]), chance)
    lines[number] = text.encode("utf-8", "surrogatepass") + b"\n"
    return f"row {number}: {what}", b"".join(lines)


def _tensors(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    size = int.from_bytes(data[:8], "little")
    if chance.random() < 0.2:
        size = chance.choice((0, 1, size - 1, size + 1, 2**31, 2**40, 2**63, 99_000_000))
        return f"header of {size}", size.to_bytes(8, "little") + data[8:]
    what, text = change(json.loads(data[8 : 8 + size]), chance)
    header = text.encode("utf-8", "surrogatepass")
    return f"header: {what}", len(header).to_bytes(8, "little") + header + data[8 + size :]


def change(value: Any, chance: random.Random) -> tuple[str, str]:
    """What was done to a random place of `value`, and the JSON text that came out."""
    *parents, last = chance.choice(places(value)[1:] or [(None,)])
    if last is None:
        return "all", json.dumps(chance.choice(JUNK))
    node = value
    for parent in parents:
        node = node[parent]
    where = ".".join(map(str, (*parents, last)))
    kind = chance.choice(("replace", "replace", "replace", "delete", "twice"))
    if kind == "delete":
        del node[last]
        return f"delete {where}", json.dumps(value)
    if kind == "twice" and isinstance(node, dict):
        node[TWICE] = node[last]
        return f"twice {where}", json.dumps(value).replace(json.dumps(TWICE), json.dumps(last))
    junk = chance.choice(JUNK)
    node[last] = junk
    text = json.dumps(value).replace(json.dumps(DEEP), "[" * 20_000 + "]" * 20_000)
    return f"replace {where} by {str(junk)[:20]!r}", re.sub(json.dumps(LONG), "9" * 5_000, text)
