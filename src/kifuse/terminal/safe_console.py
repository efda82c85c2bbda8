"""A terminal that text from files cannot control."""

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
    r"""Replace characters that a terminal would act upon by escapes such as `\x1b`; tabs and line ends stay.

    These are control characters (escape sequences begin with one), marks that change the direction of text,
    and code points that are no characters.
    """
    return _STEERS.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class SafeConsole(Console):
    """A console of rich that prints text from files and never acts upon it.

    Only kifuse sets colours and links and moves the cursor. Codes for these in texts are printed as escapes.
    """

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Render as rich does, with every piece of text made harmless."""
        for segment in super().render(renderable, options):
            if segment.control or not _STEERS.search(segment.text):
                yield segment
            else:
                yield Segment(without_control(segment.text), segment.style)
