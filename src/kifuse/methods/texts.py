"""The context of the hooks that see a task's examples as texts, before its training and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kifuse.methods.context import TaskInfo
from kifuse.methods.sampled import Sampling


class TextExample(Protocol):
    """An example as text: `head`, `body` and `tail` are asked, in this order, and `target` is learned."""

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
        """The chat that the example is the last turn of, or None."""
        ...

    @property
    def cue_added(self) -> bool:
        """Whether the tail does not stand in the data, so that a chat template leaves it out."""
        ...


@dataclass(frozen=True)
class Noted:
    """What is known of the rows that a task is trained on, for `Method.loss`.

    Attributes:
        rows: By the key of a row: what the method noted with its example, or the task it is remembered of.
        targets: By note, "" for none: target tokens in a step, on average over the task's own training set.
    """

    rows: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, float] = field(default_factory=dict)


class Texts(Protocol):
    """What `Method.training_examples` and `Method.remember` are given.

    Everything random in it depends on the run's seed, the task's name and the order of the calls alone.
    """

    task: TaskInfo
    labels: tuple[str, ...] | None
    """The task's closed set of answers, or None."""
    inputs: Sequence[str]
    """The body of every example of the task: of its training, dev and test split."""

    def draw(self, rows: Sequence[Any], count: int) -> list[Any]:
        """Draw `count` of some rows at random; again from the start where there are fewer."""
        ...

    def example(self, row: TextExample, **changes: Any) -> Any:
        """A copy of an example with other texts: `head`, `body`, `tail`, `answer`.

        Also with another `cue_added`, and with a `note`, which `Context.notes` tells the loss. With `more`,
        a text that is added to what is asked: after the body, or in a chat to the last message of the user.
        """
        ...

    def asked(self, rows: Sequence[TextExample]) -> list[tuple[str, list[int], bool]]:
        """What the model reads of each example.

        Returns:
            For each its key, by which `Context.keys` names its row in a batch, the token ids of what is
            asked, and whether they had to be cut.
        """
        ...

    def generate(
        self, prompts: Sequence[TextExample], sampling: Sampling, *, at: Literal["now", "base"] = "now"
    ) -> list[str]:
        """Have the model sample an answer to each prompt, of at most `data.max_target` tokens.

        Args:
            prompts: What is asked.
            sampling: How tokens are drawn.
            at: The weights: the present ones, which in `Method.training_examples` are those before the task,
                or those of the model without its adapter.
        """
        ...

    def answer(self, prompts: Sequence[TextExample]) -> list[str]:
        """The model's own answers, as in scoring: greedy; empty where it is none of the task's labels."""
        ...

    def event(self, kind: str, **values: Any) -> None:
        """Add an entry to the task's record."""
        ...
