"""What a continual learning method sees and may do.

A method sees complete gradients before a step and the weights after it, and may change both. It never sees
the training engine: the same object runs in kifuse's own runner and in anybody's `Trainer`.

| hook | when | may |
| --- | --- | --- |
| `begin_task` | before training of a task | copy weights, prepare statistics |
| `continue_task` | instead, when training goes on in its middle | take the statistics up again |
| `on_batch` | the same moment, for a method that needs `batch` | ask for gradients at other weights |
| `on_gradients` | gradients complete, reduced, unscaled, clipped; weights not moved yet | read, change |
| `on_update` | the optimizer has really moved | read or correct the update |
| `on_step` | after each step | take memory steps, fuse, log |
| `end_task` | after training of a task | fuse, run a replay stage |
| `state` / `load_state` | at each boundary and checkpoint | tensors and JSON |
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import ConfigDict, Field
from torch import Tensor

from kifuse.methods.parameters import Parameters
from kifuse.methods.passes import Passes
from kifuse.methods.shown import Shown

OldData = Literal["none", "mixed", "steps", "all"]
"""How a method meets earlier data: never; mixed into the current task's batches; in memory steps of its own;
or all tasks at once (joint training)."""

DataClass = Literal["replay-free", "real replay", "generated replay", "task id given", "all data"]
"""What a method is given beside the task's own data, in the words of tables and records.

Real replay keeps examples of earlier tasks, generated replay has a model write them; a method that is told
which task a test example is of may choose among adapters. All data at once is the upper bound.
"""

Need = Literal["squares", "magnitudes", "examples", "batch", "curvature"]
"""What the engine gathers for methods that ask for it, since it costs time, or not every set-up can give it.

In this order: `Parameters.squares`; `Parameters.magnitudes`; gradients of single examples at the end of a
task; `on_batch`, with gradients on the step's own batch; there, gradients of gradients too.
"""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
"""A setting from 0 to 1."""

Past = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A setting: the weight of the past in a running mean, below 1."""

Positive = Annotated[float, Field(gt=0.0)]
"""A setting above 0."""

NotNegative = Annotated[float, Field(ge=0.0)]
"""A setting of 0 or more: a strength that 0 turns off."""

SETTINGS = ConfigDict(extra="forbid", validate_default=True)
"""Pydantic configuration of every method: an unknown or ill-typed setting is an error, never ignored."""


@dataclass(frozen=True)
class TaskInfo:
    """Where in the stream training stands.

    Attributes:
        index: 0-based position of the task.
        name: Its name.
        steps: Number of optimizer steps.
        batch_size: Examples of a step, over all processes.
        examples: The task's own training examples; 0 where their number is not known.
    """

    index: int
    name: str
    steps: int
    batch_size: int = 1
    examples: int = 0

    @property
    def first(self) -> bool:
        """Whether nothing was learned before."""
        return self.index == 0


class StepContext(Protocol):
    """What the training engine offers a method after a step and at the end of a task."""

    step: int
    """Optimizer steps taken in this task."""
    total_steps: int
    lr: float
    """Learning rate of the step just taken, not of the next one, which a schedule may have brought to 0."""
    base_lr: float
    """Learning rate that the schedule starts from."""
    params: Parameters

    @property
    def memory_size(self) -> int:
        """Examples in the memory buffer, over all earlier tasks."""
        ...

    @property
    def memory_batches(self) -> int:
        """Batches in one pass over the memory buffer."""
        ...

    def memory_step(
        self,
        *,
        lr: float | None = None,
        optimizer: Literal["shared", "own"] = "shared",
        before: Callable[[Parameters], None] | None = None,
    ) -> None:
        """Forward, backward and one optimizer step on the next batch of the memory buffer.

        Args:
            lr: Learning rate of this step; None for that of the step just taken.
            optimizer: The task's own optimizer with its moments, or a second AdamW that lives as long.
            before: Called with complete gradients before the optimizer moves.
        """
        ...

    @property
    def passes(self) -> Passes:
        """Losses and gradients that move nothing, on the step's own batch and on memory batches."""
        ...

    def reset_moments(self) -> None:
        """Forget the moments of the task's optimizer and of the memory steps' own."""
        ...

    def squared_gradients(self, count: int | None = None) -> list[Tensor]:
        """The mean over examples of the current task of the squared gradient of their log-likelihood.

        F = 1/n sum_j (d log p(y_j | x_j) / d theta)^2, log p summed over the tokens of the gold target,
        dropout off. It depends neither on the batch size nor on padding; weights, gradients, modes and random
        numbers are left as they are.

        Args:
            count: Number of examples n, drawn with the run's seed; None for all of them.

        Returns:
            float32, in the shapes of the parameters; the same on all processes.
        """
        ...

    def logit_gradients(self, count: int | None = None) -> Iterator[Tensor]:
        """The gradient of the gold tokens' logits, of one example of the current task after another.

        Of each example d/d theta sum_t z_t[y_t], summed over the positions t of its target, dropout off.

        Args:
            count: Number of examples, drawn with the run's seed; None for all of them.

        Yields:
            float32 `(scalars of all parameters,)`, in the order of `params`; the same on all processes.
        """
        ...

    @property
    def logging(self) -> bool:
        """Whether a log line is due after this step: a moment to read numbers from the device for `log`."""
        ...

    def log(self, **values: float) -> None:
        """Add numbers to the training log of this step; they reach the terminal and trackers at once."""
        ...

    def event(self, kind: str, **values: Any) -> None:
        """Add an entry to the task's record: something that happened once (a fusion, a replay stage)."""
        ...

    def measure(self, **series: Tensor) -> None:
        """Add to the task's record one number for each trainable tensor, for its pictures.

        Args:
            series: By name: one value per trainable tensor, in the order of `params`; see
                `Parameters.means`. `Method.shown` says which of them have a picture.
        """
        ...


@dataclass
class MethodState:
    """What a method must remember: `tensors` (by name) and JSON-serialisable `values`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a part's state for the state of the whole: `<prefix>.<name>`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that `prefixed` named, by the names of the part."""
    return {name[len(prefix) + 1 :]: t for name, t in kept.items() if name.startswith(f"{prefix}.")}


def kept_tensors(prefix: str, names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name one tensor per parameter for a state: `<prefix>.<parameter's name>`."""
    return {f"{prefix}.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}


def kept_under(prefix: str, kept: Mapping[str, Tensor], params: Parameters) -> list[Tensor]:
    """Take what `kept_tensors` named out of a state, on the parameters' devices.

    Raises:
        ValueError: A tensor is missing or has another shape than its parameter.
    """
    found: list[Tensor] = []
    for name, p in zip(params.names, params.tensors, strict=True):
        tensor = kept.get(f"{prefix}.{name}")
        if tensor is None or tensor.shape != p.shape:
            what = "nothing" if tensor is None else f"a tensor of shape {tuple(tensor.shape)}"
            raise ValueError(
                f"the method's state holds {what} as {prefix}.{name}, expected shape {tuple(p.shape)}; "
                "training can go on in the middle of a task only with the model and state of that moment."
            )
        found.append(tensor.to(p.device))
    return found


def refuse_other_task(found: object, expected: str, *, middle: bool = True) -> None:
    """Refuse to go on with a state that is not of the middle of this task.

    Args:
        found: The task that the state names; None if it names none.
        expected: The task that training goes on with.
        middle: Whether the state holds what is gathered in the middle of a task.

    Raises:
        ValueError: It is of another task, or of no task's middle.
    """
    if not middle or found != expected:
        what = f"of task {found!r}" if middle and found is not None else "of no task's middle"
        raise ValueError(
            f"the method's state is {what}, expected the middle of task {expected!r}; "
            "training goes on only from the model and state of one moment."
        )


class Method(ABC):
    """Base of every method. Concrete methods are final, and vary by their settings."""

    version: ClassVar[int] = 1
    """Version of the method's saved state."""
    plain_first_task: ClassVar[bool] = True
    """Whether the first task is ordinary training, with nothing to remember of it but the weights."""
    stacks: ClassVar[bool] = False
    """Whether the LoRA pair trained on a task is frozen at its end and stays active, and the next task begins
    with a fresh pair, whose B is 0; see `Parameters.past`."""
    renews: ClassVar[bool] = False
    """Whether what was trained is merged into the model's weights at a task's end, and these are decomposed
    anew at the next one's start, for adapters of kind `osf`; see `preserved` and `Parameters.past`."""

    shown: ClassVar[Shown] = Shown()
    """How the page and the terminal show what the method measures and notes."""

    @property
    def old_data(self) -> OldData:
        """How the method meets data of earlier tasks; it is handed no more than this."""
        return "none"

    @property
    def data_class(self) -> DataClass:
        """What the method trains on with these settings, beside the task's own data."""
        if self.old_data == "all":
            return "all data"
        return "replay-free" if self.old_data == "none" else "real replay"

    @property
    def needs(self) -> frozenset[Need]:
        """What the engine must gather with these settings, beside gradients and weights."""
        return frozenset()

    def preserved(self, index: int, start: float) -> float:
        """For a method that `renews`: the share of each weight's singular directions that a task freezes.

        Args:
            index: 0-based position of the task.
            start: `model.adapter.preserve`.
        """
        return start

    def check(self, params: Parameters) -> None:  # noqa: B027 - optional hook
        """Called once the model is there, before anything is trained.

        Raises:
            ValueError: The method cannot work with these parameters; the message begins with the setting.
        """

    def settings(self) -> dict[str, Any]:
        """The method's settings, as they were given or defaulted."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]

    def callback(self, *, memory: Any = None, state_dir: Any = None, **settings: Any) -> Any:
        """The method as one more callback for your own `Trainer` or `SFTTrainer`.

        Args:
            memory: Rows of earlier tasks, for a method that takes memory steps; None lets the callback keep
                some of each task.
            state_dir: Folder that carries everything but the model from one script run to the next.
            settings: See `kifuse.training.standalone.StandaloneCallback`.

        Returns:
            A `transformers.TrainerCallback`.

        Raises:
            RunError: The method needs other data than a callback can give it.
        """
        # by name, as the registry does it: a method knows no engine, which is loaded for who asks for it
        engine = import_module("kifuse.training.standalone")
        return engine.StandaloneCallback(self, memory=memory, state_dir=state_dir, **settings)

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """Forward and backward passes that a task will take beyond one per step, for the time left.

        Args:
            task: The task.
            memory_batches: Batches in one pass over the memory buffer.
        """
        return 0

    def begin_task(self, task: TaskInfo, params: Parameters) -> None:  # noqa: B027 - optional hook
        """Called before the first step of a task."""

    def continue_task(self, task: TaskInfo, params: Parameters) -> None:
        """Called instead of `begin_task` when training goes on in the middle of a task, after `load_state`.

        A method that gathers something over the steps of a task takes it up here, from what `state` gave in
        the middle of the task.
        """
        self.begin_task(task, params)

    def on_batch(self, ctx: StepContext) -> None:  # noqa: B027 - optional hook
        """Called before `on_gradients` for a method that needs `batch`; `ctx.passes` knows the step's batch.

        A gradient that it leaves non-finite makes the step a bad one: nothing is moved.
        """

    def on_gradients(self, params: Parameters) -> None:  # noqa: B027 - optional hook
        """Called with complete gradients before the optimizer moves."""

    def on_update(self, params: Parameters) -> None:  # noqa: B027 - optional hook
        """Called after the optimizer has moved; not called for a step that was skipped."""

    def on_step(self, ctx: StepContext) -> None:  # noqa: B027 - optional hook
        """Called after each optimizer step."""

    def end_task(self, task: TaskInfo, ctx: StepContext) -> None:  # noqa: B027 - optional hook
        """Called after the last step of a task."""

    @abstractmethod
    def state(self) -> MethodState:
        """Everything that must survive at the end of a task, or in its middle, where training may go on."""

    @abstractmethod
    def load_state(self, state: MethodState) -> None:
        """Take back what `state` gave."""
