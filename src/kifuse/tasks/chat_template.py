"""Splits what a tokenizer's chat template makes of a chat into the prompt and the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kifuse.errors import DataError, ModelError
from kifuse.tasks.limited_process import LimitedProcess, TooMuch
from kifuse.tasks.task import Example
from kifuse.tasks.tokens import only_special, without_end
from kifuse.tasks.transcript import message_text

_ASKED, _ANSWER = "probe", "KIFUSE-ANSWER"
_THINK, _THOUGHT = "<think>", "</think>"
_REASONING = ("reasoning_content", "reasoning", "thinking")
_OURS = ("weight", "train", "loss")
"""Keys of a message that say what is learned; they are never passed to a template."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """The last turn of a chat as text.

    Attributes:
        prompt: The text that the model is asked, up to where the assistant's answer begins.
        answer: The template's text for the answer, without its end.
        end: The text that ends the answer: one special token, or several plain ones.
    """

    prompt: str
    answer: str
    end: str


class ChatTemplate:
    """A tokenizer's chat template, with the texts by which it starts and ends an answer.

    Args:
        tokenizer: A tokenizer with a chat template and an end-of-sequence token.

    Attributes:
        end: The text that ends a text answer: the template's marker, or the end-of-sequence token if the
            template has no marker.
        ends: All texts that can end an answer.
        lead: The text that the template writes between the prompt and an answer's text, such as an empty
            thought.
        notes: Notes for the user about the template, one sentence each.

    Raises:
        ModelError: The template cannot render a chat of one question and its answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.notes: list[str] = []
        self._looked_at: set[tuple[str, str]] = set()
        self._asking: dict[str, bool] = {}
        self._process = LimitedProcess(self._apply)
        self._too_much: TooMuch | None = None
        eos = str(tokenizer.eos_token)
        self._special = re.compile("|".join(map(re.escape, _special_texts(tokenizer))))
        self._closing = re.compile(rf"(?:(?:{self._special.pattern})\s*)+\Z")
        self._flat = not self._takes_parts()
        self.end, self.ends, self._marked = eos, (eos,), False
        probe: list[Message] = [
            {"role": "user", "content": _ASKED},
            {"role": "assistant", "content": _ANSWER},
        ]
        try:
            whole = self._render(probe, None, asking=False)
        except Exception as error:
            raise ModelError(f"The tokenizer's chat template cannot be used: {_first_line(error)}") from error
        if _ANSWER not in whole:
            raise ModelError(
                "The tokenizer's chat template leaves out an assistant's answer. Set data.chat_template to "
                "false."
            )
        after = whole.rpartition(_ANSWER)[2]
        marker = self._special.search(after)
        if marker is not None:
            self.end, self._marked = eos if self._closes_with(eos, probe) else marker[0], True
        elif after.strip():
            self.end, self._marked = after.rstrip(), True
        self.ends = tuple(dict.fromkeys((self.end, eos, *self._ends_of_calls())))
        self.lead = ""
        self._settle_thinking(probe)
        self.lead = self.turn(probe, None, "The probe").answer.partition(_ANSWER)[0]

    def taken(self, example: Example) -> Example:
        """Return the example in the form that this template accepts."""
        return example

    def turn(self, messages: Sequence[Message], tools: Sequence[Any] | None, where: str) -> Turn:
        """Render a chat whose last message is the answer.

        Args:
            messages: All messages, with the answer last.
            tools: The tools that the model may call.
            where: The name of the example, for messages.

        Returns:
            The last turn, as text.

        Raises:
            DataError: The template refuses the chat, leaves the answer out, or does not render the answer as
                a continuation of its own prompt.
        """
        asked, answer = self._ready(messages[:-1]), self._answer(messages[-1])
        try:
            prompt, rest = self._parted(asked, answer, tools)
        except Exception as error:
            raise self._refused(where, error) from error
        if rest is None:
            raise DataError(
                f"{where}: the chat template does not put this answer right after its prompt, so the model "
                "would be trained on another prompt than a server gives it. Set data.chat_template to "
                "false."
            )
        self._look_at(asked, answer, tools, where)
        text, end = self._ended(rest)
        given = message_text(messages[-1])
        if given.strip() and not self._special.sub("", text.removeprefix(self.lead)).strip():
            raise only_special(where, given)
        return Turn(prompt, text, end)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None, where: str) -> str:
        """Render the prompt: all messages but the answer.

        Raises:
            DataError: The template refuses the messages.
        """
        try:
            return self._render(self._ready(messages), tools, asking=True)
        except Exception as error:
            raise self._refused(where, error) from error

    def without_end(self, text: str) -> str:
        """Remove the end token from an answer in the data, if the answer already ends with it."""
        return without_end(text, self.ends)

    def answered(self, text: str) -> str:
        """Return the answer in a decoded output, without the text that the template writes before it."""
        if _THOUGHT in self.lead:
            return text.rpartition(_THOUGHT)[2].strip()
        lead = self._special.sub("", self.lead).strip()
        return text.removeprefix(lead).strip() if lead else text

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] | None, *, asking: bool) -> str:
        return self._render_all([(messages, asking)], tools)[0]

    def _render_all(
        self, chats: Sequence[tuple[Sequence[Message], bool]], tools: Sequence[Any] | None
    ) -> list[str]:
        """Render chats in one call, each with or without the start of an answer; a call takes time."""
        if self._too_much is not None:
            raise self._too_much
        asked = [
            [list(messages), {"add_generation_prompt": asking, **(self._asking if asking else {})}]
            for messages, asking in chats
        ]
        try:
            return self._process.ask([asked, tools or None])
        except TooMuch as error:
            self._too_much = error  # do not try again
            raise

    def _apply(self, asked: list[Any]) -> list[str]:
        """Render the chats; this runs in a separate process with limits."""
        chats, tools = asked
        apply = self._tokenizer.apply_chat_template
        return [apply(messages, tools=tools, tokenize=False, **options) for messages, options in chats]

    def _settle_thinking(self, probe: list[Message]) -> None:
        """If an answer does not continue the prompt, turn thinking off, provided that this helps."""
        for asking in ({}, {"enable_thinking": False}, {"thinking": False}):
            self._asking = asking
            with suppress(Exception):  # an error of the template is reported when the template is used
                if self._parted(probe[:1], probe[1], None)[1] is not None:
                    for name in asking:
                        self._note(
                            f"prompts are written with {name}=False. Serve the adapter with the same setting."
                        )
                    return
        self._asking = {}

    def _ready(self, messages: Sequence[Message]) -> list[Message]:
        """Prepare messages for the template: without our own keys, and as text if it knows no parts."""
        found = [{key: value for key, value in m.items() if key not in _OURS} for m in messages]
        for message in found:
            if self._flat and isinstance(message.get("content"), list):
                # vLLM does the same for such a template
                message["content"] = "\n".join(str(part.get("text", "")) for part in message["content"])
        return found

    def _answer(self, message: Message) -> Message:
        [answer] = self._ready([message])
        content = answer.get("content")
        return {**answer, "content": self.without_end(content)} if isinstance(content, str) else answer

    def _parted(
        self, asked: list[Message], answer: Message, tools: Sequence[Any] | None
    ) -> tuple[str, str | None]:
        """Return the prompt and what the template renders after it; None if the two do not fit together."""
        prompt, whole = self._render_all([(asked, True), ([*asked, answer], False)], tools)
        if whole.startswith(prompt):
            return prompt, whole[len(prompt) :]
        # with an answer, the template writes earlier turns differently, or its prompt opens a thought
        before = self._render(asked, tools, asking=False)
        header = prompt[len(before) :] if prompt.startswith(before) else ""
        stand_in = self._render([*asked, {"role": "assistant", "content": _ANSWER}], tools, asking=False)
        if (start := _after_header(header, stand_in, whole)) is not None:
            return prompt, whole[start:]
        opened = header.rfind(_THINK)
        if opened >= 0 and _THOUGHT in header[opened:]:
            return prompt, self._without_thought(asked, answer, tools, prompt)
        if opened >= 0 and (start := _after_header(header[:opened], stand_in, whole)) is not None:
            rest = whole[start:]
            if rest.lstrip().startswith(_THINK):
                return prompt, rest.lstrip().removeprefix(_THINK).lstrip("\n")
            return prompt, _thought(answer) + rest
        return prompt, None

    def _without_thought(
        self, asked: list[Message], answer: Message, tools: Sequence[Any] | None, prompt: str
    ) -> str | None:
        """Render the answer without its thought after a prompt that closes the thought, or None."""
        content = answer.get("content")
        bare = {key: value for key, value in answer.items() if key not in _REASONING}
        if isinstance(content, str) and _THOUGHT in content:
            bare["content"] = content.rpartition(_THOUGHT)[2].lstrip("\n")
        if bare == answer:
            return None
        whole = self._render([*asked, bare], tools, asking=False)
        if not whole.startswith(prompt):
            return None
        self._note("prompts of this template end the reasoning, so reasoning in answers is not learned.")
        return whole[len(prompt) :]

    def _ended(self, rest: str) -> tuple[str, str]:
        """Split what follows the prompt into the answer and its end, without white space after the end."""
        text = rest.rstrip()
        closing = self._closing.search(text)
        if closing is not None:
            marks = list(self._special.finditer(text, closing.start()))
            known = next((mark for mark in marks if mark[0] in self.ends), None)
            if known is not None or self._marked:
                # with several ends, take the first, because generation stops there
                last = known or marks[-1]
                return text[: last.start()], last[0]
        if text.endswith(self.end):
            return text[: -len(self.end)], self.end
        return text, str(self._tokenizer.eos_token)

    def _closes_with(self, eos: str, probe: list[Message]) -> bool:
        """Whether every answer, not only the last, ends with the end-of-sequence token after other marks."""
        try:
            whole = self._render([*probe, {"role": "user", "content": _ASKED}], None, asking=False)
        except Exception:  # the template accepts no further question
            return False
        marks = re.match(rf"(?:{self._special.pattern})+", whole.rpartition(_ANSWER)[2].lstrip())
        return marks is not None and eos in self._special.findall(marks[0])

    def _ends_of_calls(self) -> list[str]:
        """Special tokens that end an answer with a tool call, if they differ from `end`."""
        call = {
            "type": "function",
            "function": {"name": "probe", "arguments": {"probe": 1}},
            "id": "probe1234",
        }
        asked: Message = {"role": "user", "content": _ASKED}
        try:
            chat = [asked, {"role": "assistant", "content": "", "tool_calls": [call]}]
            whole = self._render(chat, None, asking=False).rstrip()
        except Exception:  # the template does not know tool calls
            return []
        closing = self._closing.search(whole)
        marks = self._special.findall(closing[0]) if closing and self._marked else []
        # the marks before the last one belong to the call
        return [] if self.end in marks else marks[-1:]

    def _takes_parts(self) -> bool:
        """Whether the template accepts content that is a list of parts."""
        try:
            parts = [{"type": "text", "text": _ASKED}]
            found = self._render([{"role": "user", "content": parts}], None, asking=False)
        except Exception:
            return False
        return _ASKED in found and "'type'" not in found

    def _look_at(
        self, asked: list[Message], answer: Message, tools: Sequence[Any] | None, where: str
    ) -> None:
        """Refuse an answer that the template renders in part, and note what the prompt is missing."""
        chat = [*asked, answer]
        for key in sorted(answer.keys() - {"role", "content"}):
            if not answer[key] or not self._drops(chat, tools, len(asked), key):
                continue
            if key == "tool_calls":
                raise DataError(
                    f"{where}: the chat template leaves out the tool calls of the answer. Use a tokenizer "
                    "whose template writes them, or set data.chat_template to false."
                )
            self._note(f"the chat template leaves {key!r} out of an answer, so it is not learned.")
        for index, message in enumerate(asked):
            key = (str(message.get("role")), "tool_calls")
            if message.get("tool_calls") and key not in self._looked_at:
                self._looked_at.add(key)
                if self._drops(chat, tools, index, "tool_calls"):
                    self._note("the chat template leaves 'tool_calls' out of the prompt.")
        if tools and ("", "tools") not in self._looked_at:
            self._looked_at.add(("", "tools"))
            if self._render(asked, None, asking=True) == self._render(asked, tools, asking=True):
                self._note("the chat template leaves 'tools' out of the prompt.")

    def _drops(self, chat: list[Message], tools: Sequence[Any] | None, index: int, key: str) -> bool:
        without = [dict(message) for message in chat]
        del without[index][key]
        try:
            return self._render(without, tools, asking=False) == self._render(chat, tools, asking=False)
        except Exception:  # the template needs this key
            return False

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _refused(self, where: str, error: Exception) -> DataError:
        return DataError(
            f"{where}: the model's chat template refuses this chat: {_first_line(error)} Change its "
            "messages, or set data.chat_template to false."
        )


def chat_of(example: Example) -> tuple[list[Message], list[Any] | None]:
    """Return an example as messages, the answer last, and the tools that may be called.

    An example that is not a chat becomes one question. A cue that a reader added is left out of a chat.
    """
    if example.conversation is not None:
        return example.conversation.messages, example.conversation.tools
    asked = example.head + example.body + ("" if example.cue_added else example.tail)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": example.target}], None


def _special_texts(tokenizer: Any) -> list[str]:
    """The texts of the special tokens, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {*map(str, tokenizer.all_special_tokens), *(str(t) for t in added.values() if t.special)}
    return sorted((text for text in found if text), key=lambda text: (-len(text), text))


def _after_header(header: str, stand_in: str, whole: str) -> int | None:
    """Where the answer begins: after the last header before the stand-in; None if the texts differ."""
    at = stand_in.rfind(header) if header.strip() else -1
    start = at + len(header)
    fits = at >= 0 and _ANSWER in stand_in[start:] and whole.startswith(stand_in[:start])
    return start if fits else None


def _thought(answer: Mapping[str, Any]) -> str:
    """Continue a thought that the prompt has opened: the answer's reasoning, if any, and its end mark."""
    given = next((str(answer[key]) for key in _REASONING if answer.get(key)), "")
    content = answer.get("content")
    if not given and isinstance(content, str) and _THOUGHT in content:
        given = content.rpartition(_THOUGHT)[0].rpartition(_THINK)[2]
    return f"{given.strip()}\n{_THOUGHT}\n\n"


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    return first if first.endswith((".", "!", "?")) else f"{first}."
