"""Which text a model is given: the plain prompt, or what the tokenizer's own chat template makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from kifuse.errors import ModelError
from kifuse.tasks.task import Example

Form = Literal["chat template", "plain"]
CHAT: Form = "chat template"
PLAIN: Form = "plain"


@dataclass(frozen=True)
class Rendering:
    """The form in which examples are put to a model, and why.

    Attributes:
        form: ``"chat template"`` or ``"plain"``.
        why: In a few words.
    """

    form: Form
    why: str

    @property
    def by_template(self) -> bool:
        """Whether the tokenizer's chat template makes the prompts."""
        return self.form == CHAT

    def state(self) -> dict[str, str]:
        """What a record keeps of it."""
        return {"form": self.form, "why": self.why}

    def note(self, examples: Iterable[Example]) -> str:
        """What is to be said of examples in this form; empty where nothing is."""
        if self.by_template or all(example.conversation is None for example in examples):
            return ""
        return (
            "chats are written out as plain text, a line 'User:' or 'Assistant:' for each message, as "
            f"{self.why}."
        )


def decide_rendering(
    setting: bool | Literal["auto"],
    tokenizer: Any,
    *,
    benchmark: str | None = None,
    begun: Form | None = None,
) -> Rendering:
    """Decide whether prompts go through the tokenizer's chat template.

    Args:
        setting: `data.chat_template`.
        tokenizer: The model's.
        benchmark: `data.benchmark`.
        begun: The form with which the run or the learner began, where it did.

    Returns:
        The form, and why it is this one.

    Raises:
        ModelError: The template is asked for, and there is none.
    """
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if setting is True or (setting == "auto" and begun == CHAT):
        if not has_one:
            raise ModelError("The tokenizer has no chat template; set data.chat_template to false.")
        return Rendering(CHAT, "data.chat_template is true" if setting is True else "it began so")
    if setting is False:
        return Rendering(PLAIN, "data.chat_template is false")
    if begun == PLAIN:
        return Rendering(PLAIN, "it began so; data.chat_template: true would change it")
    if benchmark is not None:
        return Rendering(PLAIN, f"the benchmark {benchmark} keeps its published prompts")
    if not has_one:
        return Rendering(PLAIN, "the tokenizer has no chat template")
    return Rendering(CHAT, "the tokenizer has one, and the model's servers use it")
