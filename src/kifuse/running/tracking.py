"""TensorBoard, Weights & Biases and Trackio: a run of kifuse is one run there, with all its Trainers.

A Trainer makes its own integrations, ends them with its training and counts its steps from 0. Here each task
has its own Trainer. So the integrations of `training.report_to` are made once, by the function that a Trainer
uses too. They outlive the Trainers, and their steps are counted over the whole stream.

Under `train/...` they are sent what a Trainer logs (loss, learning_rate, grad_norm) and what a method does
(orthogonality, mask_overlap, mean_weight_of_previous, fusions), with `train/task`, the task's number. After
each task they are sent `test/score/<task>`, `test/AP` and `test/BWT`.

A run that goes on also goes on there: TensorBoard drops what came after the step that the run goes on from;
Weights & Biases and Trackio find the run again by an id that is made from its record.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kifuse.errors import RunError
from kifuse.io.storage import sha256_text
from kifuse.record.run_record import RunRecord
from kifuse.running.progress import RowScore
from kifuse.running.trainer_listener import step_values

PROJECT = "kifuse"
"""Name of the project, unless WANDB_PROJECT says otherwise."""


class Tracking:
    """The trackers of one run.

    Args:
        names: `training.report_to`.
        folder: The run's folder; TensorBoard's files go into its `tensorboard`.
        record: The run's record.
        arguments: Makes the Trainer's arguments; some of them name the run.
        model: The trained model, for the trackers' notes.
        say: Called with what trackers print, and if one fails.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        record: RunRecord,
        *,
        arguments: Callable[..., TrainingArguments],
        model: Any,
        say: Callable[[str], None],
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.folder, self.record, self.model, self.say = folder, record, model, say
        self.id = identity_of(record)
        self.title = f"{Path(folder).resolve().name}-{self.id}"
        self._make_arguments = arguments
        self._arguments: TrainingArguments | None = None
        self._open: dict[str, TrainerCallback] = {}
        self._last_step = -1
        self._own_wandb = False

    def open(self) -> None:
        """Start the run, or go on with it, in each tracker; does nothing if they are open.

        Raises:
            RunError: A tracker cannot be started.
        """
        if self._open:
            return
        self._arguments = self._make_arguments(run_name=self.title, project=PROJECT)
        self._last_step = -1
        for name in self.names:
            try:
                with _told(self.say):
                    self._open[name] = self._begin(name)
            except Exception as error:
                self.close()
                remedy = ", log in, or set WANDB_MODE=offline" if name == "wandb" else ""
                raise RunError(
                    f"training.report_to: {name} could not be started: {error} Take it out of the "
                    f"list{remedy}."
                ) from error

    def _begin(self, name: str) -> TrainerCallback:
        from transformers.integrations import get_reporting_integration_callbacks

        config = self.record.config
        if name == "wandb":
            import wandb  # pyright: ignore[reportMissingImports]

            if wandb.run is None:  # otherwise the run is the user's own, and stays so
                wandb.init(
                    project=os.environ.get("WANDB_PROJECT", PROJECT),
                    name=self.title,
                    id=self.id,
                    resume="allow",
                    dir=os.environ.get("WANDB_DIR", str(self.folder)),
                    config={PROJECT: config},
                )
                self._own_wandb = True
        tracker = get_reporting_integration_callbacks([name])[0]()
        if name != "tensorboard":
            tracker.on_train_begin(self._arguments, _state(0), TrainerControl(), model=self.model)
        if name == "trackio":
            import trackio  # pyright: ignore[reportMissingImports]

            trackio.config.update({PROJECT: config}, allow_val_change=True)
        return tracker

    def callback(self, task: int, before: int) -> TrainerCallback:
        """The callback through which a Trainer sends what it logs.

        Args:
            task: The task's number, from 1.
            before: Steps of the earlier tasks.
        """
        return _Relay(self, task, before)

    def at(self, step: int) -> None:
        """Note the current step of the stream; TensorBoard's later steps are those of a lost start.

        Args:
            step: The step, which is complete to its last log line.
        """
        if self._last_step < 0 or step < self._last_step:
            self._tell("tensorboard", lambda board: self._new_file(board, step))
        self._last_step = step

    def _new_file(self, board: Any, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        board.on_train_end(self._arguments, _state(step), TrainerControl())
        board.tb_writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        board.on_train_begin(self._arguments, _state(step), TrainerControl(), model=self.model)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send numbers; if a tracker fails, this is said, and it is sent no more.

        Args:
            step: The step, counted over the whole stream.
            values: Numbers by name; what begins with `test_` goes under `test/`, all else under `train/`.
        """
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        self.at(step)
        for name in list(self._open):
            self._tell(
                name,
                lambda tracker: tracker.on_log(
                    self._arguments, _state(step), TrainerControl(), logs=dict(finite), model=self.model
                ),
            )

    def _tell(self, name: str, what: Callable[[Any], None]) -> None:
        if name not in self._open:
            return
        try:
            what(self._open[name])
        except Exception as error:  # whatever a tracker's server or disk does, training goes on
            del self._open[name]
            self.say(f"training.report_to: {name} failed and gets nothing more: {error}")

    def scores(self, after: int, row: Sequence[RowScore]) -> None:
        """Send the scores after so many tasks, with AP and BWT so far if they are known."""
        values = {f"test_score/{score.task}": score.score for score in row}
        if after:
            matrix = self.record.matrix()
            metrics = {"AP": matrix.average_performance(after), "BWT": matrix.backward_transfer(after)}
            values |= {f"test_{name}": m.value for name, m in metrics.items() if m.value is not None}
        self.log(steps_before(self.record, after), values)

    def close(self) -> None:
        """End the run in each tracker; `open` goes on with it."""
        for name, tracker in self._open.items():
            try:
                with _told(self.say):
                    self._end(name, tracker)
            except Exception as error:
                self.say(f"training.report_to: {name} could not be closed: {error}")
        self._open, self._own_wandb = {}, False

    def _end(self, name: str, tracker: Any) -> None:
        if name != "wandb":
            tracker.on_train_end(self._arguments, _state(max(self._last_step, 0)), TrainerControl())
        elif self._own_wandb:
            import wandb  # pyright: ignore[reportMissingImports]

            wandb.finish()


class _Relay(TrainerCallback):
    """Passes on what one Trainer logs."""

    def __init__(self, tracking: Tracking, task: int, before: int) -> None:
        self.tracking, self.task, self.before = tracking, task, before

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tracking.at(self.before + state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        values = step_values(logs or {})
        if "loss" in values:
            values["task"] = self.task
        if values:
            self.tracking.log(self.before + state.global_step, values)


def steps_before(record: RunRecord, k: int) -> int:
    """Optimizer steps of the first k tasks."""
    return sum(entry.train_steps or 0 for entry in record.tasks[:k])


def identity_of(record: RunRecord) -> str:
    """Eight characters by which a run is found again, wherever its folder is."""
    return sha256_text(json.dumps([record.created, record.config], sort_keys=True))[:8]


def _state(step: int) -> TrainerState:
    return TrainerState(global_step=step)


@contextlib.contextmanager
def _told(say: Callable[[str], None]) -> Any:
    """Say what a library prints."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if line.strip():
                say(line.strip())
