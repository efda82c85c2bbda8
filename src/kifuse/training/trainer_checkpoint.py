"""What a stand-alone callback keeps beside a Trainer's checkpoint, to go on in the middle of a task."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kifuse.errors import KifuseError, RunError
from kifuse.methods.base import Method
from kifuse.training.state_folder import STATE, StateFolder, read_state, refuse_other_method
from kifuse.training.taps import Taps

_log = logging.getLogger(__name__)


class Resuming:
    """Lets a Trainer that is to resume from its newest checkpoint pass over one that a kill left broken."""

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
    """The newest checkpoint whose method's state is whole; what is passed over is said.

    The method's state is written last of all, so that a checkpoint which has it is complete.

    Args:
        folder: The Trainer's `output_dir`.

    Returns:
        Its folder. False where none is whole: the task begins anew. True where there is no checkpoint at
        all, which the Trainer itself refuses.
    """
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            read_state(path / "kifuse")
        except KifuseError as error:
            _log.warning("%s is passed over, since it is not whole: %s", path, error)
        else:
            return str(path)
    if found:
        _log.warning("no checkpoint in %s is whole, so the task begins anew", folder)
    return not found


def read_checkpoint(folder: Path, step: int, method: Method) -> StateFolder:
    """Read what was kept of a step.

    Args:
        folder: `checkpoint-<step>/kifuse`.
        step: The step that the Trainer goes on from.
        method: The method that goes on.

    Raises:
        RunError: It is not there, or was written by another method.
    """
    if not (folder / STATE).is_file():
        parent = folder.parent.parent
        others = [p.parent.parent.name for p in parent.glob(f"checkpoint-*/kifuse/{STATE}")]
        whole = max(others, key=lambda name: int(name.rpartition("-")[2]), default="")
        remedy = f"resume from {parent / whole}" if whole else "start without resume_from_checkpoint"
        raise RunError(
            f"{folder / STATE}: no such file. The Trainer goes on from step {step}, but the method's state "
            "of that step is not there: the checkpoint was made without this callback, or the process ended "
            f"while it was being written; {remedy}. If the checkpoint is not in the Trainer's output_dir, "
            "name it: callback(checkpoint=...)."
        )
    found = read_state(folder)
    refuse_other_method(folder / STATE, found.values, method)
    return found


def check_place(folder: Path, found: Mapping[str, Any], weights: str, memory: str, name: str) -> None:
    """Make sure that a checkpoint's weights and memory are those its state was written with.

    Args:
        folder: Of the checkpoint, for the message.
        found: What its `state.json` says.
        weights: Fingerprint of the trained tensors.
        memory: Fingerprint of the rows of earlier tasks.
        name: Of the task.

    Raises:
        RunError: One of them is another.
    """
    wrong = "weights" if found["weights"] != weights else ""
    if found["memory"] != memory:
        wrong = "rows of earlier tasks (memory)"
    if found["name"] != name:
        wrong = f"task name ({found['name']!r} there, {name!r} here)"
    if wrong:
        raise RunError(
            f"{folder}: was written with other {wrong} than training would go on with; leave everything as "
            "it was, or begin the task anew, without resume_from_checkpoint."
        )
