"""Write numbers, times and names so that people can read them."""

from __future__ import annotations

import re
from collections.abc import Sequence

NONE = "\u2013"
"""What is written if there is no value."""

MINUS = "\u2212"

_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]"
)


def clean(text: object) -> str:
    """Make a text that any file can hold, and that does not change the look of the text around it.

    This replaces control characters, characters that change the direction of text, and halves of surrogate
    pairs.

    Args:
        text: What a user or a model wrote; anything else is turned into text first.

    Returns:
        The text, with a replacement character for each character that was removed. Line breaks and tabs stay.
    """
    whole = str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _CONTROL.sub("\ufffd", whole)


def for_markdown(text: object, signs: str = "\\|`*_[]") -> str:
    """Put a text on one line of Markdown without HTML, with a backslash before each of the signs."""
    line = re.sub(f"([{re.escape(signs)}])", r"\\\1", " ".join(clean(text).split()))
    return line.replace("<", "&lt;").replace(">", "&gt;")


def shorten(text: object, most: int) -> str:
    """Put a text on one line, and cut its end so that it has at most `most` characters."""
    line = " ".join(clean(text).split())
    return line if len(line) <= most else line[: max(most - 1, 1)].rstrip() + "…"


def number(value: float | None, decimals: int = 1, *, sign: bool = False) -> str:
    """Write a number with `decimals` decimals and a true minus sign; None becomes a dash."""
    if value is None:
        return NONE
    # Adding zero turns a rounded -0.0 into 0.0.
    rounded = round(value, decimals) + 0.0
    shown = f"{rounded:{'+' if sign and rounded else ''}.{decimals}f}"
    return shown.replace("-", MINUS)


def compact(value: float | None) -> str:
    """Write a number of any size with about three digits."""
    if value is None:
        return NONE
    if value == 0 or 0.01 <= abs(value) < 10_000:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    else:
        text = f"{value:.2e}"
    return text.replace("-", MINUS)


def count(value: int, one: str, many: str | None = None) -> str:
    """Write a number of things with its noun: `1 task`, `15 tasks`."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def duration(seconds: float | None) -> str:
    """Write a time: `4.2 s`, `9 min 6 s`, `3 h 12 min`."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    return f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> tuple[str, str]:
    """Write a time in short form, with its unit apart: (`4.2`, `s`), (`9:06`, `min`), (`3:12`, `h`)."""
    if seconds < 60:
        return f"{seconds:.1f}", "s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{left:02d}", "min"
    return f"{minutes // 60}:{minutes % 60:02d}", "h"


def megabytes(value: float | None) -> str:
    """Write a size in MiB, or in GiB from 1024 MiB on."""
    if value is None:
        return NONE
    return f"{value / 1024:.1f} GiB" if value >= 1024 else f"{value:.0f} MiB"


def listed(names: Sequence[str]) -> str:
    """Write names in a row: `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plain(value: object) -> str:
    """Write a setting as it stands in a configuration file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(plain(each) for each in value) or "none"
    return clean(value)
