"""What a stand-alone callback keeps beside a Trainer's checkpoint, to go on in the middle of a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kifuse.errors import RunError
from kifuse.methods.base import Method
from kifuse.training.state_folder import STATE, StateFolder, read_state, refuse_other_method


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
