"""Steps on batches of the memory, on top of a live Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kifuse.driving.batches import MemoryBatches
from kifuse.driving.finite_guard import Guard
from kifuse.driving.learning_rates import at_rate, ratios_of
from kifuse.driving.shards import Shards
from kifuse.errors import RunError
from kifuse.methods.context import TaskInfo
from kifuse.methods.parameters import Parameters
from kifuse.tasks.collator import IGNORED
from kifuse.tasks.encoding import Encoded


class MemorySteps:
    """Takes steps on the memory, right under accumulation, mixed precision and several processes.

    Args:
        trainer: The Trainer; its optimizer, accelerator, collator and loss are used.
        shards: The trainable parameters.
        memory: Batches of the memory buffer, or None for a method that may not see old data.
        guard: Judges the steps; None for a new one.
        collate: Makes a batch of memory examples; None for the Trainer's own collator.
    """

    task: TaskInfo

    def __init__(
        self,
        trainer: Any,
        shards: Shards,
        memory: MemoryBatches | None,
        *,
        guard: Guard | None = None,
        collate: Callable[[Any], Any] | None = None,
    ) -> None:
        self.trainer = trainer
        self.shards = shards
        self.params = shards.params
        self.memory = memory
        self.guard = Guard() if guard is None else guard
        self.collate = trainer.data_collator if collate is None else collate
        self.step = 0
        self.lr = 0.0
        self.ratios: list[float] | None = None
        """Rates of the optimizer's groups in the last step, as shares of `lr`; None before the first."""
        self.replayed = 0
        self.extra_passes = 0
        self._own: torch.optim.Optimizer | None = None

    def event(self, kind: str, **values: Any) -> None:
        """Keep an entry for the run's record."""
        raise NotImplementedError

    def memory_step(
        self,
        *,
        lr: float | None = None,
        optimizer: Literal["shared", "own"] = "shared",
        weight: float = 1.0,
        before: Callable[[Parameters], None] | None = None,
        after: Callable[[Parameters], None] | None = None,
    ) -> None:
        """See `Context.memory_step`.

        A step whose loss or gradient is not finite moves nothing, and neither `before` nor `after` is called;
        see `kifuse.driving.finite_guard`.

        Raises:
            RunError: The memory is empty, or too many steps in a row were not finite.
        """
        if self.memory is None or not self.memory.encoded:
            raise RunError("a memory step was asked for, but the method has no memory to step on.")
        batch = self.memory.next()
        with self.shards.apart() as own:
            self._step_on(batch, own, self.lr if lr is None else lr, optimizer, weight, before, after)
        self.replayed += len(batch)
        self.extra_passes += 1

    def _step_on(
        self,
        batch: Sequence[Any],
        own: Parameters,
        lr: float,
        optimizer: Literal["shared", "own"],
        weight: float,
        before: Callable[[Parameters], None] | None,
        after: Callable[[Parameters], None] | None,
    ) -> None:
        """Take one step with the model's own tensors on a global batch."""
        with torch.enable_grad():
            losses = self._backward(batch)
        if weight != 1.0:
            torch._foreach_mul_([grad for grad in own.grads if grad is not None], weight)
        _, largest = self.guard.take(own)
        accelerator, limit = self.trainer.accelerator, self.trainer.args.max_grad_norm
        scaler = getattr(accelerator, "scaler", None)
        if limit and limit > 0:
            accelerator.clip_grad_norm_(own.tensors, limit)
        elif scaler is not None:
            # clips nothing, but divides the gradients by the scale
            accelerator.clip_grad_norm_(own.tensors, math.inf)
        stepper = self.trainer.optimizer if optimizer == "shared" else self._own_optimizer()
        if self.guard.healthy(self, "memory", self.step, losses, largest):
            if before is not None:
                with self.shards.whole() as params:
                    before(params)
            with at_rate(stepper, lr, self._ratios()), self.shards.stepping(shared=optimizer == "shared"):
                stepper.step()
            if after is not None:
                with self.shards.whole() as params:
                    after(params)
        elif scaler is not None and optimizer == "shared":
            self.shards.skip(stepper)
            stepper.step()
        else:
            self.shards.discard()
        if scaler is not None and optimizer == "own":
            # a step of the shared optimizer would have updated the scale, but it took none
            scaler.update()
        stepper.zero_grad()
        self.shards.end_step()

    def _backward(self, batch: Sequence[Any]) -> list[Tensor]:
        """Accumulate a global batch's gradient, reduced over processes; returns the loss of each part."""
        trainer = self.trainer
        accelerator, model = trainer.accelerator, trainer.model_wrapped
        inputs = self.parts(batch)
        items = self._items(batch, inputs)
        own = getattr(trainer, "current_gradient_accumulation_steps", 1)
        # a loss that is a mean over its part is divided by this
        trainer.current_gradient_accumulation_steps = len(inputs)
        losses = []
        for place, part in enumerate(inputs):
            with self.shards.part(accelerator, model, last=place == len(inputs) - 1):
                losses.append(trainer.training_step(model, part, items).detach())
        trainer.current_gradient_accumulation_steps = own
        return losses

    def parts(self, batch: Sequence[Any]) -> list[Any]:
        """Collate this process's share of a global batch, in parts of the Trainer's size."""
        accelerator, size = self.trainer.accelerator, self.trainer.args.per_device_train_batch_size
        mine = batch[accelerator.process_index :: accelerator.num_processes]
        most = -(-len(batch) // accelerator.num_processes)
        return [self._inputs(mine[start : start + size], batch) for start in range(0, most, size)]

    def _inputs(self, part: Sequence[Any], batch: Sequence[Any]) -> Any:
        inputs = self.collate(part or batch[:1])
        if not part:
            # all processes must run the same number of passes; one without examples contributes nothing
            inputs["labels"] = torch.full_like(inputs["labels"], IGNORED)
        return inputs

    def _items(self, batch: Sequence[Any], inputs: list[Any]) -> Any:
        """What the loss is divided by: the target tokens of the global batch, as in the Trainer's steps."""
        device = self.trainer.args.device
        if isinstance(batch[0], Encoded):
            # known to every process without asking the others
            return torch.tensor(sum(len(e.target_ids) for e in batch), device=device)
        return self.trainer.get_batch_samples(iter(inputs), len(inputs), device)[1]

    def _own_optimizer(self) -> torch.optim.Optimizer:
        if self._own is None:
            args = self.trainer.args
            groups = [{"params": members} for members in self.shards.groups(self.trainer.optimizer)]
            self._own = torch.optim.AdamW(
                groups,
                lr=args.learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                weight_decay=args.weight_decay,
            )
        return self._own

    def _ratios(self) -> list[float]:
        return ratios_of(self.trainer.optimizer) if self.ratios is None else self.ratios
