"""One test example of each task as the model read it, from the file that a run keeps beside its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kifuse.errors import KifuseError
from kifuse.io.storage import read_json
from kifuse.record.run_record import RENDERED

Pieces = list[tuple[str, bool]]
"""Parts of a text, each with whether it is made of special tokens."""


def rendered(folder: Path | None) -> dict[str, tuple[Pieces, Pieces, bool]]:
    """Read the rendered examples of a run.

    Args:
        folder: The run's folder. None: there are no examples.

    Returns:
        Prompt, target and whether a part was cut, by task. Examples that cannot be read are left out.
    """
    found = {}
    for name, each in _read(folder).items() if folder is not None else ():
        try:
            found[name] = (_pieces(each["prompt"]), _pieces(each["target"]), bool(each.get("cut")))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    return found


def _pieces(items: Any) -> Pieces:
    return [(str(text), bool(special)) for text, special in items]


def _read(folder: Path) -> dict[str, Any]:
    if not (folder / RENDERED).is_file():
        return {}
    try:
        found = read_json(folder / RENDERED)
    except KifuseError:
        return {}
    return found if isinstance(found, dict) else {}
