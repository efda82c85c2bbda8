"""Make text of the data safe for a terminal: it cannot move the cursor, change colours or its direction."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from kifuse.terminal.safe_console import without_control

PROMPT, TARGET, SPECIAL = "", "bold green", "cyan"


def visible(text: str) -> str:
    r"""Write characters that a terminal would obey as escapes such as `\x1b`, and a line break as `⏎`."""
    return without_control(text).replace("\n", "⏎").replace("\t", "\\t")


def styled(pieces: Iterable[tuple[str, bool]], style: str, *, lines: bool) -> Text:
    """Put the pieces of a rendered text together, special tokens in a colour of their own.

    Args:
        pieces: Texts, each with whether it is made of special tokens.
        style: The style of text that is not made of special tokens.
        lines: Whether a line break breaks the line as well.
    """
    found = Text()
    for text, special in pieces:
        shown = visible(text)
        found.append(shown.replace("⏎", "⏎\n") if lines else shown, SPECIAL if special else style)
    return found


def excerpt(text: Text, most: int) -> Text:
    """Leave out the middle of a text of more than `most` characters; its end matters most."""
    if len(text) <= most:
        return text
    begin = most // 3
    return Text.assemble(text[:begin], (" … ", "dim"), text[len(text) - (most - begin - 3) :])
