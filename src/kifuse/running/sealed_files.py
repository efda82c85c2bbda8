"""Hashes on record of the files beside it, so that a swapped, edited or emptied file is refused."""

from __future__ import annotations

from pathlib import Path

from kifuse.io.sealed_json import read_sealed
from kifuse.io.storage import sha256_file
from kifuse.models.identity import identity, refuse_another
from kifuse.models.loading import Backbone
from kifuse.record.run_record import FILE, RunRecord


def check_base(record: RunRecord, backbone: Backbone) -> None:
    """Make sure that a base model is the one on record, and put on record which it is.

    Raises:
        ModelError: It is another base model.
    """
    if record.model.get("given"):
        return
    before = {key: record.model[key] for key in ("files", "commit") if key in record.model}
    name = record.config["model"]["name"]
    found = identity(name, backbone.source, backbone.model.config, before)
    refuse_another(name, found, before)
    record.model.update(found)


def seal_if_unsealed(folder: Path, record: RunRecord) -> bool:
    """Put the hashes of a folder's files on record if an earlier kifuse wrote the record without them.

    Args:
        folder: The run's folder.
        record: The run's record; it is changed in place, and not saved.

    Returns:
        Whether the record had no hashes.
    """
    if not (folder / FILE).is_file() or read_sealed(folder / FILE)[1]:
        return False
    for k, task in enumerate(record.tasks, start=1):
        task.seal = task.seal or _hash(folder / "state" / f"after-{k}" / "manifest.json")
        task.kept = task.kept or _hash(folder / "tasks" / f"{k}.json")
    for cell in record.scores:
        name = f"{record.tasks[cell.task].name}.jsonl"
        file = folder / "predictions" / f"after-{cell.after}" / name
        cell.predictions = cell.predictions or _hash(file)
    return True


SEALED_NOW = "written by an earlier kifuse, which did not seal its files; they are sealed now as they are"
"""The message about such a folder, said once, after its path."""


def _hash(file: Path) -> str | None:
    return sha256_file(file) if file.is_file() else None
