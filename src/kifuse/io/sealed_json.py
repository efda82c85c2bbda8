"""JSON files that hold their own hash as their last key, so that an edited or cut file is noticed.

The hash shows accidents and careless edits, not forgery: whoever can write the file can write another hash.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from kifuse.errors import RunError
from kifuse.io.storage import read_bytes, read_json, sha256_text, write_text

SEAL = "seal"
_END = re.compile(rb',\n  "seal": "([0-9a-f]{64})"\n\}\n\Z')


def write_sealed(path: str | os.PathLike[str], text: str) -> None:
    """Write the indented JSON of an object with its seal, atomically.

    Args:
        path: The file to write.
        text: The JSON of the object, indented by two spaces a level. The object must have at least one key,
            and none called `seal`.

    Raises:
        KifuseError: If the file cannot be written.
    """
    body = text.rstrip().removesuffix("\n}")
    write_text(path, f'{body},\n  "{SEAL}": "{sha256_text(body)}"\n}}\n')


def read_sealed(path: str | os.PathLike[str]) -> tuple[Any, bool]:
    """Read a JSON file and check it against its seal.

    Args:
        path: The file to read.

    Returns:
        The value without the seal, and whether the file had a seal; earlier versions of kifuse wrote none.

    Raises:
        RunError: If the content is not what was sealed.
        KifuseError: If the file is missing, unreadable or not JSON.
    """
    found = read_json(path)
    if not isinstance(found, dict) or SEAL not in found:
        return found, False
    # a version control system may have changed the line ends
    raw = read_bytes(path).replace(b"\r\n", b"\n")
    end = _END.search(raw)
    if end is None or hashlib.sha256(raw[: end.start()]).hexdigest().encode() != end[1]:
        raise RunError(
            f"{path}: its content is not what was written (its seal differs): the file was edited or is "
            "damaged; restore it from a copy."
        )
    del found[SEAL]
    return found, True
