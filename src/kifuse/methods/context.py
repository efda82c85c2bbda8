"""The context: all that a method's hooks are given, and all that they may ask of the training engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from kifuse.adapters.base import Adapter
from kifuse.methods.parameters import Parameters
from kifuse.methods.sampled import Sampling

Weights = Literal["now", "before task", "base"]
"""The weights of a forward pass: the present ones; those before the task, for a method that needs
`before task`; those of the model without its adapter."""


@dataclass(frozen=True)
class TaskInfo:
    """Where in the stream training stands.

    Attributes:
        index: 0-based position of the task; what was learned elsewhere before it counts as one.
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


class Batch(Protocol):
    """Some examples, ready for the model."""

    def split(self, size: int) -> Sequence[Batch]:
        """The same examples in their order, in batches of `size`; the last may be smaller.

        With several processes each contributes its share, at least one example, to each of them.
        """
        ...

    def __add__(self, other: Any) -> Batch:
        """The examples of both; `other` is of the same engine."""
        ...


class Context(Protocol):
    """What the training engine offers a method.

    Losses are the Trainer's own: the mean over the target tokens of the whole batch. The engine takes care of
    accumulation, mixed precision and several processes. Where a number of dropout masks is asked for
    (`noise`), calls of one step with the same number see the same masks on batches of the same form; the
    random numbers of training itself are left as they are.
    """

    task: TaskInfo
    params: Parameters
    step: int
    """Optimizer steps taken in this task."""
    lr: float
    """Learning rate of the step just taken, not of the next one, which a schedule may have brought to 0."""
    base_lr: float
    """Learning rate that the schedule starts from."""

    @property
    def next_lr(self) -> float:
        """Learning rate of the next step, which may be 0; in `on_step`, when the schedule has moved."""
        ...

    @property
    def adapter(self) -> Adapter:
        """What is trained, for a method that brings an adapter of its own."""
        ...

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
        weight: float = 1.0,
        before: Callable[[Parameters], None] | None = None,
        after: Callable[[Parameters], None] | None = None,
    ) -> None:
        """Forward, backward and one optimizer step on the next batch of the memory buffer.

        Args:
            lr: Learning rate of this step; None for that of the step just taken.
            optimizer: The task's own optimizer with its moments, or a second AdamW that lives as long.
            weight: Factor of the loss.
            before: Called with complete, clipped gradients before the optimizer moves.
            after: Called with the same gradients when the optimizer has moved.
        """
        ...

    def step_batch(self) -> Batch:
        """The step's own batch, all micro-batches of it; in `on_gradients` of a method that needs `batch`."""
        ...

    def draw_memory(self) -> Batch:
        """The next batch of the memory buffer, which counts as replayed."""
        ...

    def gradient(
        self,
        batch: Batch,
        *,
        at: Sequence[Tensor] | None = None,
        noise: int = 0,
        create_graph: bool = False,
    ) -> list[Tensor]:
        """The gradient of the loss of a batch, reduced over processes, not clipped; nothing moves.

        Args:
            batch: From `step_batch` or `draw_memory`.
            at: One value per parameter, in the order of `Parameters`; None for the present weights.
            noise: Number of the dropout masks.
            create_graph: Whether the gradient is itself differentiable in `at`.

        Returns:
            One tensor per parameter, of its shape.
        """
        ...

    def batch_loss(self, batch: Batch, *, at: Sequence[Tensor], noise: int = 0) -> Tensor:
        """The loss of a batch at given weights, differentiable in them; a scalar."""
        ...

    def memory_loss(self, *, train: bool) -> float:
        """The loss of the present weights on a freshly drawn memory batch, without gradient.

        These batches are drawn beside those of memory steps, and do not count as replayed.

        Args:
            train: Whether dropout is on, as in training.
        """
        ...

    def clip(self) -> None:
        """Clip the parameters' gradients to the norm that the Trainer clips those of its steps to."""
        ...

    def forward(self, batch: Batch, *, at: Weights | Sequence[Tensor] = "now") -> Any:
        """The model's outputs on a batch, without gradient and without dropout; modes stay as they are.

        Args:
            batch: As `Method.loss`, `kept_examples`, `sampled` or `asked_otherwise` gives it.
            at: The weights; see `Weights`. Or one value per parameter, in the order of `params`.

        Returns:
            The outputs of transformers, with `logits`.
        """
        ...

    def sampled(self, batch: Batch, sampling: Sampling, most: int) -> Batch:
        """The same questions, each with an answer that the present weights sample; without dropout.

        An answer depends on the run's seed, the step and its own question, and not on the rows beside it.
        Rows without a target, which fill up a process's share of a step, are left out.

        Args:
            batch: As `Method.loss` gives it.
            sampling: How tokens are drawn.
            most: Tokens of an answer, at most; one that ends earlier has its end as its last token.
        """
        ...

    def asked_otherwise(self, batch: Batch, prompts: Sequence[Sequence[int]]) -> Batch:
        """The same answers after other questions.

        Args:
            batch: From `sampled`, or as `Method.loss` gives it.
            prompts: The token ids of what is asked, one for each row.
        """
        ...

    def train_forward(self, batch: Batch) -> Any:
        """The model's outputs on a batch as in training, with gradient and dropout; in `Method.loss`.

        Args:
            batch: From `sampled` or `asked_otherwise`.
        """
        ...

    def keys(self, batch: Batch) -> list[str]:
        """A name for each row of the batch that `Method.loss` is given, as `Texts.asked` has it."""
        ...

    def targets(self, batch: Batch, outputs: Any) -> list[tuple[Tensor, Tensor]]:
        """What the model says at each target position.

        Args:
            batch: As `Method.loss` or `kept_examples` gives it.
            outputs: Of the model on this batch.

        Returns:
            For each row float32 logits `(targets, vocabulary)` and the gold tokens' ids `(targets,)`.
        """
        ...

    def target_counts(self, batch: Batch) -> Tensor:
        """How many target positions each row has, `(rows,)`; needs no logits.

        Args:
            batch: As `Method.loss` gives it.
        """
        ...

    @property
    def target_loss(self) -> Tensor:
        """The Trainer's own loss of the batch that `Method.loss` is given, scaled as it is to be returned."""
        ...

    def mean_over_targets(self, values: Tensor) -> Tensor:
        """A sum of numbers at target positions, divided as the Trainer divides its loss; in `Method.loss`.

        The mean is that over all target tokens of the step, over micro-batches and processes. Positions that
        are left out count as 0.

        Args:
            values: One for each of some positions of the batch, `(positions,)`.
        """
        ...

    def kept_examples(self) -> Iterator[Batch]:
        """The examples of this task that the memory will keep, one after another, each as a batch.

        In `end_task` of a method that needs `kept`.
        """
        ...

    def store(self, example: Batch, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors with an example, for as long as the method is used; they are saved with its state.

        Args:
            example: From `kept_examples`.
            tensors: By name.
        """
        ...

    def stored(self, batch: Batch) -> list[dict[str, Tensor] | None]:
        """What was stored with each row of the batch that `Method.loss` is given; None with others."""
        ...

    def notes(self, batch: Batch) -> list[str]:
        """What is noted with each row of the batch that `Method.loss` is given; "" with most.

        That is what `Texts.example` was given, or for a row of the memory the name of its task. Rows with the
        same tokens have the same note.
        """
        ...

    @property
    def step_targets(self) -> Mapping[str, float]:
        """By note: target tokens in a step, on average over the task's own training set; may be empty."""
        ...

    def reset_moments(self) -> None:
        """Forget the moments of the task's optimizer and of the memory steps' own."""
        ...

    @property
    def squares(self) -> list[Tensor]:
        """Sum over the step's examples j of the squared g_j, each g_j the example's share of the gradient.

        sum_j g_j is the step's gradient. In the shapes of the parameters; in `on_gradients` and `on_update`
        of a method that needs `squares`.
        """
        ...

    @property
    def magnitudes(self) -> list[Tensor | None]:
        """n_j = sum over the step's real tokens of |y_j|, for each output unit j of a trained linear weight.

        float32, `(out, 1)` for a weight `(out, in)`, `(1, out)` for a transposed one; None for any other
        parameter. In `on_gradients` and `on_update` of a method that needs `magnitudes`.
        """
        ...

    def squared_gradients(self, count: int | None = None) -> list[Tensor]:
        """The mean over examples of the current task of the squared gradient of their log-likelihood.

        F = 1/n sum_j (d log p(y_j | x_j) / d theta)^2, log p summed over the tokens of the gold target,
        dropout off. It depends neither on the batch size nor on padding; weights, gradients, modes and random
        numbers are left as they are. In `end_task` of a method that needs `examples`.

        Args:
            count: Number of examples n, drawn with the run's seed; None for all of them.

        Returns:
            float32, in the shapes of the parameters; the same on all processes.
        """
        ...

    def logit_gradients(self, count: int | None = None) -> Iterator[Tensor]:
        """The gradient of the gold tokens' logits, of one example of the current task after another.

        Of each example d/d theta sum_t z_t[y_t], summed over the positions t of its target, dropout off. In
        `end_task` of a method that needs `examples`.

        Args:
            count: Number of examples, drawn with the run's seed; None for all of them.

        Yields:
            float32 `(scalars of all parameters,)`, in the order of `params`; the same on all processes.
        """
        ...

    def memory_examples(self) -> Iterator[tuple[str, Batch]]:
        """The examples of the memory buffer once, task by task, in batches of a step's size.

        Each process reads all of them, and they count as replayed. For a method that takes memory steps and
        needs `by task`.

        Yields:
            The name of the task, and some of its examples.
        """
        ...

    def task_examples(self) -> Iterator[Batch]:
        """The current task's training examples once more, in their order, in batches of a step's size.

        Each process reads all of them. In `end_task` of a method that needs `examples`.
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
