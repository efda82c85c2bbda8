"""The importance of a task at later moments: measured again after other tasks, and in the middle of them.

    I_j = | theta_j * dL/dtheta_j |,   L the mean loss over the target tokens of the task's probe examples

at the weights theta of the moment (the first-order sensitivity, KIF Eq. 8), without smoothing and without
dropout. The record holds its mean over each trainable tensor. Recurrent-KIF's Fig. 5b, 7 and 8 are made from
it. Nothing changes: weights, gradients, modes and random numbers are as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import torch
from transformers import TrainerCallback

from kifuse.adapters.base import adapter_on
from kifuse.config import RunConfig
from kifuse.driving.batches import collator_of
from kifuse.driving.callback import MethodCallback
from kifuse.driving.context import TrainerContext
from kifuse.driving.model_at_rest import at_rest
from kifuse.driving.shards import Shards
from kifuse.driving.target_loss import TargetLoss
from kifuse.errors import ConfigError, did_you_mean
from kifuse.models.loading import Backbone
from kifuse.tasks.encoded import Encoded
from kifuse.tasks.encoding import Encoder
from kifuse.tasks.task import Task

SERIES = "probed importance of {task}, {moment}"
"""Name of a series in the record of the task that was being learned."""

END = "end"
"""The moment after the task, when its method has done everything."""


class ImportanceProbe(TrainerCallback):
    """Measures the importance of tasks while another one is learned, and at its end.

    Args:
        backbone: The backbone that the model was made from.
        examples: Examples of each task that is probed, by its name; tasks whose turn has not come are left
            out.
        stages: Moments within the task's training, evenly spaced, beside its end.
        batch_size: Examples of one forward and backward pass.
    """

    def __init__(
        self, backbone: Backbone, examples: Mapping[str, Sequence[Encoded]], stages: int, batch_size: int
    ) -> None:
        self._backbone, self._examples = backbone, examples
        self._stages, self._batch_size = stages, batch_size
        self.driver: MethodCallback | None = None
        """The callback of the training under way; what is measured goes into its record."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure when a stage is over; the last stage ends with the task."""
        at = {round(state.max_steps * part / (self._stages + 1)) for part in range(1, self._stages + 1)}
        if self.driver is not None and state.global_step in at - {state.max_steps}:
            self.measure(self.driver.running(), f"step {state.global_step}")

    def measure(self, context: TrainerContext, moment: str) -> None:
        """Measure every task at this moment.

        Args:
            context: The context of the training under way.
            moment: Name of the moment, for the record.
        """
        began, count = monotonic(), sum(map(len, self._examples.values()))
        for task, rows in self._examples.items():
            found = importance(context.trainer.model, self._backbone, context.shards, rows, self._batch_size)
            context.measure(**{SERIES.format(task=task, moment=moment): found})
        passes = sum(-(-len(rows) // self._batch_size) for rows in self._examples.values())
        seconds = round(monotonic() - began, 3)
        context.event("importance probe", moment=moment, examples=count, passes=passes, seconds=seconds)


def importance(
    model: Any, backbone: Backbone, shards: Shards, rows: Sequence[Encoded], batch_size: int
) -> torch.Tensor:
    """The mean of |theta dL/dtheta| over each trainable tensor, at the current weights.

    Args:
        model: The adapted model.
        backbone: The backbone that it was made from.
        shards: The model's trainable parameters.
        rows: Examples with targets, at least one; the same on all processes.
        batch_size: Examples in one pass.

    Returns:
        `(tensors,)`, float32, in the order of `shards.params`.
    """
    adapter, loss = adapter_on(model), TargetLoss(shift=not backbone.encoder_decoder)
    collate, tensors = collator_of(backbone, adapter), shards.params.tensors
    items = torch.tensor(sum(len(row.target_ids) for row in rows))
    total = [torch.zeros_like(p, dtype=torch.float32) for p in tensors]
    with at_rest(model, backbone.device), torch.enable_grad(), backbone.autocast():
        for start in range(0, len(rows), batch_size):
            batch = {
                key: value.to(backbone.device) if isinstance(value, torch.Tensor) else value
                for key, value in collate(rows[start : start + batch_size]).items()
            }
            if adapter is not None:
                adapter.before_batch(batch)
            labels = batch.pop("labels")
            found = loss(model(**batch), labels, items)
            for whole, grad in zip(total, shards.gradients(found), strict=True):
                if grad is not None:
                    whole.add_(grad)
    return torch.stack([(p.detach().float() * g).abs().mean() for p, g in zip(tensors, total, strict=True)])


def probe_of(
    config: RunConfig, backbone: Backbone, encoder: Encoder, tasks: Sequence[Task]
) -> ImportanceProbe | None:
    """Make the probe of the tasks that `record.probe_importance` names, as far as their turn has come.

    Args:
        config: The run's configuration.
        backbone: The backbone that the model was made from.
        encoder: Makes token ids of their examples.
        tasks: The learned tasks, and the one to be learned.

    Returns:
        The probe; None if none of these tasks is to be probed.
    """
    section, seed = config.record, config.training.seed
    drawn = {
        task.name: task.subset(train=min(section.probe_examples, len(task.train)), seed=seed).train
        for task in tasks
        if task.name in section.probe_importance
    }
    if not drawn:
        return None
    examples = {name: encoder.encode_pieces(rows) for name, rows in drawn.items()}
    return ImportanceProbe(backbone, examples, section.probe_stages, config.training.batch_size)


def refuse_probes(config: RunConfig, names: Sequence[str], *, jointly: bool) -> None:
    """Refuse to probe tasks that the stream does not have, or that have no later moment.

    Args:
        config: The run's configuration.
        names: Names of the stream's tasks.
        jointly: Whether all tasks are learned at once.

    Raises:
        ConfigError: There are such tasks.
    """
    wanted = config.record.probe_importance
    if wanted and jointly:
        raise ConfigError(
            f"record.probe_importance: found {', '.join(wanted)} with a method that learns all tasks at "
            "once, so there is no later task to measure after. Leave it out."
        )
    for name in wanted:
        if name not in names:
            raise ConfigError(
                f"record.probe_importance: found {name!r}, expected tasks of the stream: {', '.join(names)}."
                f"{did_you_mean(name, names)}"
            )
