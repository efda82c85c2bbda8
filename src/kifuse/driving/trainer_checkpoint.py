"""What a stand-alone callback keeps beside a Trainer's checkpoint, to go on in the middle of a task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kifuse.driving.state_folder import STATE, StateFolder, read_state, refuse_other_method
from kifuse.driving.taps import Taps
from kifuse.errors import KifuseError, RunError
from kifuse.methods.base import Method

_log = logging.getLogger(__name__)


class Resuming:
    """Lets a Trainer that resumes from its newest checkpoint pass over one that a kill left broken."""

    def __init__(self) -> None:
        self._taps: list[Taps] = []

    def watch(self, trainer: Any) -> None:
        """Be called when a Trainer's training begins."""
        if any(each.trainer is trainer for each in self._taps):
            return
        taps = Taps(trainer)

        def train(original: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
            if resume_from_checkpoint is True:
                resume_from_checkpoint = newest_whole(Path(trainer.args.output_dir))
            return original(resume_from_checkpoint, *args, **kwargs)

        taps.train(train)
        self._taps.append(taps)

    def release(self, trainer: Any) -> None:
        """Leave a Trainer as it was."""
        for taps in [each for each in self._taps if each.trainer is trainer]:
            taps.release()
            self._taps.remove(taps)


def newest_whole(folder: Path) -> str | bool:
    """Find the newest checkpoint whose method's state is whole, and warn about those passed over.

    The method's state is written last, so a checkpoint that has it is complete.

    Args:
        folder: The Trainer's `output_dir`.

    Returns:
        Its folder. False if none is whole: the task begins again. True if there is no checkpoint at all,
        which the Trainer itself refuses.
    """
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            read_state(path / "kifuse")
        except KifuseError as error:
            _log.warning("%s is skipped, as it is incomplete: %s", path, error)
        else:
            return str(path)
    if found:
        _log.warning("no checkpoint in %s is complete, so the task starts again", folder)
    return not found


def read_checkpoint(folder: Path, step: int, method: Method) -> StateFolder:
    """Read the method's state that was written at a step.

    Args:
        folder: `checkpoint-<step>/kifuse`.
        step: The step that the Trainer goes on from.
        method: The method that goes on.

    Raises:
        RunError: The state is not there, or was written by another method.
    """
    if not (folder / STATE).is_file():
        parent = folder.parent.parent
        others = [p.parent.parent.name for p in parent.glob(f"checkpoint-*/kifuse/{STATE}")]
        whole = max(others, key=lambda name: int(name.rpartition("-")[2]), default="")
        remedy = f"Resume from {parent / whole}" if whole else "Start without resume_from_checkpoint"
        raise RunError(
            f"{folder / STATE}: no such file. The Trainer continues from step {step}, but the method's "
            "state of that step is missing: the checkpoint was made without this callback, or the process "
            f"ended while it was written. {remedy}. If the checkpoint is not in the Trainer's output_dir, "
            "name it: callback(checkpoint=...)."
        )
    found = read_state(folder)
    refuse_other_method(folder / STATE, found.values, method)
    if not any(folder.parent.glob("optimizer*")):
        _log.warning(
            "%s holds no state of the optimizer (save_only_model). Training continues with new moments, a "
            "new schedule and other random numbers, so its result differs from that of an uninterrupted "
            "training",
            folder.parent,
        )
    return found


def refuse_other_task(
    folder: Path,
    index: int,
    data: str | None,
    kept: str | None,
    finished: Sequence[Mapping[str, Any]],
    *,
    named: bool,
) -> None:
    """Refuse a checkpoint of another task than the one whose rows the Trainer was given.

    A finished task may be ended once more from its last checkpoint, for instance if the process ended before
    the script had saved the adapter. If all months share one output_dir, the newest checkpoint may be last
    month's.

    Args:
        folder: Folder of the checkpoint's state.
        index: 0-based position of the checkpoint's task.
        data: Hash of the Trainer's rows; None if they have none.
        kept: Hash of the rows when the checkpoint was written.
        finished: Number, name and `data` of each task that was learned.
        named: Whether the script names its task.

    Raises:
        RunError: It is another task's, or nothing shows that it is not.
    """
    done = next((task for task in finished if task["number"] == index + 1), None)
    told = {kept, done.get("data")} - {None} if done is not None else {kept} - {None}
    what = f"of task {index + 1}" + (f", {done['name']!r}, which was learned to its end" if done else "")
    remedy = (
        "To start the task of these rows, leave resume_from_checkpoint out, and give each task its own "
        "output_dir. To continue in the middle of it, name its checkpoint: resume_from_checkpoint='...'."
    )
    if data is not None and told - {data}:
        raise RunError(f"{folder.parent} is a checkpoint {what}, which was trained on other rows. {remedy}")
    if len(finished) > index + 1:
        raise RunError(
            f"{folder.parent} is a checkpoint {what}, and other tasks were learned since. {remedy}"
        )
    if done is not None and not named and not (data and told):
        raise RunError(
            f"{folder.parent} is a checkpoint {what}, and it is not known whether these rows are its own. "
            f"{remedy} If they are, give the task its name: callback(name={done['name']!r})."
        )


def check_place(folder: Path, found: Mapping[str, Any], weights: str, memory: str, name: str) -> None:
    """Make sure that a checkpoint's weights and memory are those its state was written with.

    Args:
        folder: Folder of the checkpoint, for the message.
        found: What its `state.json` says.
        weights: Fingerprint of the trained tensors.
        memory: Fingerprint of the rows of earlier tasks.
        name: Name of the task.

    Raises:
        RunError: One of them differs.
    """
    wrong = "weights" if found["weights"] != weights else ""
    if found["memory"] != memory:
        wrong = "rows of earlier tasks (memory)"
    if found["name"] != name:
        wrong = f"task name ({found['name']!r} there, {name!r} here)"
    if wrong:
        raise RunError(
            f"{folder}: was written with other {wrong} than training would continue with. Leave everything "
            "as it was, or start the task again without resume_from_checkpoint."
        )
