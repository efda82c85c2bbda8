"""What is exported: the state of a run or a learner after a task, and its base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kifuse.adapters.folder import read_config
from kifuse.errors import RunError
from kifuse.exporting.hub import HUB_ID
from kifuse.io.storage import read_json
from kifuse.models.catalog import BUNDLED, is_model_folder
from kifuse.record.lineage import count_up_to
from kifuse.record.run_record import RunRecord
from kifuse.running.snapshot import Snapshots


@dataclass(frozen=True)
class Source:
    """The state of a run or a learner after some tasks.

    Attributes:
        folder: The folder of the run or learner.
        record: Its record.
        count: Number of tasks learned in this state.
        adapter: Folder of the adapter, whose files have been checked.
        config: Its `adapter_config.json`.
    """

    folder: Path
    record: RunRecord
    count: int
    adapter: Path
    config: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks learned in this state, in their order."""
        return [task.name for task in self.record.tasks[: self.count]]


def open_source(folder: Path, after: int | str | None) -> Source:
    """Find the state to export.

    Args:
        folder: The folder of a run or a learner.
        after: Number of tasks, or the name of the last one; None for all learned tasks.

    Raises:
        RunError: There is no run, nothing was learned yet, no such task, or a file is damaged.
    """
    record = RunRecord.load(folder)
    kept = Snapshots(folder)
    there = [k for k in range(1, len(record.tasks) + 1) if kept.has(k) and record.tasks[k - 1].seal]
    if not there:
        raise RunError(
            f"{folder}: nothing was learned yet, or no adapter is left, so there is nothing to export."
        )
    names = [task.name for task in record.tasks[: there[-1]]]
    count = there[-1] if after is None else count_up_to(after, names, "after")
    if count not in there:
        missing = kept.adapter(count).name
        raise RunError(
            f"{folder}: found no adapter {missing}, expected one of "
            f"{', '.join(kept.adapter(k).name for k in there)}."
        )
    kept.check(count, record.tasks[count - 1].seal)
    return Source(folder, record, count, kept.adapter(count), read_config(kept.adapter(count)))


@dataclass(frozen=True)
class Base:
    """The base model, as it is described to others.

    Attributes:
        name: A hub id or, if none is known, the last part of its folder's path; never a path.
        licence: The licence in its own card; None if it is not known.
    """

    name: str
    licence: str | None

    @property
    def on_hub(self) -> bool:
        """Whether the name has the form of a hub id."""
        return bool(HUB_ID.match(self.name))


def public_base(loaded: str, source: str, name: str | None, licence: str | None) -> Base:
    """Find the name and licence of the base model for use outside of this machine.

    Args:
        loaded: The name that it is loaded by: one of kifuse's own, a hub id, or a folder.
        source: Where its files are: a folder or a hub id.
        name: The name that the caller gives, or None.
        licence: The licence that the caller gives, or None.
    """
    if loaded in BUNDLED:
        entry = BUNDLED[loaded]
        return Base(name or entry.hub, licence or entry.licence.lower())
    if not is_model_folder(loaded):
        return Base(name or loaded, licence or _licence_of(loaded))
    folder = Path(source).resolve()
    told = read_json(folder / "config.json").get("_name_or_path") or ""
    found = name or (told if HUB_ID.match(told) and not Path(told).exists() else folder.name)
    return Base(" ".join(found.split()), licence or _licence_of(folder))


def _licence_of(model: Path | str) -> str | None:
    """The licence in a model's card; None if there is no card or licence, or the card cannot be loaded."""
    from huggingface_hub import ModelCard

    if isinstance(model, Path):
        if not (model / "README.md").is_file():
            return None
        model = model / "README.md"
    try:
        data: Any = ModelCard.load(model, ignore_metadata_errors=True).data
    except Exception:  # no network, no card, or one that is no YAML: the licence is not known then
        return None
    return data.license if isinstance(data.license, str) else None
