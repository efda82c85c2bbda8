"""The context: everything that a method's hooks are given, and that they may ask of the training engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from kifuse.adapters.base import Adapter
from kifuse.methods.layer_sums import LayerFunction, LayerSums
from kifuse.methods.parameters import Parameters
from kifuse.methods.sampled import Sampling

Weights = Literal["now", "before task", "base"]
"""The weights of a forward pass: the present ones; those before the task, for a method that needs
`before task`; or those of the model without its adapter."""


@dataclass(frozen=True)
class TaskInfo:
    """The position of training in the stream of tasks.

    Attributes:
        index: 0-based position of the task; an adapter that was trained elsewhere before it counts as one
            task.
        name: The task's name.
        steps: Number of optimizer steps.
        batch_size: Examples in a step, over all processes.
        examples: Number of the task's own training examples; 0 where it is not known.
    """

    index: int
    name: str
    steps: int
    batch_size: int = 1
    examples: int = 0

    @property
    def first(self) -> bool:
        """Whether nothing was learned before this task."""
        return self.index == 0


class Batch(Protocol):
    """Some examples, ready for the model."""

    def split(self, size: int) -> Sequence[Batch]:
        """Split the examples in their order into batches of `size`; the last batch may be smaller.

        With several processes, each process contributes its share, at least one example, to every batch.
        """
        ...

    def __add__(self, other: Any) -> Batch:
        """Join the examples of both batches; `other` must come from the same engine."""
        ...


class Context(Protocol):
    """What the training engine offers a method.

    Losses are the Trainer's own: the mean over the target tokens of the whole batch. The engine takes care of
    accumulation, mixed precision and several processes. Some calls take a number for the dropout masks
    (`noise`): calls of one step with the same number use the same masks on batches of the same shape. The
    random numbers of training itself are not touched.
    """

    task: TaskInfo
    params: Parameters
    step: int
    """Number of optimizer steps taken in this task."""
    lr: float
    """Learning rate of the step just taken, not of the next step, for which a schedule may already have set
    0."""
    base_lr: float
    """Learning rate that the schedule starts with."""

    @property
    def next_lr(self) -> float:
        """Learning rate of the next step, which may be 0; for `on_step`, after the schedule has advanced."""
        ...

    @property
    def adapter(self) -> Adapter:
        """The adapter that is trained, for a method that brings its own adapter."""
        ...

    @property
    def memory_size(self) -> int:
        """Number of examples in the memory buffer, over all earlier tasks."""
        ...

    @property
    def memory_batches(self) -> int:
        """Number of batches in one pass over the memory buffer."""
        ...

    def memory_step(
        self,
        *,
        lr: float | None = None,
        optimizer: Literal["shared", "own"] = "shared",
        weight: float = 1.0,
        before: Callable[[Parameters], None] | None = None,
        after: Callable[[Parameters], None] | None = None,
    ) -> None:
        """Do a forward pass, a backward pass and one optimizer step on the next batch of the memory buffer.

        Args:
            lr: Learning rate of this step; None takes that of the step just taken.
            optimizer: `shared` is the task's own optimizer with its moments; `own` is a second AdamW that
                also lives for the task.
            weight: Factor of the loss.
            before: Called with complete, clipped gradients before the optimizer changes the weights.
            after: Called with the same gradients after the optimizer has changed the weights.
        """
        ...

    def step_batch(self) -> Batch:
        """The step's own batch, with all micro-batches; for `on_gradients` of a method that needs `batch`."""
        ...

    def draw_memory(self) -> Batch:
        """Draw the next batch of the memory buffer; its examples count as replayed."""
        ...

    def gradient(
        self,
        batch: Batch,
        *,
        at: Sequence[Tensor] | None = None,
        noise: int = 0,
        create_graph: bool = False,
    ) -> list[Tensor]:
        """Compute the gradient of a batch's loss, reduced over processes, not clipped; no weight is changed.

        Args:
            batch: From `step_batch` or `draw_memory`.
            at: One value per parameter, in the order of `Parameters`; None takes the present weights.
            noise: Number that selects the dropout masks.
            create_graph: Whether the gradient is itself differentiable in `at`.

        Returns:
            One tensor per parameter, of its shape.
        """
        ...

    def batch_loss(self, batch: Batch, *, at: Sequence[Tensor], noise: int = 0) -> Tensor:
        """Compute the loss of a batch at given weights, differentiable in these weights; a scalar."""
        ...

    def memory_loss(self, *, train: bool) -> float:
        """Compute the loss of the present weights on a freshly drawn memory batch, without gradient.

        These batches are drawn separately from those of memory steps, and do not count as replayed.

        Args:
            train: Whether dropout is on, as in training.
        """
        ...

    def clip(self) -> None:
        """Clip the parameters' gradients to the same norm as the Trainer clips those of its steps."""
        ...

    def forward(self, batch: Batch, *, at: Weights | Sequence[Tensor] = "now") -> Any:
        """Compute the model's outputs on a batch, without gradient or dropout; training mode stays as it was.

        A term of the loss that is made of these outputs trains nothing: use those that `loss` was given.

        Args:
            batch: A batch that `Method.loss` was given, or one from `kept_examples`, `sampled` or
                `asked_otherwise`.
            at: The weights; see `Weights`. Or one value per parameter, in the order of `params`.

        Returns:
            The outputs of the transformers model, with `logits`.
        """
        ...

    def sampled(self, batch: Batch, sampling: Sampling, most: int) -> Batch:
        """Return the same prompts, each with an answer sampled from the present weights; without dropout.

        An answer depends on the run's seed, the step and its own prompt, but not on the other rows. Rows
        without a target, which fill up a process's share of a step, are left out.

        Args:
            batch: A batch that `Method.loss` was given.
            sampling: How tokens are drawn.
            most: Most tokens of an answer; the last token of an answer that ends earlier is its end token.
        """
        ...

    def asked_otherwise(self, batch: Batch, prompts: Sequence[Sequence[int]]) -> Batch:
        """Return the same answers after other prompts.

        Args:
            batch: A batch from `sampled`, or one that `Method.loss` was given.
            prompts: The token ids of the new prompts, one list for each row.
        """
        ...

    def train_forward(self, batch: Batch) -> Any:
        """Compute the model's outputs as in training, with gradient and dropout; for `Method.loss`.

        Args:
            batch: A batch from `sampled` or `asked_otherwise`.
        """
        ...

    def keys(self, batch: Batch) -> list[str]:
        """Return a name for each row of the batch that `Method.loss` was given, as `Texts.asked` names it."""
        ...

    def targets(self, batch: Batch, outputs: Any) -> list[tuple[Tensor, Tensor]]:
        """Return the model's logits at each target position.

        Args:
            batch: A batch that `Method.loss` was given, or one from `kept_examples`.
            outputs: The model's outputs on this batch.

        Returns:
            For each row the float32 logits `(targets, vocabulary)` and the ids of the gold tokens
            `(targets,)`.
        """
        ...

    def target_counts(self, batch: Batch) -> Tensor:
        """Count the target positions of each row, `(rows,)`; needs no logits.

        Args:
            batch: A batch that `Method.loss` was given.
        """
        ...

    @property
    def target_loss(self) -> Tensor:
        """The Trainer's loss of the batch that `Method.loss` was given, scaled as `loss` must return it."""
        ...

    def mean_over_targets(self, values: Tensor) -> Tensor:
        """Sum numbers at target positions, and divide as the Trainer divides its loss; for `Method.loss`.

        The result is the mean over all target tokens of the step, over micro-batches and processes. Positions
        that are left out count as 0.

        Args:
            values: One number for each of some positions of the batch, `(positions,)`.
        """
        ...

    def kept_examples(self) -> Iterator[Batch]:
        """Yield the examples of this task that the memory will keep, one after another, each as a batch.

        For `end_task` of a method that needs `kept`.
        """
        ...

    def store(self, example: Batch, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors with an example, for as long as the method is used; they are saved with its state.

        Args:
            example: An example from `kept_examples`.
            tensors: The tensors by name.
        """
        ...

    def stored(self, batch: Batch) -> list[dict[str, Tensor] | None]:
        """Return what was stored with each row of the batch that `Method.loss` was given, or None."""
        ...

    def notes(self, batch: Batch) -> list[str]:
        """Return the note of each row of the batch that `Method.loss` was given; for most rows it is "".

        The note is the text that `Texts.example` was given, or for a row of the memory the name of its task.
        Rows with the same tokens have the same note.
        """
        ...

    @property
    def step_targets(self) -> Mapping[str, float]:
        """For each note, the mean target tokens in a step over the task's training set; may be empty.

        Only rows that `training_examples` has noted are counted, not rows that the memory mixes in.
        """
        ...

    def reset_moments(self) -> None:
        """Reset the moments of the task's optimizer and of the memory steps' own optimizer."""
        ...

    @property
    def squares(self) -> list[Tensor]:
        """Sum over the step's examples j of the squared g_j, with g_j the example's share of the gradient.

        sum_j g_j is the step's gradient. The sums have the shapes of the parameters. For `on_gradients` and
        `on_update` of a method that needs `squares`.
        """
        ...

    def watch(self, function: LayerFunction) -> LayerSums:
        """Sum a function of the inputs and outputs of each trained linear layer; for a need of `layers`.

        A layer counts if its weight is trained: A and B of LoRA are such layers. Called in `begin_task`, the
        sum runs over the real tokens (no padding) that each step trains on, over micro-batches and processes.
        It is known in `on_gradients` and `on_update`. Dropout is on, and a token counts once even where
        gradient checkpointing runs layers again.

        `with ctx.watch(function) as watched:` works in any hook. There the sum runs over what `ctx.forward`
        reads in the block, on each process for itself, and is known when the block has ended.

        Args:
            function: See `LayerFunction`. It is called without gradients, and autocast is off.

        Raises:
            RunError: The function fails or returns no tensor, or the method does not need `layers`.
        """
        ...

    def squared_gradients(self, count: int | None = None) -> list[Tensor]:
        """Compute the mean over the current task's examples of the squared gradient of their log-likelihood.

        F = 1/n sum_j (d log p(y_j | x_j) / d theta)^2, log p summed over the tokens of the gold target,
        dropout off. F depends neither on the batch size nor on padding. Weights, gradients, modes and random
        numbers stay as they were. For `end_task` of a method that needs `examples`.

        Args:
            count: Number of examples n, drawn with the run's seed; None takes all of them.

        Returns:
            float32, in the shapes of the parameters; the same on all processes.
        """
        ...

    def logit_gradients(self, count: int | None = None) -> Iterator[Tensor]:
        """Yield the gradient of the gold tokens' logits for one example of the current task after another.

        For each example this is d/d theta sum_t z_t[y_t], summed over the positions t of its target, dropout
        off. For `end_task` of a method that needs `examples`.

        Args:
            count: Number of examples, drawn with the run's seed; None takes all of them.

        Yields:
            float32 `(scalars of all parameters,)`, in the order of `params`; the same on all processes.
        """
        ...

    def memory_examples(self) -> Iterator[tuple[str, Batch]]:
        """Yield the examples of the memory buffer once, task by task, in batches of a step's size.

        Each process reads all of them, and they count as replayed. For a method that takes memory steps and
        needs `by task`.

        Yields:
            The name of the task, and a batch of its examples.
        """
        ...

    def task_examples(self, count: int | None = None) -> Iterator[Batch]:
        """Yield the current task's training examples once more, in their order, in batches of a step's size.

        Each process reads all of them. For `end_task` of a method that needs `examples`.

        Args:
            count: Number of examples, drawn with the run's seed; None takes all of them.
        """
        ...

    @property
    def logging(self) -> bool:
        """Whether a log line is due after this step: then numbers may be read from the device for `log`."""
        ...

    def log(self, **values: float) -> None:
        """Add numbers to the training log of this step; they reach the terminal and trackers.

        What is logged before the weights move, in `loss` or `on_gradients`, is written when the step ends: of
        several micro-batches the mean.
        """
        ...

    def event(self, kind: str, **values: Any) -> None:
        """Add an entry to the task's record: something that happened once (a fusion, a replay stage)."""
        ...

    def measure(self, **series: Tensor) -> None:
        """Add one number for each trainable tensor to the task's record, for its pictures.

        Args:
            series: By name: one value per trainable tensor, in the order of `params`; see `Parameters.means`.
                `Method.shown` says which series have a picture.
        """
        ...
