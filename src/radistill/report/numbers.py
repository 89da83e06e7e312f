"""Numbers as people read them: three significant digits, thousands separators, binary units, spelt-out durations."""

import math
from collections.abc import Sequence
from typing import Any

from radistill.texts import readable

NOT_MEASURED = "not measured"
NOT_FINITE = "not finite"
CONTEXT_TOKENS = 32_768

MINUS = "\N{MINUS SIGN}"
EN_DASH = "\N{EN DASH}"
_TIMES = "\N{MULTIPLICATION SIGN}"

# Keeps a figure and its unit on one line.
_SPACE = "\N{NO-BREAK SPACE}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def number(value: Any) -> float | None:
    """The finite number in `value`, or None for anything else: null, NaN, an infinity, a truth value, a text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def integer(value: Any) -> int | None:
    """The whole number in `value`, or None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) else None


def absent(value: Any) -> str:
    """Why `value` is not a number: it was never measured, or what was measured is NaN or infinite."""
    return NOT_FINITE if isinstance(value, float) and not math.isfinite(value) else NOT_MEASURED


def significant(value: Any, digits: int = 3) -> str:
    """`value` with `digits` significant digits: 0.137, 12.4, 12,400, a power of ten for 3.1e-7.

    Where there is no finite number, the reason why.
    """
    found = number(value)
    if found is None:
        return absent(value)
    if found == 0:
        return "0"
    mantissa, power = f"{found:.{digits - 1}e}".split("e")
    exponent = int(power)
    if exponent < -4 or exponent > 8:
        return f"{mantissa}{_SPACE}{_TIMES}{_SPACE}10{str(exponent).translate(_SUPERSCRIPTS)}".replace("-", MINUS, 1)
    return f"{found:,.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)


def whole(value: Any) -> str:
    """A count with thousands separators: 23,040."""
    found = number(value)
    return absent(value) if found is None else f"{found:,.0f}".replace("-", MINUS)


def percent(share: Any, digits: int = 1) -> str:
    """A share of one as a percentage: 0.851 is '85.1 %'."""
    found = number(share)
    return absent(share) if found is None else f"{100 * found:.{digits}f}{_SPACE}%".replace("-", MINUS)


def interval(bounds: Sequence[float], digits: int = 0) -> str:
    """Two shares in per cent, without the sign: `77–92`."""
    low, high = bounds
    return f"{100 * low:.{digits}f}{EN_DASH}{100 * high:.{digits}f}"


def bytes_(count: Any) -> str:
    """A number of bytes in binary units: 15,360 is '15.0 KiB'."""
    found = number(count)
    if found is None:
        return absent(count)
    unit = 0
    while abs(found) >= 1024 and unit < len(_BYTE_UNITS) - 1:
        found /= 1024
        unit += 1
    return f"{significant(found) if unit else whole(found)}{_SPACE}{_BYTE_UNITS[unit]}"


def cache_mib(bytes_per_token: Any) -> str:
    """KV cache of one sequence of `CONTEXT_TOKENS` tokens, in MiB and without the unit."""
    found = number(bytes_per_token)
    return absent(bytes_per_token) if found is None else significant(found * CONTEXT_TOKENS / 2**20)


def duration(seconds: Any) -> str:
    """Seconds as '12.3 s', '4 min 05 s' or '1 h 12 min'."""
    found = number(seconds)
    if found is None:
        return absent(seconds)
    if found < 60:
        return f"{significant(found)}{_SPACE}s"
    minutes, rest = divmod(round(found), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min{_SPACE}{rest:02d}{_SPACE}s"
    hours, minutes = divmod(round(found / 60), 60)
    return f"{hours:,}{_SPACE}h{_SPACE}{minutes:02d}{_SPACE}min"


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of an axis: all with the same number of decimals (0, 0.25, 0.50), or short (40k, 1.5M)."""
    if all(0.001 <= abs(value) < 1000 or value == 0 for value in values):
        decimals = max((len(f"{value:.4g}".partition(".")[2]) for value in values), default=0)
        return ["0" if value == 0 else f"{value:.{decimals}f}".replace("-", MINUS) for value in values]
    return [_short(value) for value in values]


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}".replace("-", MINUS)
    if value != 0 and abs(value) < 1e-3:
        return significant(value, 1)
    return f"{value:.4g}".replace("-", MINUS)


def layer_list(layers: list[int]) -> str:
    """Layer indices with runs joined: '3, 6 to 8, 25' (with a dash); 'none' for an empty list."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = (", ".join(map(str, run)) if len(run) < 3 else f"{run[0]}{EN_DASH}{run[-1]}" for run in runs)
    return ", ".join(texts) or "none"


def words(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(words, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{words(key)} {words(item)}" for key, item in value.items()) or "none"
    return readable("none" if value is None else value)
