"""Errors that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

# Control characters except newline, characters that reverse the direction of text, halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_LINE = 2000
_LONGEST_MESSAGE = 16_000
_LONGEST_NAME = 100
_MOST_CANDIDATES = 1000


class KifuseError(Exception):
    """An error that the user can fix; the command line prints it without a traceback and exits with 2.

    A message quotes the contents of files. So characters that would control a terminal are written as
    escapes. A line of more than 2000 characters, or a message of more than 16,000, is cut in the middle.
    """

    def __init__(self, message: object = "") -> None:
        lines = "\n".join(_shortened(line, _LONGEST_LINE) for line in str(message).split("\n"))
        super().__init__(_shortened(printable(lines), _LONGEST_MESSAGE))


class ConfigError(KifuseError):
    """A run configuration is wrong."""


class DataError(KifuseError):
    """A data file, a task or an example is wrong."""


class ModelError(KifuseError):
    """A model or an adapter cannot be used as requested."""


class RunError(KifuseError):
    """A run cannot start, continue or be read."""


def printable(text: str) -> str:
    """Escape characters that would control a terminal or that no file can hold; line breaks stay."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"


def counted(number: int, noun: str) -> str:
    """Write a number of things for a message: ``1 row``, ``1,200 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Suggest the candidate closest to a misspelt name.

    Args:
        name: The name as the user wrote it.
        candidates: The valid names.

    Returns:
        ``" Did you mean 'x'?"`` with a leading space, or an empty string when nothing is close.
    """
    # The time of this search grows with the square of the lengths.
    if len(str(name)) > _LONGEST_NAME:
        return ""
    by_lower = {
        candidate.casefold(): candidate
        for candidate in islice(candidates, _MOST_CANDIDATES)
        if len(candidate) <= _LONGEST_NAME
    }
    close = get_close_matches(str(name).casefold(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""
