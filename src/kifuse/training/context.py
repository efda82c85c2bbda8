"""What a method may do after a step, on top of a live Trainer: memory steps, moments, logging."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kifuse.errors import RunError
from kifuse.methods.base import MethodState, Parameters, TaskInfo
from kifuse.tasks.encoding import Encoded
from kifuse.training.batch_gradients import BatchGradients, TrainerBatch
from kifuse.training.batches import MemoryBatches
from kifuse.training.guard import Guard, drop_gradients
from kifuse.training.moments import forget_moments, load_moments, moments
from kifuse.training.probes import Probes
from kifuse.training.shards import Shards

IGNORED = -100


class TrainerContext:
    """Implements `kifuse.methods.context.Context` for a Trainer that is training.

    Args:
        trainer: The Trainer; its optimizer, accelerator, collator and loss are used, so that memory steps are
            right under accumulation, mixed precision and several processes.
        shards: The trainable parameters.
        memory: Batches of the memory buffer, or None for a method that may not see old data.
        task: Where in the stream training stands.
        guard: Judges the memory steps; None for one of its own.
        collate: Makes a batch of memory examples; None for the Trainer's own collator.
        examples: The current task's training examples, for a method that looks at single ones of them.
    """

    def __init__(
        self,
        trainer: Any,
        shards: Shards,
        memory: MemoryBatches | None,
        *,
        task: TaskInfo,
        guard: Guard | None = None,
        collate: Callable[[Any], Any] | None = None,
        examples: Sequence[Any] | None = None,
    ) -> None:
        self.trainer = trainer
        self.shards = shards
        self.params = shards.params
        self.memory = memory
        self.guard = Guard() if guard is None else guard
        self.collate = trainer.data_collator if collate is None else collate
        self.examples = examples
        self.step = 0
        self.task = task
        self.found: dict[str, Any] = {}
        """By need: what it has found in this step."""
        self.lr = 0.0
        self.base_lr = float(trainer.args.learning_rate)
        self.replayed = 0
        self.extra_passes = 0
        self.events: list[dict[str, Any]] = []
        self.measured: dict[str, list[float]] = {}
        self.heard: Callable[[dict[str, Any]], None] = lambda _: None
        self.logs_reach_integrations = True
        self.batch_gradients = BatchGradients(self)
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
        """See `Context.memory_step`.

        A step whose loss or gradient is not finite moves nothing, and `before` is not called; see
        `kifuse.training.guard`.

        Raises:
            RunError: The memory is empty, or too many steps in a row were not finite.
        """
        if self.memory is None or not self.memory.encoded:
            raise RunError("a memory step was asked for, but the method has no memory to step on.")
        batch = self.memory.next()
        with self.shards.apart() as own:
            self._step_on(batch, own, self.lr if lr is None else lr, optimizer, before)
        self.replayed += len(batch)
        self.extra_passes += 1

    def _step_on(
        self,
        batch: Sequence[Any],
        own: Parameters,
        lr: float,
        optimizer: Literal["shared", "own"],
        before: Callable[[Parameters], None] | None,
    ) -> None:
        """One step of the model's own tensors on a global batch."""
        with torch.enable_grad():
            losses = self._backward(batch)
        _, largest = self.guard.take(own)
        accelerator, limit = self.trainer.accelerator, self.trainer.args.max_grad_norm
        scaler = getattr(accelerator, "scaler", None)
        if limit and limit > 0:
            accelerator.clip_grad_norm_(own.tensors, limit)
        elif scaler is not None:
            # clips nothing, but takes the scale off the gradients
            accelerator.clip_grad_norm_(own.tensors, math.inf)
        stepper = self.trainer.optimizer if optimizer == "shared" else self._own_optimizer()
        if self.guard.healthy(self, "memory", self.step, losses, largest):
            if before is not None:
                with self.shards.whole() as params:
                    before(params)
            with _at_rate(stepper, lr):
                stepper.step()
        elif scaler is not None and optimizer == "shared":
            drop_gradients(stepper)
            stepper.step()
        if scaler is not None and optimizer == "own":
            # the scale belongs to the shared optimizer, which took no step to bring it up to date
            scaler.update()
        stepper.zero_grad()

    def _backward(self, batch: Sequence[Any]) -> list[Tensor]:
        """Accumulate the gradient of one global batch, reduced over processes; the loss of each part."""
        trainer = self.trainer
        accelerator, model = trainer.accelerator, trainer.model_wrapped
        inputs = self.parts(batch)
        items = self._items(batch, inputs)
        own = getattr(trainer, "current_gradient_accumulation_steps", 1)
        # a loss that is a mean over its part is divided by this
        trainer.current_gradient_accumulation_steps = len(inputs)
        losses = []
        for place, part in enumerate(inputs):
            last = place == len(inputs) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
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
            # every process must run as many passes; one without examples contributes nothing
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
            self._own = torch.optim.AdamW(
                self.shards.own.tensors,
                lr=args.learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                weight_decay=args.weight_decay,
            )
        return self._own

    def step_batch(self) -> TrainerBatch:
        """See `Context.step_batch`."""
        return self.batch_gradients.step_batch()

    def draw_memory(self) -> TrainerBatch:
        """See `Context.draw_memory`."""
        return self.batch_gradients.draw_memory()

    def gradient(self, batch: Any, **how: Any) -> list[Tensor]:
        """See `Context.gradient`."""
        return self.batch_gradients.gradient(batch, **how)

    def batch_loss(self, batch: Any, *, at: Sequence[Tensor], noise: int = 0) -> Tensor:
        """See `Context.batch_loss`."""
        return self.batch_gradients.batch_loss(batch, at=at, noise=noise)

    def memory_loss(self, *, train: bool) -> float:
        """See `Context.memory_loss`."""
        return self.batch_gradients.memory_loss(train=train)

    def clip(self) -> None:
        """See `Context.clip`."""
        self.batch_gradients.clip()

    @property
    def squares(self) -> list[Tensor]:
        """See `Context.squares`."""
        return self._seen("squares")

    @property
    def magnitudes(self) -> list[Tensor | None]:
        """See `Context.magnitudes`."""
        return self._seen("magnitudes")

    def begin_gradients(self, found: dict[str, Any]) -> None:
        """Called before `on_gradients`, with what the services have found in the step, by need."""
        self.found = found
        self.batch_gradients.begin_step(found.get("batch"))

    def end_gradients(self) -> None:
        """Called after `on_gradients`."""
        self.batch_gradients.end_step()

    def _seen(self, need: str) -> Any:
        if need not in self.found:
            raise RunError(
                f"{need} of the step are known in on_gradients and on_update only, for a method that needs "
                f"{need!r}."
            )
        return self.found[need]

    def reset_moments(self) -> None:
        """Forget the moments of the task's optimizer and of the memory steps' own; both start them anew."""
        for optimizer in (self.trainer.optimizer, self._own):
            if optimizer is not None:
                forget_moments(optimizer)

    def squared_gradients(self, count: int | None = None) -> list[Tensor]:
        """See `Context.squared_gradients` and `kifuse.training.probes`."""
        return self._probes(count).squared_gradients(count)

    def logit_gradients(self, count: int | None = None) -> Iterator[Tensor]:
        """See `Context.logit_gradients` and `kifuse.training.probes`."""
        return self._probes(count).logit_gradients(count)

    def _probes(self, count: int | None) -> Probes:
        if self.examples is None:
            raise RunError("the method looks at single examples of the task, but was given none.")
        probes = Probes(self.trainer, self.params, self.examples, self.collate)
        args = self.trainer.args
        together = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        # counted as the batches of a step, whatever they are split into
        self.extra_passes += -(-len(probes.chosen(count)) // together)
        return probes

    @property
    def logging(self) -> bool:
        """Whether the Trainer writes its own log line after this step, and so reads from the device."""
        return bool(self.trainer.control.should_log)

    def log(self, **values: float) -> None:
        """Append to the Trainer's log history, which reaches its integrations and kifuse's listener."""
        if not self.logs_reach_integrations:
            self.trainer.state.log_history.append({**values, "step": self.trainer.state.global_step})
            return
        control = self.trainer.control
        wanted = control.should_log
        self.trainer.log(dict(values))
        # logging takes the Trainer's own wish to log this step back
        control.should_log = wanted

    def event(self, kind: str, **values: Any) -> None:
        """Keep an entry for the run's record."""
        self.events.append({"kind": kind, "step": self.step, **values})
        self.heard(self.events[-1])

    def measure(self, **series: torch.Tensor) -> None:
        """Keep one number per trainable tensor for the run's record."""
        for name, values in series.items():
            if tuple(values.shape) != (len(self.params.names),):
                raise ValueError(
                    f"{name}: found shape {tuple(values.shape)}, expected ({len(self.params.names)},)."
                )
            self.measured[name] = [float(v) for v in values.detach().float().cpu()]

    def state(self) -> MethodState:
        """What training needs to go on in the middle of a task, beside model, optimizer and method.

        Returns:
            The place in the memory, the moments of the memory steps' own optimizer, counts and records.
        """
        tensors = {} if self._own is None else moments(self._own, self.shards.own.pairs)
        values: dict[str, Any] = {
            "step": self.step,
            "lr": self.lr,
            "replayed": self.replayed,
            "extra_passes": self.extra_passes,
            "events": self.events,
            "measured": self.measured,
            "drawn": self.memory.drawn if self.memory else 0,
            "own_optimizer": self._own is not None,
            "guard": self.guard.state(),
            "passes": self.batch_gradients.state(),
            "frozen": sums_of(self.params.past),
        }
        return MethodState(tensors, values)

    def load_state(self, state: MethodState) -> None:
        """Take back what `state` gave.

        Raises:
            ValueError: What is frozen beside the trained tensors is not what it was.
        """
        values = state.values
        if values.get("frozen", []) != sums_of(self.params.past):
            raise ValueError(
                "what is frozen beside the trained tensors is not what the task began with: another machine, "
                "number of threads or release of torch decomposes matrices otherwise in the last bits, or "
                "the state is of an earlier kifuse. Go on where the task began, or begin it anew: of a run, "
                "remove the folder 'checkpoint' in it."
            )
        self.step, self.lr = values["step"], values["lr"]
        self.replayed, self.extra_passes = values["replayed"], values["extra_passes"]
        self.events, self.measured = list(values["events"]), dict(values["measured"])
        if self.memory:
            self.memory.drawn = values["drawn"]
        self.guard.load_state(values["guard"])
        self.batch_gradients.load_state(values["passes"])
        if values["own_optimizer"]:
            load_moments(self._own_optimizer(), self.shards.own.pairs, state.tensors)


def sums_of(tensors: Mapping[str, Tensor]) -> list[float]:
    """A sum of each tensor: one that differs in the last bit has another sum."""
    sums = [tensor.sum(dtype=torch.float64) for tensor in tensors.values()]
    return torch.stack(sums).tolist() if sums else []


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
