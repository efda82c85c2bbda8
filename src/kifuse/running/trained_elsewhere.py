"""Takes the whole training from another run, if the two differ only in what is scored."""

from __future__ import annotations

import shutil
from pathlib import Path

from kifuse.config import RunConfig
from kifuse.errors import RunError
from kifuse.io.whole_folders import replace_folder
from kifuse.record.run_record import RunRecord
from kifuse.running.run_start import RENDERING, WITHOUT_EFFECT, begun_form, config_json, differences
from kifuse.running.snapshot import Snapshots

SCORED = ("data.scored_on ", "watch.")
"""Beginnings of those differences between two configurations that leave the whole training the same."""

_TRAINED = (
    "train_steps",
    "examples_seen",
    "replayed_examples",
    "extra_forward_backward",
    "seconds_train",
    "kept_parameters",
    "loss",
    "learning_rate",
    "events",
    "per_tensor",
    "seal",
)
"""Fields of a task's entry that its training fills; all other fields are about its data."""


def take_over_training(folder: Path, trained: Path, config: RunConfig, record: RunRecord) -> None:
    """Copy every state of a finished run, and put on record how it was trained.

    Args:
        folder: Folder of the run that has not trained anything yet.
        trained: Folder of the other run.
        config: Configuration of this run.
        record: Record of this run; it is changed in place, and not saved.

    Raises:
        RunError: The other run is not finished or damaged, or would be trained in another way here.
    """
    theirs = RunRecord.load(trained)
    changed = [
        each
        for each in differences(theirs.config, config_json(config))
        if not each.startswith((*WITHOUT_EFFECT, RENDERING, *SCORED))
    ]
    changed += [
        f"the training examples of {mine.name!r}"
        for mine, other in zip(record.tasks, theirs.tasks, strict=False)
        if (mine.name, mine.hashes["train"]) != (other.name, other.hashes["train"])
    ]
    if theirs.status != "finished" or begun_form(theirs) != begun_form(record) or changed:
        why = f"differs in {', '.join(changed)}" if changed else "is not finished, or has other prompts"
        raise RunError(f"{trained}: its training cannot be used in {folder}, since it {why}.")
    before, after = Snapshots(trained), Snapshots(folder)
    for k, (mine, other) in enumerate(zip(record.tasks, theirs.tasks, strict=True), start=1):
        if before.has(k):
            before.check(k, other.seal)
            _copy(before.adapter(k), after.adapter(k))
            _copy(before.state(k), after.state(k))
        for name in _TRAINED:
            setattr(mine, name, getattr(other, name))
    record.notes += [
        *theirs.notes,
        f"the training was taken over from {trained.name}, which was scored on dev",
    ]


def _copy(source: Path, target: Path) -> None:
    def fill(to: Path) -> None:
        shutil.copytree(source, to, dirs_exist_ok=True)

    replace_folder(target, fill)
