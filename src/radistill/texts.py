"""Text as it may be shown: numbers for people; what comes from files, users and libraries commands no terminal and
gives no password away."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

# Control characters, which command a terminal and are illegal in HTML; lone surrogates, which cannot be encoded; and
# what turns the direction of the text around it, so that a line reads as another.
_UNREADABLE = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)}
_READABLE: dict[int, str] = dict.fromkeys(_UNREADABLE - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}")
_READABLE |= {ord("\r"): ""}

# A password may hold a space, so what follows `user:` reaches to an @, unless it is a port.
_URL = re.compile(r"://(?:[^\s:/?#]*:(?!\d*(?:[\s/?#,;.)\]'\"]|$))[^\n@]*@)?\S*")
_USER = re.compile(r"^(://[^:/?#]*):.*@")  # to the last @, because people do not encode those of a password
_FIELD = re.compile(r"([?&]([^=&?]*)=)[^&]*?(?=[\"'\]),.;:}>]*(?:&|$))")
_SECRET = re.compile("pass|pwd|token|secret|key|auth|cred|sig|odbc", re.IGNORECASE)


def readable(value: Any) -> str:
    """`value` as text that a terminal and HTML can hold; passwords in URLs are `***`."""
    return _URL.sub(_without_secrets, str(value).translate(_READABLE))


def _without_secrets(url: re.Match[str]) -> str:
    def field(match: re.Match[str]) -> str:
        return f"{match[1]}***" if _SECRET.search(unquote(match[2])) else match[0]

    return _FIELD.sub(field, _USER.sub(r"\1:***@", url[0]))


def ranges(indices: Iterable[int]) -> str:
    """Ascending indices in short: "0-5, 8"; "none" if there are none."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans) or "none"


def human_bytes(number: int) -> str:
    """Bytes in the largest binary unit that leaves at least 1, with at most one decimal: "22.5 KiB"."""
    amount = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{round(amount, 1):g} {unit}"
        amount /= 1024
    return f"{round(amount, 1):g} TiB"


def human_count(number: int) -> str:
    """A count with three digits and a unit: "135M"."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
