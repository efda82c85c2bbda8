"""The numbers that a method logs, each at the step that it belongs to."""

from __future__ import annotations

from typing import Any

from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy


class StepLog:
    """Writes to a Trainer's log history.

    A step is counted once its weights have moved. What a method logs before that, in `loss` or
    `on_gradients`, waits for the step's end; of several micro-batches the mean is written.

    Args:
        trainer: The Trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.reaches_integrations = True
        """Whether trackers and kifuse's listener get each line too, or the history alone."""
        self._waiting: dict[str, list[float]] | None = None

    @property
    def due(self) -> bool:
        """Whether the Trainer writes its own log line after this step, and so reads from the device."""
        if self._waiting is None:
            return bool(self.trainer.control.should_log)
        # in the middle of a step the Trainer has not decided yet; it will by this rule
        args, state = self.trainer.args, self.trainer.state
        step = state.global_step + 1
        if step == 1 and args.logging_first_step:
            return True
        return args.logging_strategy == IntervalStrategy.STEPS and step % state.logging_steps == 0

    def begin_step(self) -> None:
        """Called before a step's first micro-batch."""
        self._waiting = {}

    def end_step(self) -> None:
        """Write what waits; called when the step is counted."""
        waiting, self._waiting = self._waiting, None
        if waiting:
            self.write({name: sum(values) / len(values) for name, values in waiting.items()})

    def write(self, values: dict[str, float]) -> None:
        """Write numbers now, or in the middle of a step at its end."""
        if self._waiting is not None:
            for name, value in values.items():
                self._waiting.setdefault(name, []).append(value)
            return
        if not self.reaches_integrations:
            self.trainer.state.log_history.append({**values, "step": self.trainer.state.global_step})
            return
        control = self.trainer.control
        wanted = control.should_log
        # by the base class: a Trainer such as SFTTrainer would add its own numbers to this line
        Trainer.log(self.trainer, dict(values))
        # logging resets the Trainer's own request to log this step
        control.should_log = wanted
