"""A `Method` as a `TrainerCallback`: each hook is one Trainer event."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from kifuse.errors import RunError
from kifuse.methods.base import Method, Parameters, TaskInfo
from kifuse.training.batches import MemoryBatches
from kifuse.training.context import TrainerContext


class MethodCallback(TrainerCallback):
    """Drives a method through one task's training.

    Args:
        method: The method.
        index: 0-based position of the task in the stream.
        name: The task's name.
        memory: Batches of the memory buffer, for methods that take memory steps.

    Call `attach(trainer)` after the Trainer is made and before `trainer.train()`.
    """

    def __init__(self, method: Method, *, index: int, name: str, memory: MemoryBatches | None = None) -> None:
        self.method = method
        self.index = index
        self.name = name
        self.memory = memory
        self.trainer: Any = None
        self.context: TrainerContext | None = None
        self.task: TaskInfo | None = None
        self.losses: list[tuple[int, float]] = []

    def attach(self, trainer: Any) -> None:
        """Give the callback its Trainer, and refuse set-ups in which methods cannot work.

        Raises:
            RunError: The set-up steps the optimizer inside the backward pass, or changes weights behind the
                method's back.
        """
        args = trainer.args
        if getattr(args, "deepspeed", None):
            raise RunError(
                "deepspeed: its engine steps inside the backward pass, before a method can see the "
                "gradients; use plain data parallelism (torchrun, accelerate launch) instead."
            )
        if args.load_best_model_at_end:
            raise RunError(
                "load_best_model_at_end: it would replace the weights without the method's state; "
                "turn it off."
            )
        if args.n_gpu > 1:
            raise RunError(
                f"{args.n_gpu} GPUs in one process (DataParallel) split batches inside the model; start one "
                "process per GPU with torchrun or accelerate launch, or show the process one GPU "
                "(CUDA_VISIBLE_DEVICES)."
            )
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin the task; safe to be called again when the Trainer restarts its loop."""
        if self.trainer is None:
            raise RunError(
                "the method's callback was not attached: call callback.attach(trainer) before train()."
            )
        params = Parameters(model.named_parameters())
        self.context = TrainerContext(self.trainer, params, self.memory)
        self.context.total_steps = state.max_steps
        self.task = TaskInfo(self.index, self.name, state.max_steps)
        self.method.begin_task(self.task, params)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Gradients are complete, reduced, unscaled and clipped."""
        context = self._context()
        # the rate is read here: after the step a schedule has already moved on
        context.lr = float(optimizer.param_groups[0]["lr"])
        self.method.on_gradients(context.params)

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """The optimizer has moved, unless fp16 overflowed."""
        if not getattr(optimizer, "step_was_skipped", False):
            self.method.on_update(self._context().params)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The gradients are gone, the schedule has moved."""
        context = self._context()
        context.step = state.global_step
        self.method.on_step(context)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Keep the loss for the record."""
        if logs and "loss" in logs:
            self.losses.append((state.global_step, float(logs["loss"])))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the task."""
        context = self._context()
        if self.task is None:
            return
        with torch.enable_grad():
            self.method.end_task(self.task, context)

    def _context(self) -> TrainerContext:
        if self.context is None:
            raise RunError("the method's callback saw a step before on_train_begin.")
        return self.context
