"""A terminal to print on that text from files cannot steer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

_STEERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def without_control(text: str) -> str:
    r"""Write what a terminal would act upon as an escape such as `\x1b`; tabs and line breaks stay.

    Such are control characters and escape sequences, what turns the direction of text, and what is no
    character.
    """
    return _STEERS.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class SafeConsole(Console):
    """A console of rich that prints what text from files holds, and never does it.

    Colours, links and movements of the cursor come from kifuse alone: in texts they are written as escapes.
    """

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Render as rich does, with every piece of text made harmless."""
        for segment in super().render(renderable, options):
            if segment.control or not _STEERS.search(segment.text):
                yield segment
            else:
                yield Segment(without_control(segment.text), segment.style)
