"""A `Method` as a `TrainerCallback`: each hook is one Trainer event."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback

from kifuse.adapters.base import Adapter, adapter_on
from kifuse.driving.batches import MemoryBatches
from kifuse.driving.context import TrainerContext
from kifuse.driving.finite_guard import MAX_BAD_STEPS, Guard, largest_gradients
from kifuse.driving.layer_watch import LayerWatch
from kifuse.driving.learning_rates import rate_of, ratios_of
from kifuse.driving.method_loss import MethodLoss
from kifuse.driving.refusals import (
    refuse,
    refuse_other_precision,
    refuse_packed,
    refuse_parameters,
    refuse_shards,
)
from kifuse.driving.sampled_batches import OnPolicy
from kifuse.driving.services import Service, open_services
from kifuse.driving.shards import Shards
from kifuse.driving.state_folder import copied
from kifuse.driving.taps import Taps
from kifuse.driving.zero import shards_of
from kifuse.errors import RunError
from kifuse.methods.base import Method, MethodState, TaskInfo
from kifuse.models.names import for_state


class MethodCallback(TrainerCallback):
    """Drives a method through one task's training.

    Args:
        method: The method.
        index: 0-based position of the task in the stream.
        name: The task's name.
        memory: Batches of the memory buffer, for methods that take memory steps.
        max_bad_steps: Training stops at this many steps in a row whose loss or gradient is not finite.
        examples: The task's own training examples, for methods that look at single examples.
        kept: Those of the examples that the memory will keep, for methods that ask for them.

    Call `attach(trainer)` after the Trainer is made and before `trainer.train()`.
    """

    def __init__(
        self,
        method: Method,
        *,
        index: int,
        name: str,
        memory: MemoryBatches | None = None,
        max_bad_steps: int = MAX_BAD_STEPS,
        examples: Sequence[Any] | None = None,
        kept: Sequence[Any] | None = None,
    ) -> None:
        self.method = method
        self.index = index
        self.name = name
        self.memory = memory
        self.examples = examples
        self.kept = kept
        self.trainer: Any = None
        self.context: TrainerContext | None = None
        self.task: TaskInfo | None = None
        self.losses: list[tuple[int, float]] = []
        self.rates: list[tuple[int, float]] = []
        self.resume: tuple[MethodState, MethodState] | None = None
        """State of the method and of the training to go on from in the middle of the task."""
        self.heard: Callable[[dict[str, Any]], None] = lambda _: None
        """Called with each entry that the method adds to the record."""
        self.tokenizer: Any = None
        """The model's tokenizer, if the Trainer does not have it."""
        self.ends: Sequence[Sequence[int]] = ()
        """Token ids of further markers that end an answer, beside the end tokens of model and tokenizer."""
        self.guard = Guard(max_bad_steps)
        self._healthy = True
        self._taps: Taps | None = None
        self._services: dict[str, Service] = {}

    def attach(self, trainer: Any) -> None:
        """Give the callback its Trainer, and refuse set-ups in which methods cannot work.

        Raises:
            RunError: The set-up is one of `kifuse.driving.refusals.REFUSED`.
        """
        refuse(trainer)
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin the task; this may be called again when the Trainer restarts its loop."""
        if self.trainer is None:
            raise RunError(
                "the method's callback was not attached: call callback.attach(trainer) before train()."
            )
        refuse_other_precision(self.trainer, model)
        refuse_packed(self.method, model)
        adapter = adapter_on(model)
        shards = shards_of(self.trainer, for_state(model), adapter.frozen() if adapter else None)
        params = shards.params
        if shards.cut:
            refuse_shards(self.method)
        refuse_parameters(self.method, params)
        self._release()
        taps = self._taps = Taps(self.trainer)
        shards.listen(taps)
        self.guard.watch(taps, shards.own)
        self._show_batches(taps)
        self._services = open_services(self.method.needs, taps, model, params, shards.own)
        self.task = TaskInfo(self.index, self.name, state.max_steps, self._batch_size(args))
        self.context = self._new_context(shards, self.task)
        self.context.heard = self.heard
        self.context.method_loss = MethodLoss(taps, self.method, self.context)
        if isinstance(layers := self._services.get("layers"), LayerWatch):
            self.context.layers = layers
        self.context.on_policy = OnPolicy(self.trainer, self.ends, self.tokenizer)
        if "answers" in self.method.needs:
            self.context.on_policy.check()
        if "before task" in self.method.needs:
            self.context.before = params.clone()
        self._begin(self.context)

    def _show_batches(self, taps: Taps) -> None:
        """Show each batch to an adapter that depends on the input."""
        adapter = adapter_on(self.trainer.model)
        if adapter is not None and type(adapter).before_batch is not Adapter.before_batch:
            taps.compute_loss(partial(_shown_to, adapter))

    def _batch_size(self, args: Any) -> int:
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def _new_context(self, shards: Shards, task: TaskInfo) -> TrainerContext:
        return TrainerContext(
            self.trainer,
            shards,
            self.memory,
            task=task,
            method=self.method,
            guard=self.guard,
            **self._examples(),
        )

    def _examples(self) -> dict[str, Any]:
        """Where a context's single examples come from."""
        return {"examples": self.examples, "kept": self.kept}

    def _begin(self, context: TrainerContext) -> None:
        with context.shards.whole() as params:
            if self.resume is None:
                self.method.take_up(params)
                self.method.begin_task(context)
                return
            (method, training), self.resume = self.resume, None
            weights = params.clone()
            try:
                self.method.load_state(copied(method, params.tensors[0].device))
                self.method.take_up(params)
                self.method.begin_task(context)
                # the weights as they were saved, whatever beginning the task has changed
                params.assign(weights)
                self.method.go_on(method, params)
                context.load_state(training)
            except ValueError as error:
                raise RunError(f"task {context.task.name!r}, in its middle: {error}") from error

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clear what memory steps left in the services."""
        self._clear_services()
        self.running().step_log.begin_step()

    def _clear_services(self) -> None:
        for service in self._services.values():
            service.clear()

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Show the method the reduced, unscaled, clipped gradients; a step that is not finite ends here."""
        context = self.running()
        # the rate is read here: after the step a schedule has already moved on
        context.lr, context.ratios = rate_of(optimizer), ratios_of(optimizer)
        seen = self.guard.take(context.shards.own)
        in_a_row = self.guard.in_a_row["task"]
        self._healthy = self.guard.healthy(context, "task", state.global_step + 1, *seen)
        if self._healthy:
            with context.shards.whole():
                context.begin_gradients({need: each.take() for need, each in self._services.items()})
                self.method.on_gradients(context)
                context.end_gradients()
            if "batch" in self._services:
                # judged once more, by the gradients that the method has put there
                self.guard.in_a_row["task"] = in_a_row
                seen = (seen[0], largest_gradients(context.params))
                self._healthy = self.guard.healthy(context, "task", state.global_step + 1, *seen)
        if not self._healthy:
            context.shards.skip(optimizer)
            return
        self.guard.taken += 1

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Let the method see the weights after the optimizer's step, unless the step was not finite."""
        # a fused optimizer skips an fp16 overflow by itself and says nothing
        if self._healthy and not getattr(optimizer, "step_was_skipped", False):
            with self.running().shards.whole():
                self.method.on_update(self.running())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the step, when the gradients are gone and the schedule has moved on."""
        context = self.running()
        context.step = state.global_step
        context.step_log.end_step()
        context.found = {}
        self._clear_services()
        context.shards.end_step()
        with context.shards.whole():
            self.method.on_step(context)
        if not self._healthy:
            context.log(skipped_steps=self.guard.bad["task"])

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Keep the loss and the learning rate for the record."""
        for key, kept in (("loss", self.losses), ("learning_rate", self.rates)):
            if logs and math.isfinite(logs.get(key, math.nan)):
                kept.append((state.global_step, float(logs[key])))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the task."""
        context = self.running()
        self._release()
        if self.task is None:
            return
        # memory steps after the last step use the method's loss as well
        taps = self._taps = Taps(self.trainer)
        context.shards.listen(taps)
        self._show_batches(taps)
        context.method_loss = MethodLoss(taps, self.method, context)
        with torch.enable_grad(), context.shards.whole():
            self.method.end_task(context)
        context.shards.settle()
        self._release()
        self.method.forget_task()
        self.guard.note(context)

    def _release(self) -> None:
        """Take the hooks off the model and the Trainer."""
        if self._taps is not None:
            self._taps.release()
            self._taps = None
        self.guard.clear()
        for service in self._services.values():
            service.remove()
        self._services = {}

    def running(self) -> TrainerContext:
        """The context of the training that is under way.

        Raises:
            RunError: No training is under way.
        """
        if self.context is None:
            raise RunError("the method's callback saw a step before on_train_begin.")
        return self.context


def _shown_to(adapter: Adapter, compute_loss: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute a batch's loss after the adapter has seen the batch: the loss may take the labels out of it."""
    adapter.before_batch(inputs)
    return compute_loss(model, inputs, *args, **kwargs)
