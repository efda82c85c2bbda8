"""Turns examples into token ids: prompts that keep their instruction, targets that end."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from kifuse.errors import DataError, ModelError
from kifuse.tasks.chat_template import ChatTemplate, Turn, chat_of
from kifuse.tasks.cutting import Asked, shorten, without_middle
from kifuse.tasks.encoded import Encoded, EncodedOnDisk, in_pieces, is_text, name_of, token_list
from kifuse.tasks.on_disk import held
from kifuse.tasks.one_turn import OneTurn
from kifuse.tasks.task import Example
from kifuse.tasks.tokens import Tokens, only_special, spaced, without_end
from kifuse.tasks.transcript import message_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PORTION = 1000
"""Number of examples that are tokenised together."""


class Encoder:
    """Tokenises examples for one model.

    In the plain form, a prompt is head, body and tail, and a target ends with the end-of-sequence token. With
    the chat template, it renders the prompt from all messages but the last, and the target, with its
    end-of-turn marker, from the last message.

    Args:
        tokenizer: The model's tokenizer.
        encoder_decoder: Whether the model has an encoder; otherwise it is decoder-only.
        max_input: Most tokens of a prompt, special tokens included.
        max_target: Most tokens of a target, its end included.
        chat_template: Whether the chat template renders both; "one turn" renders as an earlier kifuse did.

    Attributes:
        stops: Token ids of everything that ends an answer; the first entry ends an answer of text.

    Raises:
        ModelError: If the tokenizer has no end-of-sequence token, or lacks a usable chat template that is
            needed.
        DataError: If a limit is too small.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        encoder_decoder: bool,
        max_input: int = 512,
        max_target: int = 128,
        chat_template: bool | Literal["one turn"] = False,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "The tokenizer has no end-of-sequence token, so a target could not end. Set eos_token."
            )
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise ModelError("The tokenizer has no chat template; set data.chat_template to false.")
        for name, value in (("max_input", max_input), ("max_target", max_target)):
            if value < 2:
                raise DataError(f"data.{name} is {value}, expected at least 2 tokens.")
        self.tokenizer: Any = tokenizer
        self.encoder_decoder = encoder_decoder
        self.max_input = max_input
        self.max_target = max_target
        kind = OneTurn if chat_template == "one turn" else ChatTemplate
        self.template = kind(tokenizer) if chat_template else None
        self.eos_id = int(self.tokenizer.eos_token_id)
        self._tokens = Tokens(tokenizer)
        self._prefix: list[int] = []
        self._suffix: list[int] = []
        if self.template is None:
            self._prefix, self._suffix = self._tokens.around()
        if not encoder_decoder:  # a prompt that generation starts from must not end with EOS
            self._suffix = []
        ends = self.template.ends if self.template else (str(self.tokenizer.eos_token),)
        self._ends = {end: self._tokens.one(end) for end in ends} | {str(tokenizer.eos_token): [self.eos_id]}
        self.stops: tuple[tuple[int, ...], ...] = tuple(dict.fromkeys(map(tuple, self._ends.values())))

    def unknown(self, example: Example, encoded: Encoded) -> bool:
        """Whether the tokenizer replaces a part of an example by its token for unknown text."""
        token, number = self.tokenizer.unk_token, self._tokens.unknown
        if number is None or (number not in encoded.input_ids and number not in encoded.target_ids):
            return False
        return token not in example.input and token not in example.target

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the chat template."""
        return self.template.notes if self.template else []

    def encode(self, example: Example) -> Encoded:
        """Tokenise one example.

        Args:
            example: The example.

        Returns:
            Its prompt and its target.

        Raises:
            DataError: If the prompt is empty, or its instruction and answer cue alone are too long.
        """
        return self.encode_many([example])[0]

    def uncut(self) -> Encoder:
        """Return the same encoder without limits, so that nothing is cut."""
        found = copy.copy(self)
        found.max_input = found.max_target = sys.maxsize
        return found

    def prompt(self, example: Example) -> list[int]:
        """Tokenise the prompt that generation starts from.

        Args:
            example: The example; its references are not used.

        Returns:
            The same ids as :attr:`Encoded.input_ids`.

        Raises:
            DataError: If the uncuttable parts of the prompt are too long, or the template refuses the chat.
        """
        asked = [self._taken(example)]
        return self._prompts(asked, self._whole_prompts(asked, []))[0][0]

    def encode_many(self, examples: Sequence[Example]) -> Sequence[Encoded]:
        """Tokenise many examples in one go; more than 10,000 stay on disk.

        Returns:
            What :meth:`encode` returns for each. A text without an input is one item with all its tokens,
            whatever the limits; :meth:`encode_pieces` splits it.

        Raises:
            DataError: If the uncuttable parts of a prompt are too long, or the template refuses a chat.
        """
        # until it has finished a call, a tokenizer keeps far more of each text than its ids
        portions = (examples[start : start + _PORTION] for start in range(0, len(examples), _PORTION))
        return held(chain.from_iterable(map(self._encode, portions)), EncodedOnDisk.of)

    def _encode(self, examples: Sequence[Example]) -> list[Encoded]:
        texts = [index for index, example in enumerate(examples) if is_text(example)]
        found = dict(zip(texts, self._whole_texts([examples[i] for i in texts]), strict=True))
        rest = [index for index in range(len(examples)) if index not in found]
        asked = [self._taken(examples[index]) for index in rest]
        turns = self._turns(asked)
        whole = self._whole_prompts(asked, turns)
        prompts, targets = self._prompts(asked, whole), self._targets(asked, turns, whole)
        for index, (ids, cut), (target, end) in zip(rest, prompts, targets, strict=True):
            room = self.max_target - len(end)
            if room < 1:
                raise DataError(
                    f"data.max_target is {self.max_target}, expected at least {len(end) + 1}: the tokens "
                    f"that end an answer are already {len(end)}."
                )
            if self._tokens.silent(target) and examples[index].target.strip():
                raise only_special(name_of(examples[index]), examples[index].target)
            found[index] = Encoded(ids, [*target[:room], *end], cut, len(target) > room)
        return [found[index] for index in range(len(examples))]

    def encode_pieces(self, examples: Sequence[Example]) -> Sequence[Encoded]:
        """Tokenise examples for training or their loss: a long text becomes several pieces and is not cut.

        Args:
            examples: The examples.

        Returns:
            As in :meth:`encode_many`, but a text without an input that is longer than both limits together
            becomes pieces; the prompt of each is the last token of the one before.
        """
        most, whole = self.max_input + self.max_target, self.encode_many(examples)
        if not any(map(is_text, examples)):
            return whole
        pairs = zip(examples, whole, strict=True)
        parts = (in_pieces(ids, most) if is_text(example) else [ids] for example, ids in pairs)
        return held(chain.from_iterable(parts), EncodedOnDisk.of)

    def seen(self, text: str) -> str:
        """Return an answer of the data as it would read among the model's outputs.

        Args:
            text: An accepted answer.

        Returns:
            The text, tokenised and decoded like an output, without its end. It is unchanged if the tokenizer
            has no token for a part of it, or if nothing of it would be left.
        """
        ids = self._tokenise_targets([self._without_end(text)])[0]
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids and self.tokenizer.unk_token not in text:
            return text
        return self._tokens.output(ids) or text

    def references(self, example: Example) -> tuple[str, ...]:
        """Return the accepted answers as they would read among the model's outputs; see :meth:`answered`.

        An answer that calls tools is represented by the template's text for it.
        """
        written = self.written(example)
        return tuple(
            self.seen(text) if text == given else text
            for text, given in zip(written, example.references, strict=True)
        )

    def written(self, example: Example) -> tuple[str, ...]:
        """Return the accepted answers as a person reads them beside the model's outputs.

        They are those of the data; an answer that calls tools is represented by the template's text.
        """
        example = self._taken(example)
        chat = example.conversation
        if self.template is None or chat is None or not chat.messages[-1].get("tool_calls"):
            return example.references
        turns = self._turns([example])
        ids = self._targets([example], turns, self._whole_prompts([example], turns))[0][0]
        return (self.answered(self._tokens.output(ids)), *example.references[1:])

    def answered(self, text: str) -> str:
        """Return the answer in a decoded output, without what the template writes before every answer."""
        return self.template.answered(text) if self.template else text

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """Return target ids without the tokens that end an answer."""
        for stop in sorted(self.stops, key=len, reverse=True):
            if tuple(ids[-len(stop) :]) == stop:
                return list(ids[: -len(stop)])
        return list(ids)

    @property
    def frame(self) -> int:
        """Most tokens that a chat template writes before the text of an answer."""
        return len(self._tokens.ids([self.template.lead])[0]) if self.template else 0

    def _without_end(self, text: str) -> str:
        if self.template is not None:
            return self.template.without_end(text)
        return without_end(text, (str(self.tokenizer.eos_token),))

    def _taken(self, example: Example) -> Example:
        return example if self.template is None else self.template.taken(example)

    def _turns(self, examples: Sequence[Example]) -> list[Turn]:
        """Render examples with the chat template; empty if no template makes the targets."""
        if self.template is None or self.encoder_decoder:
            return []
        found = []
        for example in examples:
            messages, tools = chat_of(example)
            found.append(self.template.turn(messages, tools, name_of(example)))
        return found

    def _whole_prompts(self, examples: Sequence[Example], turns: Sequence[Turn]) -> list[list[int]]:
        """Return the uncut token ids of the prompts; rendered prompts come from their turns."""
        if turns:
            return self._tokens.ids([turn.prompt for turn in turns])
        if self.template is not None:
            return self._tokens.ids([self._asked(self.template, example) for example in examples])
        plain = self._tokens.ids([example.input for example in examples])
        return [self._prefix + ids + self._suffix for ids in plain]

    def _prompts(
        self, examples: Sequence[Example], whole: Sequence[list[int]]
    ) -> list[tuple[list[int], bool]]:
        """Token ids of the prompts, and whether each was cut."""
        for example, ids in zip(examples, whole, strict=True):
            if not ids:
                raise DataError(f"{name_of(example)} has an empty input, expected text to answer.")
        long = [index for index, ids in enumerate(whole) if len(ids) > self.max_input]
        if self.template is not None:
            shortened = [self._cut_chat(self.template, examples[i], len(whole[i])) for i in long]
        else:
            shortened = self._cut([examples[index] for index in long])
        prompts = [(ids, False) for ids in whole]
        for index, ids in zip(long, shortened, strict=True):
            prompts[index] = (ids, True)
        return prompts

    def _asked(self, template: ChatTemplate, example: Example) -> str:
        messages, tools = chat_of(example)
        return template.prompt(messages[:-1], tools, name_of(example))

    def _cut(self, examples: Sequence[Example]) -> list[list[int]]:
        """Cut the middle of the prompts' bodies; head, body and tail are tokenised separately."""
        if not examples:
            return []
        heads = self._tokens.continued([example.head for example in examples], [""] * len(examples))
        bodies = self._tokens.continued(
            [example.body for example in examples], [example.head for example in examples]
        )
        tails = self._tokens.continued(
            [example.tail for example in examples], [example.head + example.body for example in examples]
        )
        shortened = []
        for example, head, body, tail in zip(examples, heads, bodies, tails, strict=True):
            start, end = self._prefix + head, tail + self._suffix
            room = self.max_input - len(start) - len(end)
            if room < 0:
                raise self._too_long(example, len(start) + len(end))
            shortened.append(start + without_middle(body, room) + end)
        return shortened

    def _cut_chat(self, template: ChatTemplate, example: Example, length: int) -> list[int]:
        """Cut the texts of a chat and apply the template again until the whole prompt fits."""
        messages, tools = chat_of(example)
        asked, where = Asked.of(example, messages[:-1]), name_of(example)
        found: list[int] = []

        def attempt(kept: list[tuple[list[int], list[int]]]) -> int:
            texts = [self._tokens.text(start) + self._tokens.text(end) for start, end in kept]
            [found[:]] = self._tokens.ids([template.prompt(asked.with_texts(texts), tools, where)])
            return len(found)

        least = shorten(self._tokens.ids(asked.texts), length, self.max_input, attempt)
        if least is not None:
            raise self._too_long(example, least)
        return found

    def _targets(
        self, examples: Sequence[Example], turns: Sequence[Turn], prompts: Sequence[list[int]]
    ) -> list[tuple[list[int], list[int]]]:
        """Return the uncut token ids of the targets, and those that end each target."""
        if not examples:
            return []
        if self.encoder_decoder:
            texts = [self._answer_text(example) for example in examples]
            return [(ids, [self.eos_id]) for ids in self._tokenise_targets(texts)]
        if self.template is not None:
            return self._chat_targets(turns, prompts)
        before = [example.input for example in examples]
        texts = [
            spaced(self._without_end(example.target), text)
            for example, text in zip(examples, before, strict=True)
        ]
        return [(ids, [self.eos_id]) for ids in self._tokens.continued(texts, before)]

    def _answer_text(self, example: Example) -> str:
        if self.template is None or example.conversation is None:
            return self._without_end(example.target)
        return self._without_end(message_text(example.conversation.messages[-1]))

    def _chat_targets(
        self, turns: Sequence[Turn], prompts: Sequence[list[int]]
    ) -> list[tuple[list[int], list[int]]]:
        whole = self._tokens.ids([turn.prompt + turn.answer for turn in turns])
        answers = [both[len(prompt) :] for prompt, both in zip(prompts, whole, strict=True)]
        # if the border is inside a token, the answer is tokenised as it continues the prompt's last character
        inside = [i for i, prompt in enumerate(prompts) if whole[i][: len(prompt)] != prompt]
        apart = self._tokens.continued([turns[i].answer for i in inside], [turns[i].prompt for i in inside])
        for index, answer in zip(inside, apart, strict=True):
            answers[index] = answer
        return [
            (answer, self._ends.get(turn.end) or self._tokens.one(turn.end))
            for turn, answer in zip(turns, answers, strict=True)
        ]

    def _tokenise_targets(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of answers on their own, without what ends them."""
        if not self.encoder_decoder:
            return self._tokens.ids(texts)
        ids = self.tokenizer(text_target=texts, verbose=False)["input_ids"]
        return [row[:-1] if row and row[-1] == self.eos_id else row for row in map(token_list, ids)]

    def _whole_texts(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode texts to continue: every token is learned, and predicted from the tokens before it."""
        if not examples:
            return []
        if self.encoder_decoder:
            raise DataError(
                f"{name_of(examples[0])} has no input. Rows of 'text' need a decoder-only model, and this "
                "one has an encoder. Give rows of 'input' and 'output'."
            )
        found = []
        for example, ids in zip(
            examples, self._tokens.ids([self._without_end(e.target) for e in examples]), strict=True
        ):
            if not ids:
                raise DataError(f"{name_of(example)} has an empty text, expected text to learn.")
            start = self.tokenizer.bos_token_id
            whole = [*([] if start is None or ids[0] == start else [int(start)]), *ids, self.eos_id]
            found.append(Encoded(whole[:1], whole[1:], cut=False))
        return found

    def _too_long(self, example: Example, needed: int) -> DataError:
        what = (
            "the instruction and the answer cue"
            if example.conversation is None
            else "the parts that are never cut"
        )
        return DataError(
            f"{name_of(example)}: {what} take {needed} tokens, but data.max_input is {self.max_input}. "
            f"Raise data.max_input above {needed}, or shorten them."
        )
