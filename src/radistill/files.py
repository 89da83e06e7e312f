"""Files that are never half written, and never believed: what is damaged, endless or absurd is refused by its name.

Everything lands under a temporary name and is renamed when complete. What is read goes through `read_text`,
`read_json`, `read_rows` and `read_yaml`, whose limits no sensible file comes near.
"""

import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import psutil
import yaml
from pydantic import TypeAdapter, ValidationError

from radistill.errors import RadistillError

T = TypeVar("T")

DOCUMENT_BYTES = 2**26
"""Largest file that is read as a whole, and longest row of one that is read row by row."""
_ROWS_BYTES = 2**32
_KEPT_BYTES = 2**30
_DEPTH = 100
_DIGITS = 300
"""Of a whole number: one with more is no float either."""
_YAML_DIGITS = 18
_TOO_DEEP = f"nested deeper than {_DEPTH} levels"


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` in one step: a reader sees the old content or the new, also after a kill."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def write_json(path: Path | str, data: Any) -> None:
    """Write `data` as indented JSON, atomically. NaN and infinities are refused, because other readers refuse them."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_text(path: Path | str, way_out: str = "", most_bytes: int = DOCUMENT_BYTES) -> str:
    """The UTF-8 text of a file.

    Raises:
        RadistillError: if there is no such file, it is a folder or a device, it is too large, cannot be read or is not
            UTF-8; its message ends with `way_out`.
    """
    with _open(Path(path), way_out, most_bytes) as handle:
        return _decoded(handle.read(), str(path), way_out).removeprefix("\ufeff")


@overload
def read_json(path: Path | str, *, way_out: str = ..., finite: bool = ...) -> Any: ...
@overload
def read_json(path: Path | str, kind: type[T], *, way_out: str = ..., finite: bool = ...) -> T: ...
def read_json(path: Path | str, kind: Any = Any, *, way_out: str = "", finite: bool = True) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        kind: what it must hold, as pydantic understands types; a number in quotes, say, is no number.
        way_out: the end of the message if it does not.
        finite: refuse infinities, which our own files never hold; those of others may.

    Raises:
        RadistillError: if the file cannot be read, is not JSON, gives a key twice, nests deeper than any file of ours,
            has a number of hundreds of digits or half a surrogate pair, or holds no `kind`.
    """
    return parse_json(read_text(path, way_out), str(path), kind, way_out, finite)


@overload
def read_rows(path: Path | str, *, way_out: str = ..., skip_damaged: bool = ...) -> Iterator[tuple[int, Any]]: ...
@overload
def read_rows(path: Path | str, kind: type[T], *, way_out: str = ...) -> Iterator[tuple[int, T]]: ...
def read_rows(
    path: Path | str, kind: Any = Any, *, way_out: str = "", skip_damaged: bool = False
) -> Iterator[tuple[int, Any]]:
    """The rows of a file of JSON lines, each with the number of its line; empty lines are skipped.

    Only line feeds part rows, because texts in JSON hold other line separators. `skip_damaged` is for files whose rows
    can be made again.

    Raises:
        RadistillError: as `read_json`, naming the line.
    """
    with _open(Path(path), way_out, _ROWS_BYTES) as handle:
        lines = iter(partial(handle.readline, DOCUMENT_BYTES + 1), b"")
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if len(line) > DOCUMENT_BYTES:
                raise RadistillError(f"{where}: has more than {DOCUMENT_BYTES // 2**20} MiB{way_out}")
            try:
                text = _decoded(line, where, way_out).removeprefix("\ufeff" if number == 1 else "")
                row = parse_json(text, where, kind, way_out) if text.strip() else None
            except RadistillError:
                if not skip_damaged:
                    raise
                continue
            if text.strip():
                yield number, row


def read_yaml(text: str, where: str) -> Any:
    """What a YAML text holds, by the loader of `yaml.safe_load`.

    Dates are texts, a number needs no point before its exponent, and aliases are refused: a kilobyte of them can stand
    for gigabytes.

    Raises:
        RadistillError: if it is not YAML, gives a key twice, or nests deeper than any file of ours; it begins with
            `where` and names the line.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
        _check_depth(value)
        return value
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = f"{error.problem or error.context}"
    except yaml.YAMLError as error:
        line, problem = "", str(error)
    except Exception as error:  # what a tag such as `!!int` makes of any text
        line, problem = "", _TOO_DEEP if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"
    raise RadistillError(f"{where}{line}: not valid YAML ({shortened(' '.join(problem.split()))})")


def write_kept(path: Path | str, key: str, value: Any) -> None:
    """Keep what can be made again, under a key that is a hash of all that it depends on."""
    write_json(path, sealed(key, value))


def read_kept(path: Path | str, key: str) -> Any:
    """What `write_kept` has kept under `key`. None where there is nothing, something else or a damaged file: all of
    these count as not done."""
    try:
        return unsealed(parse_json(read_text(path, most_bytes=_KEPT_BYTES), str(path))).get(key)
    except RadistillError:
        return None


def sealed(key: str, value: Any) -> dict[str, Any]:
    """An entry that shows whether it has been damaged."""
    value = json.loads(json.dumps(value, allow_nan=False))  # as it will be read: keys are texts
    return {"key": key, "value": value, "sha256": hash_json([key, value])}


def unsealed(entry: Any) -> dict[str, Any]:
    """The value of an entry under its key; nothing if it is not what `sealed` has made."""
    whole = isinstance(entry, dict) and entry.get("sha256") == hash_json([entry.get("key"), entry.get("value")])
    return {str(entry["key"]): entry["value"]} if whole else {}


@contextmanager
def _open(path: Path, way_out: str, most_bytes: int) -> Iterator[BinaryIO]:
    """Open a file to read, unless it is none: a pipe that nobody writes to would be waited for."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RadistillError(f"{path}: is {'a folder' if path.is_dir() else 'a device'}, not a file{way_out}")
        if status.st_size > most_bytes:
            most = f"{most_bytes // 2**10:,} KiB"
            raise RadistillError(f"{path}: has {status.st_size:,} bytes, and at most {most} are read{way_out}")
        with path.open("rb") as handle:
            yield handle
    except (FileNotFoundError, NotADirectoryError):
        raise RadistillError(f"{path}: no such file{way_out}") from None
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        raise RadistillError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}){way_out}") from None


def _decoded(data: bytes, where: str, way_out: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RadistillError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}){way_out}") from None


def parse_json(text: str, where: str, kind: Any = Any, way_out: str = "", finite: bool = True) -> Any:
    """What a JSON text within a file holds, with the limits of `read_json`; RadistillError begins with `where`."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole_number if _LONG_NUMBER.search(text) else None,  # it would slow down long lists of tokens
            parse_float=_finite_number if finite else None,
            parse_constant=_finite_number if finite else _infinity,
        )
        if text.count("[") + text.count("{") > _DEPTH:
            _check_depth(value)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        problem = _TOO_DEEP
    except UnicodeEncodeError:
        problem = "half a surrogate pair"
    except ValueError as error:
        problem = str(error)
    else:
        return value if kind is Any else _of_kind(text, kind, where, way_out)
    raise RadistillError(f"{where}: not valid JSON ({shortened(problem)}){way_out}") from None


def _of_kind(text: str, kind: Any, where: str, way_out: str) -> Any:
    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = shortened(".".join(map(str, first["loc"])))
        # What concerns several fields names them itself.
        problem = first["msg"].removeprefix("Value error, ")
        raise RadistillError(f"{where}: {f'{field}: ' if field else ''}{problem}{way_out}") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def shortened(text: str) -> str:
    """What a file says, as far as one line of a message has room for it."""
    return text if len(text) <= 200 else f"{text[:200]}…"


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEPTH):
        children = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [child for parent in children for child in parent]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{_repeated(key for key, _ in pairs)} is given twice")
    return found


def _repeated(keys: Iterable[str]) -> str | None:
    return next((key for key, times in Counter(keys).items() if times > 1), None)


def _whole_number(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _infinity(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN is no number")
    return float(text)


_LONG_NUMBER = re.compile(rf"[0-9]{{{_DIGITS + 1}}}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def yaml_of(data: Any) -> str:
    """YAML that `read_yaml` reads as `data`; `safe_dump` would leave a text such as `1e5` bare, a number there."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """See `yaml_of`."""


class _Loader(yaml.SafeLoader):
    """What `read_yaml` says of itself; PyYAML takes the last of two equal keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                problem="aliases such as *name are not read, write what they stand for",
                problem_mark=self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]  # the base class refuses others
        if twice := _repeated(key.value for key in keys):
            mark = [key.start_mark for key in keys if key.value == twice][1]
            raise yaml.constructor.ConstructorError(problem=f"{twice} is given twice", problem_mark=mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _YAML_DIGITS:
            problem = f"a number of {len(node.value)} digits"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return super().construct_yaml_int(node)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
# What only an explicit tag asks for has no place in JSON, nor in a recipe.
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] not in ("binary", "set", "timestamp", "omap", "pairs")
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def hash_json(data: Any) -> str:
    """SHA-256 of the canonical JSON form of `data` (sorted keys, no white space)."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, which are read once in a process while nobody touches it: a second for each GiB."""
    path = os.path.realpath(path)
    status = os.stat(path)
    return _hash(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@cache
def _hash(path: str, *touched: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.tmp")


def output_place(path: Path | str, folder: bool = False) -> Path:
    """Where an output that the user named is written: links are followed, so that they stay links.

    To be asked before any work is done. Nothing is left there.

    Args:
        path: of the output.
        folder: whether it is a folder; it may be there already, as a file may.

    Raises:
        RadistillError: if something else is there, or neither it nor the folders that are missing can be written.
    """
    try:
        place = Path(os.path.realpath(path))
        home = place if folder else place.parent
        while not home.exists():
            home = home.parent
        if os.path.lexists(place):
            if place.is_dir() != folder:
                raise RadistillError(f"{path}: {'is a file; name a folder' if folder else 'is a folder; name a file'}")
            if not place.is_dir() and not place.is_file():
                raise RadistillError(f"{path}: is a device or the like, not a file; choose another place")
        with tempfile.TemporaryFile(dir=home):
            for name in place.relative_to(home).parts:
                with suppress(FileNotFoundError):
                    os.stat(home / name)  # a name may be too long
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RadistillError(f"{path}: cannot be written ({reason}); choose another place") from None
    return place


def _beside(path: Path, use: str = "new") -> Path:
    """A hidden name in the same folder, of this process; short, because `path` may be as long as a name can be."""
    return path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.{use}.{os.getpid()}.tmp")


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """A name for a file that takes the place of `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` when the block ends well, and vanishes when it does not.

    A link stays a link: what it points to is replaced, on the disk where that lies.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        move_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder to `target`. One that is there goes aside first and is removed last: whoever looks, or is killed,
    sees the old folder, the new one or, between two renames, none, but never half of one."""
    aside = _beside(target, "old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that processes which are gone have left anywhere in `folder`."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            found = TEMPORARY.fullmatch(name)
            if found is None or psutil.pid_exists(int(found[1])):
                continue
            if name in folders:
                folders.remove(name)
                shutil.rmtree(Path(place, name), ignore_errors=True)
            else:
                Path(place, name).unlink(missing_ok=True)
