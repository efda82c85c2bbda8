"""The context of the hooks that see a task's examples as texts, before and after its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kifuse.methods.context import TaskInfo
from kifuse.methods.sampled import Sampling


class TextExample(Protocol):
    """An example as text: `head`, `body` and `tail` form the prompt, in this order; `target` is learned."""

    @property
    def head(self) -> str:
        """Instruction and options."""
        ...

    @property
    def body(self) -> str:
        """The text itself."""
        ...

    @property
    def tail(self) -> str:
        """The cue before the answer."""
        ...

    @property
    def target(self) -> str:
        """The answer that is learned."""
        ...

    @property
    def conversation(self) -> Any:
        """The chat whose last turn the example is, or None."""
        ...

    @property
    def cue_added(self) -> bool:
        """Whether the tail is not in the data but was added, so that a chat template leaves it out."""
        ...


@dataclass(frozen=True)
class Noted:
    """Facts about the rows that a task is trained on, for `Method.loss`.

    Attributes:
        rows: By a row's key: the method's note of its example, or for a memory row the name of its task.
        targets: By note, "" for none: target tokens in a step, on average over the task's training set.
    """

    rows: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, float] = field(default_factory=dict)


class Texts(Protocol):
    """The context that `Method.training_examples` and `Method.remember` are given.

    Everything random in it depends only on the run's seed, the task's name and the order of the calls.
    """

    task: TaskInfo
    labels: tuple[str, ...] | None
    """The task's closed set of answers, or None."""

    @property
    def inputs(self) -> Sequence[str]:
        """The body of every example of the task, from its training, dev and test splits."""
        ...

    def draw(self, rows: Sequence[Any], count: int) -> list[Any]:
        """Draw `count` rows at random; if there are fewer, start again after all are drawn."""
        ...

    def example(self, row: TextExample, **changes: Any) -> Any:
        """Copy an example with other texts: `head`, `body`, `tail`, `answer`.

        Also possible: another `cue_added`; a `note`, which `Context.notes` gives to the loss; and `more`, a
        text that is added to the prompt: after the body, or in a chat to the user's last message.
        """
        ...

    def asked(self, rows: Sequence[TextExample]) -> list[tuple[str, list[int], bool]]:
        """Return what the model reads of each example.

        Returns:
            For each example its key, by which `Context.keys` names its row in a batch, the token ids of its
            prompt, and whether the prompt had to be cut.
        """
        ...

    def generate(
        self, prompts: Sequence[TextExample], sampling: Sampling, *, at: Literal["now", "base"] = "now"
    ) -> list[str]:
        """Let the model sample an answer to each prompt, of at most `data.max_target` tokens.

        Args:
            prompts: The prompts.
            sampling: How tokens are drawn.
            at: The weights: the present ones, which in `Method.training_examples` are those before the task,
                or those of the model without its adapter.
        """
        ...

    def answer(self, prompts: Sequence[TextExample]) -> list[str]:
        """The model's own greedy answers, as in scoring; empty where one is not among the task's labels."""
        ...

    def event(self, kind: str, **values: Any) -> None:
        """Add an entry to the task's record."""
        ...
