"""What a method may do after a step, on top of a live Trainer: memory steps, moments, logging."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from kifuse.errors import RunError
from kifuse.methods.base import Parameters
from kifuse.tasks.encoding import Encoded
from kifuse.training.batches import MemoryBatches


class TrainerContext:
    """Implements `kifuse.methods.base.StepContext` for a Trainer that is training.

    Args:
        trainer: The Trainer; its optimizer, accelerator, collator and loss are used, so that memory steps are
            right under accumulation, mixed precision and several processes.
        params: The trainable parameters.
        memory: Batches of the memory buffer, or None for a method that may not see old data.
    """

    def __init__(self, trainer: Any, params: Parameters, memory: MemoryBatches | None) -> None:
        self.trainer = trainer
        self.params = params
        self.memory = memory
        self.step = 0
        self.total_steps = 0
        self.lr = 0.0
        self.base_lr = float(trainer.args.learning_rate)
        self.replayed = 0
        self.extra_passes = 0
        self.events: list[dict[str, Any]] = []
        self.measured: dict[str, list[float]] = {}
        self._own: torch.optim.Optimizer | None = None

    @property
    def memory_size(self) -> int:
        """Examples in the memory buffer."""
        return len(self.memory.encoded) if self.memory else 0

    @property
    def memory_batches(self) -> int:
        """Batches in one pass over the memory buffer."""
        return self.memory.per_pass if self.memory else 0

    def memory_step(
        self,
        *,
        lr: float | None = None,
        optimizer: Literal["shared", "own"] = "shared",
        before: Callable[[Parameters], None] | None = None,
    ) -> None:
        """See `StepContext.memory_step`.

        Raises:
            RunError: The memory is empty, or `own` was asked for under fp16, whose scaling it would miss.
        """
        if self.memory is None or not self.memory.encoded:
            raise RunError("a memory step was asked for, but the method has no memory to step on.")
        batch = self.memory.next()
        with torch.enable_grad():
            self._backward(batch)
        accelerator, limit = self.trainer.accelerator, self.trainer.args.max_grad_norm
        if limit and limit > 0:
            accelerator.clip_grad_norm_(self.params.tensors, limit)
        if before is not None:
            before(self.params)
        stepper = self.trainer.optimizer if optimizer == "shared" else self._own_optimizer()
        with _at_rate(stepper, self.lr if lr is None else lr):
            stepper.step()
        stepper.zero_grad()
        self.replayed += len(batch)
        self.extra_passes += 1

    def _backward(self, batch: list[Encoded]) -> None:
        """Accumulate the gradient of one global batch, reduced over processes."""
        trainer = self.trainer
        accelerator, model = trainer.accelerator, trainer.model_wrapped
        size = trainer.args.per_device_train_batch_size
        # the count is that of the global batch, known to every process without asking the others
        items = torch.tensor(sum(len(e.target_ids) for e in batch), device=trainer.args.device)
        mine = batch[accelerator.process_index :: accelerator.num_processes]
        most = -(-len(batch) // accelerator.num_processes)
        starts = range(0, most, size)
        model.train()
        for start in starts:
            part = mine[start : start + size]
            inputs = trainer._prepare_inputs(trainer.data_collator(part or batch[:1]))
            if not part:
                # every process must run as many passes; one without examples contributes nothing
                inputs["labels"] = torch.full_like(inputs["labels"], -100)
            last = start + size >= most
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(model, inputs, num_items_in_batch=items)
                accelerator.backward(loss)

    def _own_optimizer(self) -> torch.optim.Optimizer:
        if self._own is None:
            args = self.trainer.args
            if getattr(self.trainer.accelerator, "scaler", None) is not None:
                raise RunError(
                    "memory steps with an optimizer of their own do not work under fp16; use bf16 or fp32."
                )
            self._own = torch.optim.AdamW(
                self.params.tensors,
                lr=args.learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                weight_decay=args.weight_decay,
            )
        return self._own

    def reset_moments(self) -> None:
        """Forget the moments of the task's optimizer and of the memory steps' own; both start them anew."""
        inner = getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)
        inner.state.clear()
        if self._own is not None:
            self._own.state.clear()

    def log(self, **values: float) -> None:
        """Append to the Trainer's log history, which reaches its integrations and kifuse's record."""
        self.trainer.log(dict(values))

    def event(self, kind: str, **values: Any) -> None:
        """Keep an entry for the run's record."""
        self.events.append({"kind": kind, "step": self.step, **values})

    def measure(self, **series: torch.Tensor) -> None:
        """Keep one number per trainable tensor for the run's record."""
        for name, values in series.items():
            if tuple(values.shape) != (len(self.params.names),):
                raise ValueError(
                    f"{name}: found shape {tuple(values.shape)}, expected ({len(self.params.names)},)."
                )
            self.measured[name] = [float(v) for v in values.detach().float().cpu()]


@contextlib.contextmanager
def _at_rate(optimizer: Any, lr: float) -> Iterator[None]:
    """Run one step at another learning rate, then give the schedule its own back."""
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = lr
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = value
