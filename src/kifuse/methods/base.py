"""The interface of a continual learning method: hooks that the training engine calls with one context.

A method sees complete gradients before a step and the weights after it, and may change both. It never sees
the training engine: the same object works in kifuse's own runner and in any `Trainer`.

| hook | when | may |
| --- | --- | --- |
| `training_examples` | before a task, as texts | mix in, generate, relabel, drop examples |
| `begin_task` | before the first step of a task | copy weights, prepare statistics |
| `loss` | after the forward pass of each micro-batch | add a term, or a teacher |
| `on_gradients` | gradients complete, reduced, unscaled, clipped; weights not moved yet | read, change |
| `on_update` | the optimizer has really moved | read or correct the update |
| `on_step` | after each step, skipped ones too | take memory steps, fuse, log |
| `end_task` | after the last step of a task | fuse, run a replay stage |
| `remember` | when a task is learned | have other examples kept than real ones |

State that must survive is declared in the class and is saved automatically: see `kifuse.methods.kept`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from torch import Tensor

import kifuse
from kifuse.adapters.base import Adapter
from kifuse.errors import RunError
from kifuse.method_catalog import DataClass
from kifuse.methods.context import Batch, Context, TaskInfo
from kifuse.methods.kept import Declared, MethodState, collect, declare, forget, put_back
from kifuse.methods.parameters import Parameters
from kifuse.methods.shown import Shown
from kifuse.methods.texts import Noted, TextExample, Texts

OldData = Literal["none", "mixed", "steps", "all"]
"""How a method uses earlier data: never; mixed into the current task's batches; in separate memory steps; or
all tasks at once (joint training)."""

Need = Literal[
    "squares", "layers", "examples", "batch", "curvature", "kept", "by task", "before task", "answers"
]
"""What the engine gathers only for methods that ask for it, because it costs time or not every set-up has it.

In this order: `Context.squares`; `Context.watch`; another pass over the task's examples at its end, with
their gradients; gradients on the step's own batch, at any weights; gradients of gradients there;
`Context.kept_examples`; `Context.memory_examples`; a copy of the weights before the task, for
`Context.forward`; `Context.sampled`.
"""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
"""A setting between 0 and 1."""

Past = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A setting: the weight of the past in a running mean, below 1."""

Positive = Annotated[float, Field(gt=0.0)]
"""A setting above 0."""

NotNegative = Annotated[float, Field(ge=0.0)]
"""A setting of 0 or more: a strength that is off at 0."""

SETTINGS = ConfigDict(extra="forbid", validate_default=True)
"""Pydantic configuration of every method: an unknown or wrongly typed setting is an error, never ignored."""


class Method:
    """Base of every method. Concrete methods are final, and differ by their settings."""

    declared: ClassVar[dict[str, Declared]] = {
        "stored_tensors": Declared("stored_tensors", within_task=False, written="dict[str, Tensor]")
    }
    stored_tensors: dict[str, Tensor] | None = None
    """The tensors that `Context.store` was given, as `<example>.<name>`."""
    noted: Noted = Noted()
    """Facts about the rows that the current task is trained on."""
    _waiting: MethodState | None = None
    _parameter_names: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declare(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a setting or declared state; anything else would be lost where a run resumes.

        Raises:
            RunError: The class does not declare the attribute.
        """
        if not hasattr(type(self), name) and name not in getattr(type(self), "__dataclass_fields__", {}):
            kind = type(self).__name__
            raise RunError(
                f"{kind} sets self.{name}, which it does not declare, so a run that resumes would lack it. "
                f"Write in the class {name}: kifuse.OfTask[...] for what is saved in the middle of a task "
                "and forgotten at its end, Kept for what outlives tasks, Unsaved for what begin_task makes."
            )
        super().__setattr__(name, value)

    version: ClassVar[int] = 1
    """Version of the method's saved state."""
    plain_first_task: ClassVar[bool] = False
    """Whether the first task is ordinary training, of which only the weights are needed later. If so, a
    comparison trains it once for all such methods."""
    adapter: ClassVar[type[Adapter] | str | None] = None
    """The adapter that is trained: None takes the kind in `model.adapter.kind`; `stack` keeps a LoRA pair for
    each task; `osf` trains small singular directions; a class of your own may change the forward pass."""

    reminders: ClassVar[frozenset[str]] = frozenset()
    """Notes of the examples of earlier tasks that `training_examples` adds: these examples count as
    replayed."""

    shown: ClassVar[Shown] = Shown()
    """How the page and the terminal show what the method measures and records."""

    @property
    def old_data(self) -> OldData:
        """How the method uses data of earlier tasks; it is given no more than this."""
        return "none"

    @property
    def data_class(self) -> DataClass:
        """The data that the method trains on with these settings, besides the task's own data."""
        if self.old_data == "all":
            return "all data"
        return "replay-free" if self.old_data == "none" else "real replay"

    @property
    def needs(self) -> frozenset[Need]:
        """What the engine must gather with these settings, besides gradients and weights."""
        return frozenset()

    def check(self, params: Parameters) -> None:
        """Called once the model is loaded, before anything is trained.

        Raises:
            ValueError: The method cannot work with these parameters; the message begins with the setting.
        """

    @property
    def has_loss(self) -> bool:
        """Whether `loss` is called; with some settings a method may use the Trainer's own loss instead."""
        return type(self).loss is not Method.loss

    def settings(self) -> dict[str, Any]:
        """The method's settings, given or default."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]

    def callback(self, *, memory: Any = None, state_dir: Any = None, **settings: Any) -> Any:
        """Return the method as one more callback for your own `Trainer` or `SFTTrainer`.

        Args:
            memory: Rows of earlier tasks, for a method that takes memory steps; with None the callback keeps
                some rows of each task.
            state_dir: Folder that carries everything except the model from one run of your script to the
                next.
            settings: See `kifuse.driving.standalone.StandaloneCallback`.

        Returns:
            A `transformers.TrainerCallback`.

        Raises:
            RunError: The method needs other data than a callback can give it.
        """
        return kifuse.StandaloneCallback(self, memory=memory, state_dir=state_dir, **settings)

    @property
    def more_examples(self) -> float:
        """Number of examples that `training_examples` adds, as a share of the task's, for the time left."""
        return 0.0

    def on_init_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by a Trainer that was given the method itself instead of its callback.

        Raises:
            RunError: Always; the message says what to write.
        """
        kind = type(self).__name__
        raise RunError(
            f"{kind} is a method, but the Trainer needs its callback: "
            f"callbacks=[{kind}(...).callback(state_dir='my-state', name='october')]."
        )

    on_train_begin = on_init_end

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """Forward and backward passes of a task beyond one per step, to estimate the time left.

        Args:
            task: The task.
            memory_batches: Batches in one pass over the memory buffer.
        """
        return 0

    def begin_task(self, ctx: Context) -> None:
        """Called before the first step of a task.

        It is also called where training resumes in the middle of a task, with the weights of that moment.
        After that call, the weights and all declared state are restored as they were saved.
        """

    def training_examples(self, ctx: Texts, rows: Sequence[TextExample]) -> Sequence[TextExample]:
        """Choose the examples of a task, in kifuse's own runs: mix in, generate, relabel or drop examples.

        Called before everything else in the task, with the model as the task before left it. It is called
        again where training resumes in the middle of the task, and must then give the same result.

        Args:
            ctx: The context for hooks that see texts.
            rows: The task's training examples.
        """
        return rows

    def remember(self, ctx: Texts, rows: Sequence[TextExample], count: int) -> Sequence[TextExample] | None:
        """Choose what the memory keeps of a task once it is learned, in kifuse's own runs.

        Args:
            ctx: The context for hooks that see texts, with the model as the task left it.
            rows: The task's training examples.
            count: Most examples of the task that the memory keeps.

        Returns:
            The examples; with None the memory draws some of `rows`.
        """
        return None

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Compute the loss of a micro-batch in training; the default is the Trainer's own, `ctx.target_loss`.

        Add your terms to it. Pass a sum over target positions through `ctx.mean_over_targets`, so that
        neither accumulation nor the number of processes changes it.

        Args:
            ctx: The context.
            model: The model, in training mode.
            batch: The micro-batch; only `ctx` reads it.
            outputs: The model's outputs; its `logits` may start shortly before the first target, so read them
                with `ctx.targets`.

        Returns:
            A scalar.
        """
        return ctx.target_loss

    def on_gradients(self, ctx: Context) -> None:
        """Called with complete gradients before the optimizer changes the weights.

        For a method that needs `batch`, a step with a gradient that this hook leaves non-finite is a bad
        step: no weight is changed.
        """

    def on_update(self, ctx: Context) -> None:
        """Called after the optimizer has changed the weights; not called for a skipped step."""

    def on_step(self, ctx: Context) -> None:
        """Called after each optimizer step."""

    def end_task(self, ctx: Context) -> None:
        """Called after the last step of a task; then everything declared `OfTask` is forgotten."""

    def state(self) -> MethodState:
        """Return all declared state that is not None, at the end of a task or in the middle of one."""
        return collect(self, self._parameter_names) if self._waiting is None else self._waiting

    def load_state(self, state: MethodState) -> None:
        """Load what `state` returned; it is put in place when the next task begins."""
        forget(self, all_of_it=True)
        self._waiting = state

    def recall(self) -> None:
        """Called by the engine before hooks that see texts: sets the loaded state that needs no parameters.

        `take_up` puts it in place once more, so that these hooks cannot change `Kept` state.
        """
        for each in type(self).declared.values():
            if self._waiting is not None and not each.within_task and each.saved in self._waiting.values:
                setattr(self, each.name, self._waiting.values[each.saved])

    def take_up(self, params: Parameters) -> None:
        """Called by the engine before `begin_task`, when the parameters are known.

        Raises:
            ValueError: The loaded state belongs to other parameters.
        """
        state, self._waiting, self._parameter_names = self._waiting, None, params.names
        if state is not None:
            put_back(self, state, params, begun=False)
            forget(self, all_of_it=False)

    def go_on(self, state: MethodState, params: Parameters) -> None:
        """Called by the engine after `begin_task` when training resumes in the middle of a task.

        Raises:
            ValueError: The state is not from the middle of a task, or belongs to other parameters.
        """
        put_back(self, state, params, begun=True)

    def forget_task(self) -> None:
        """Called by the engine after `end_task`."""
        forget(self, all_of_it=False)
