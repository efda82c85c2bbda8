"""Errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class KifuseError(Exception):
    """Something the user can put right; the command line prints it without a traceback and exits with 2."""


class ConfigError(KifuseError):
    """A run configuration is wrong."""


class DataError(KifuseError):
    """A data file, a task or an example is wrong."""


class ModelError(KifuseError):
    """A model or an adapter cannot be used as asked."""


class RunError(KifuseError):
    """A run cannot start, continue or be read."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Suggest the candidate closest to a misspelt name.

    Args:
        name: The name as the user wrote it.
        candidates: The valid names.

    Returns:
        ``" Did you mean 'x'?"`` with a leading space, or an empty string when nothing is close.
    """
    by_lower = {candidate.casefold(): candidate for candidate in candidates}
    close = get_close_matches(str(name).casefold(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""
