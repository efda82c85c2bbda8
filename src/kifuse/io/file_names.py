"""Names that can be file names on Linux, macOS and Windows alike: the names of tasks become file names."""

from __future__ import annotations

import re
import unicodedata

# Characters that Windows forbids in names, control characters, line ends, marks that reverse text, and halves
# of surrogate pairs.
_NOT_IN_NAMES = re.compile('[<>:"/\\\\|?*\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
_DEVICES = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])[ ]*(?:\.|\Z)", re.IGNORECASE)
_LONGEST_NAME = 200


def name_fault(name: object) -> str | None:
    """Say why a name could not be a file's name on Linux, macOS and Windows alike.

    Args:
        name: The name without an ending such as ``.jsonl``.

    Returns:
        What is wrong and what was expected, or None when nothing is.
    """
    if not isinstance(name, str) or not name.strip():
        return f"is {name!r}, expected a non-empty text"
    if leads_out(name):
        return f"{name!r} is a path, expected a plain name"
    if found := _NOT_IN_NAMES.search(name):
        return f"{name!r} holds the character {found[0]!r}, which not every file system allows in a name"
    if name[0].isspace() or name[-1].isspace() or name[0] == "." or name[-1] == ".":
        return f"{name!r} begins or ends with a dot or a space, expected a name that every file system keeps"
    if _DEVICES.match(name):
        return f"{name!r} is the name of a device on Windows, expected another name"
    if len(name.encode("utf-8")) > _LONGEST_NAME:
        return f"{name[:40]!r}… is too long: expected at most {_LONGEST_NAME} bytes"
    return None


def leads_out(name: str) -> bool:
    """Tell whether a name, joined to a folder's path, could name something outside of that folder."""
    return name in (".", "..") or any(mark in name for mark in "/\\\0")


def name_key(name: str) -> str:
    """Give a key that is equal for names that some file systems confuse: by letter case or accents."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
