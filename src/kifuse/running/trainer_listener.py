"""What one Trainer's training tells the listener of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from kifuse.methods.shown import Shown
from kifuse.record.run_record import RunRecord
from kifuse.running.progress import Progress, RowScore


class Watcher(TrainerCallback):
    """Passes log lines and a method's entries on to a listener.

    Args:
        progress: The listener.
        task: Name of the task.
        shown: How the method's entries and numbers are put into words.
    """

    def __init__(self, progress: Progress, task: str, shown: Shown) -> None:
        self.progress, self.task, self.shown = progress, task, shown

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Tell the numbers of a log line."""
        values = step_values(logs or {})
        if values:
            self.progress.logged(self.task, state.global_step, values)
            self._say(state.global_step, self.shown.logged_text(values), once=False)

    def heard(self, event: dict[str, Any]) -> None:
        """Tell an entry that the method added to the record."""
        values = {name: value for name, value in event.items() if name not in ("kind", "step")}
        self.progress.event(self.task, event["kind"], event["step"], values)
        self._say(event["step"], self.shown.event_text(event["kind"], values), once=True)

    def _say(self, step: int, text: str, *, once: bool) -> None:
        if text:
            self.progress.method_says(self.task, step, text, once)


def step_values(logs: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a step in a Trainer's log line; none for the last line, which sums up the training.

    The epoch is left out, because it is a share of one task's training. So is the last line, because its sums
    lack what an earlier start of the run did.
    """
    if "train_runtime" in logs:
        return {}
    return {name: value for name, value in logs.items() if name != "epoch"}


def matrix_row(record: RunRecord, after: int) -> list[RowScore]:
    """The scores after so many tasks, that of the task just learned first, with their changes.

    Args:
        record: The run's record.
        after: Number of tasks learned; 0 before any training.
    """
    row = []
    for cell in sorted(
        (s for s in record.scores if s.after == after), key=lambda s: (s.task != after - 1, s.task)
    ):
        earlier = [s for s in record.scores if s.task == cell.task and s.after < after]
        last = max(earlier, key=lambda s: s.after, default=None)
        row.append(
            RowScore(
                task=record.tasks[cell.task].name,
                score=cell.score,
                change=None if last is None else cell.score - last.score,
                learned=cell.task < after,
            )
        )
    return row
