"""Text of the data for a terminal: nothing in it moves the cursor, changes colours or turns its direction."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.text import Text

PROMPT, TARGET, SPECIAL = "", "bold green", "cyan"

_HIDDEN = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def visible(text: str) -> str:
    r"""Write what a terminal would act upon as an escape such as `\x1b`, and a line break as `⏎`."""
    return _HIDDEN.sub(_escape, text).replace("\n", "⏎")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return "\\t" if code == 9 else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def styled(pieces: Iterable[tuple[str, bool]], style: str, *, lines: bool) -> Text:
    """Put the pieces of a rendered text together, special tokens in a colour of their own.

    Args:
        pieces: Each a text, and whether it is made of special tokens.
        style: Of the text that is not.
        lines: Whether a line break breaks the line as well.
    """
    found = Text()
    for text, special in pieces:
        shown = visible(text)
        found.append(shown.replace("⏎", "⏎\n") if lines else shown, SPECIAL if special else style)
    return found


def excerpt(text: Text, most: int) -> Text:
    """Leave out the middle of a text of more than so many characters; its end is what matters most."""
    if len(text) <= most:
        return text
    begin = most // 3
    return Text.assemble(text[:begin], (" … ", "dim"), text[len(text) - (most - begin - 3) :])
