"""What a method may do after a step, on top of a live Trainer: memory steps, moments, logging."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from kifuse.adapters.base import Adapter, adapter_on
from kifuse.driving.batch_gradients import BatchGradients
from kifuse.driving.batches import MemoryBatches
from kifuse.driving.example_gradients import Probes, drawn
from kifuse.driving.finite_guard import Guard
from kifuse.driving.layer_watch import LayerWatch, Watch
from kifuse.driving.learning_rates import first_rate, rate_of
from kifuse.driving.memory_steps import MemorySteps
from kifuse.driving.method_loss import (
    MethodLoss,
    key_of,
    row_keys,
    stored_with,
    target_places,
    targets_of,
    tensors_in,
    token_labels,
)
from kifuse.driving.optimizer_moments import forget_moments, load_moments, moments
from kifuse.driving.sampled_batches import OnPolicy
from kifuse.driving.shards import Shards
from kifuse.driving.step_log import StepLog
from kifuse.driving.trainer_batch import TrainerBatch
from kifuse.errors import RunError
from kifuse.methods.base import Method
from kifuse.methods.context import TaskInfo, Weights
from kifuse.methods.kept import MethodState
from kifuse.methods.layer_sums import LayerFunction
from kifuse.methods.sampled import Sampling
from kifuse.models.heads import is_aligned


class TrainerContext(MemorySteps):
    """Implements `kifuse.methods.context.Context` for a Trainer that is training.

    Args:
        trainer: The Trainer; its optimizer, accelerator, collator and loss are used, so that memory steps are
            right under accumulation, mixed precision and several processes.
        shards: The trainable parameters.
        memory: Batches of the memory buffer, or None for a method that may not see old data.
        task: The task that is trained, and its place in the stream.
        method: The method, which keeps what is stored with examples; a plain one if it is not given.
        guard: Judges the memory steps; None for a new one.
        collate: Makes a batch of memory examples; None for the Trainer's own collator.
        examples: The current task's training examples, for a method that looks at single examples.
        kept: Those of the examples that the memory will keep, for a method that asks for them.
    """

    def __init__(
        self,
        trainer: Any,
        shards: Shards,
        memory: MemoryBatches | None,
        *,
        task: TaskInfo,
        method: Method | None = None,
        guard: Guard | None = None,
        collate: Callable[[Any], Any] | None = None,
        examples: Sequence[Any] | None = None,
        kept: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(trainer, shards, memory, guard=guard, collate=collate)
        self.examples = examples
        self.task = task
        self.method = Method() if method is None else method
        self.kept = kept
        self.method_loss: MethodLoss | None = None
        self.before: list[Tensor] | None = None
        """The parameters before the task, for a method that needs `before task`."""
        self.found: dict[str, Any] = {}
        """What the services have found in this step, by need."""
        self.layers: LayerWatch | None = None
        """The layers that can be watched, for a method that needs `layers`."""
        self.base_lr = first_rate(trainer.optimizer, float(trainer.args.learning_rate))
        self.events: list[dict[str, Any]] = []
        self.measured: dict[str, list[float]] = {}
        self.heard: Callable[[dict[str, Any]], None] = lambda _: None
        self.step_log = StepLog(trainer)
        self.batch_gradients = BatchGradients(self)
        self.on_policy = OnPolicy(trainer)

    @property
    def adapter(self) -> Adapter:
        """See `Context.adapter`.

        Raises:
            RunError: The adapter is the caller's own.
        """
        found = adapter_on(self.trainer.model)
        if found is None:
            raise RunError("the model's adapter was not put on it by kifuse.")
        return found

    @property
    def next_lr(self) -> float:
        """See `Context.next_lr`."""
        return rate_of(self.trainer.optimizer)

    @property
    def memory_size(self) -> int:
        """Examples in the memory buffer."""
        return len(self.memory.encoded) if self.memory else 0

    @property
    def memory_batches(self) -> int:
        """Batches in one pass over the memory buffer."""
        return self.memory.per_pass if self.memory else 0

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

    def watch(self, function: LayerFunction) -> Watch:
        """See `Context.watch`."""
        if self.layers is None:
            raise RunError("layers can be watched by a method that needs 'layers' only.")
        return self.layers.watch(function)

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

    @property
    def target_loss(self) -> Tensor:
        """See `Context.target_loss`."""
        return self._method_loss().of_targets

    def mean_over_targets(self, values: Tensor) -> Tensor:
        """See `Context.mean_over_targets`."""
        return self._method_loss().mean(values)

    def _method_loss(self) -> MethodLoss:
        if self.method_loss is None:
            raise RunError("the loss of a batch is known in Method.loss only.")
        return self.method_loss

    def forward(self, batch: Any, *, at: Weights | Sequence[Tensor] = "now") -> Any:
        """See `Context.forward`.

        Raises:
            RunError: The weights before the task were not kept, or the model has no adapter to leave out.
        """
        if at == "before task":
            if self.before is None:
                raise RunError(
                    "the weights before the task are kept for a method that needs 'before task' only."
                )
            at = self.before
        with contextlib.nullcontext() if self.layers is None else self.layers.read(batch.only_part):
            return self.batch_gradients.forward(batch, at=at)

    def train_forward(self, batch: Any) -> Any:
        """See `Context.train_forward`."""
        return self.batch_gradients.train_forward(batch)

    def sampled(self, batch: Any, sampling: Sampling, most: int) -> TrainerBatch:
        """See `Context.sampled`."""
        # the number of replayed examples makes the draws of several memory steps differ
        return self.on_policy.sampled(batch, sampling, most, f"{self.step}:{self.replayed}")

    def asked_otherwise(self, batch: Any, prompts: Sequence[Sequence[int]]) -> TrainerBatch:
        """See `Context.asked_otherwise`."""
        return self.on_policy.asked_otherwise(batch, prompts)

    def keys(self, batch: Any) -> list[str]:
        """See `Context.keys`."""
        return row_keys(batch.only_part)

    def targets(self, batch: Any, outputs: Any) -> list[tuple[Tensor, Tensor]]:
        """See `Context.targets`."""
        return targets_of(batch.only_part, outputs, aligned=is_aligned(self.trainer.model))

    def target_counts(self, batch: Any) -> Tensor:
        """See `Context.target_counts`."""
        return target_places(token_labels(batch.only_part), aligned=is_aligned(self.trainer.model)).sum(dim=1)

    def kept_examples(self) -> Iterator[TrainerBatch]:
        """See `Context.kept_examples`.

        Raises:
            RunError: They are not known.
        """
        if self.kept is None or "kept" not in self.method.needs:
            raise RunError("to read the examples that will be kept, a method names 'kept' in its `needs`.")
        for example in self.kept:
            inputs = self.trainer._prepare_inputs(self.collate([example]))
            yield TrainerBatch((inputs,), passes=Fraction(1, self.task.batch_size))

    def store(self, example: Any, tensors: Mapping[str, Tensor]) -> None:
        """See `Context.store`."""
        (key,) = row_keys(example.only_part)
        kept = {f"{key}.{name}": tensor.detach() for name, tensor in tensors_in(tensors).items()}
        self.method.stored_tensors = {**(self.method.stored_tensors or {}), **kept}

    def stored(self, batch: Any) -> list[dict[str, Tensor] | None]:
        """See `Context.stored`."""
        return stored_with(self.method.stored_tensors, row_keys(batch.only_part))

    def notes(self, batch: Any) -> list[str]:
        """See `Context.notes`."""
        return [self.method.noted.rows.get(key, "") for key in row_keys(batch.only_part)]

    @property
    def step_targets(self) -> Mapping[str, float]:
        """See `Context.step_targets`."""
        return self.method.noted.targets

    def reset_moments(self) -> None:
        """Reset the moments of the task's optimizer and of the memory steps' own optimizer."""
        for optimizer in (self.trainer.optimizer, self._own):
            if optimizer is not None:
                forget_moments(optimizer)

    def squared_gradients(self, count: int | None = None) -> list[Tensor]:
        """See `Context.squared_gradients` and `kifuse.driving.example_gradients`."""
        return self._probes(count).squared_gradients(count)

    def logit_gradients(self, count: int | None = None) -> Iterator[Tensor]:
        """See `Context.logit_gradients` and `kifuse.driving.example_gradients`."""
        return self._probes(count).logit_gradients(count)

    def task_examples(self, count: int | None = None) -> Iterator[TrainerBatch]:
        """See `Context.task_examples`."""
        examples = self._own_examples()
        return self._in_batches(examples, drawn(len(examples), count, self.trainer.args.seed))

    def memory_examples(self) -> Iterator[tuple[str, TrainerBatch]]:
        """See `Context.memory_examples`."""
        rows: Sequence[Any] = self.memory.encoded if self.memory else ()
        names = self.memory.tasks if self.memory else ()
        names = names or [self._task_of(row) for row in rows]
        for name in dict.fromkeys(names):
            places = [place for place, each in enumerate(names) if each == name]
            self.replayed += len(places)
            yield from ((name, batch) for batch in self._in_batches(rows, places))

    def _task_of(self, row: Any) -> str:
        """The task of a memory example in kifuse's own runs; empty if it is not known."""
        encoder_decoder = bool(getattr(self.trainer.model.config, "is_encoder_decoder", False))
        return self.method.noted.rows.get(key_of(row, encoder_decoder=encoder_decoder), "")

    def _in_batches(self, examples: Sequence[Any], places: Sequence[int]) -> Iterator[TrainerBatch]:
        """Collate examples, given by number, in batches of a step's size, the same on all processes."""
        size = self.task.batch_size
        for start in range(0, len(places), size):
            rows = [examples[place] for place in places[start : start + size]]
            inputs = self.trainer._prepare_inputs(self.collate(rows))
            yield TrainerBatch((inputs,), passes=Fraction(len(rows), size))

    def _own_examples(self) -> Sequence[Any]:
        if self.examples is None:
            raise RunError("the method looks at single examples of the task, but got none.")
        return self.examples

    def _probes(self, count: int | None) -> Probes:
        probes = Probes(self.trainer, self.shards, self._own_examples(), self.collate)
        # counted as the batches of a step, whatever they are split into
        self.extra_passes += -(-len(probes.chosen(count)) // self.task.batch_size)
        return probes

    @property
    def logging(self) -> bool:
        """See `Context.logging`."""
        return self.step_log.due

    def log(self, **values: float) -> None:
        """See `Context.log`."""
        self.step_log.write(values)

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
        tensors = {} if self._own is None else moments(self._own, self.shards.moved.pairs)
        if self.before is not None:
            named = zip(self.params.names, self.before, strict=True)
            tensors |= {f"before {name}": tensor for name, tensor in named}
        values: dict[str, Any] = {
            "step": self.step,
            "lr": self.lr,
            "ratios": self.ratios,
            "replayed": self.replayed,
            "extra_passes": self.extra_passes,
            "events": self.events,
            "measured": self.measured,
            "drawn": self.memory.drawn if self.memory else 0,
            "own_optimizer": self._own is not None,
            "guard": self.guard.state(),
            "passes": self.batch_gradients.state(),
            "frozen": sums_of(self.params.frozen),
        }
        return MethodState(tensors, values)

    def load_state(self, state: MethodState) -> None:
        """Restore what `state` gave.

        Raises:
            ValueError: The frozen tensors beside the trained ones are not what they were.
        """
        values = state.values
        if values.get("frozen", []) != sums_of(self.params.frozen):
            raise ValueError(
                "the frozen tensors are not those that the task began with. Another machine, number of "
                "threads or release of torch decomposes matrices with other last bits, or the state is of "
                "an earlier kifuse. Continue where the task began, or start the task again: in a run, "
                "remove its folder 'checkpoint'."
            )
        self.step, self.lr, self.ratios = values["step"], values["lr"], values.get("ratios")
        self.replayed, self.extra_passes = values["replayed"], values["extra_passes"]
        self.events, self.measured = list(values["events"]), dict(values["measured"])
        if self.memory:
            self.memory.drawn = values["drawn"]
        self.guard.load_state(values["guard"])
        self.batch_gradients.load_state(values["passes"])
        tensors = dict(state.tensors)
        if self.before is not None:
            self.before = [tensors.pop(f"before {name}").to(p.device) for name, p in self.params.pairs]
        if values["own_optimizer"]:
            load_moments(self._own_optimizer(), self.shards.moved.pairs, tensors)


def sums_of(tensors: Mapping[str, Tensor]) -> list[float]:
    """The sum of each tensor, by which a difference in the last bits is noticed."""
    sums = [tensor.sum(dtype=torch.float64) for tensor in tensors.values()]
    return torch.stack(sums).tolist() if sums else []
