"""Examples to token ids: prompts that keep their instruction, targets that end."""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kifuse.errors import DataError, ModelError
from kifuse.tasks.task import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example.

    Args:
        input_ids: The prompt: what generation starts from, and what a decoder-only model reads before the
            target.
        target_ids: The target, ending with the end-of-sequence token.
        cut: Whether the prompt lost tokens from the middle of its body.
        target_cut: Whether the target lost its end.
    """

    input_ids: list[int]
    target_ids: list[int]
    cut: bool
    target_cut: bool = False

    @property
    def length(self) -> int:
        """Number of tokens of prompt and target together."""
        return len(self.input_ids) + len(self.target_ids)


class Encoder:
    """Tokenise examples for one model.

    Args:
        tokenizer: The model's tokenizer.
        encoder_decoder: Whether the model has an encoder; else it is decoder-only.
        max_input: Most tokens of a prompt, special tokens included.
        max_target: Most tokens of a target, the end-of-sequence token included.
        chat_template: Whether to wrap the prompt as a user message with the tokenizer's chat template.

    Raises:
        ModelError: If the tokenizer has no end-of-sequence token, or no chat template where one is asked for.
        DataError: If a limit is too small.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        encoder_decoder: bool,
        max_input: int = 512,
        max_target: int = 128,
        chat_template: bool = False,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "The tokenizer has no end-of-sequence token, so targets could not end; set eos_token."
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
        self.chat_template = chat_template
        self.eos_id = int(self.tokenizer.eos_token_id)
        self._prefix, self._suffix = self._special_tokens()

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
        """The same encoder without limits: nothing is cut."""
        found = copy.copy(self)
        found.max_input = found.max_target = sys.maxsize
        return found

    def prompt(self, example: Example) -> list[int]:
        """Tokenise the prompt that generation starts from.

        Args:
            example: The example; its references do not count.

        Returns:
            The same ids as :attr:`Encoded.input_ids`.

        Raises:
            DataError: If the prompt is empty, or its instruction and answer cue alone are too long.
        """
        return self._prompts([example])[0][0]

    def encode_many(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokenise many examples in one go.

        Args:
            examples: The examples.

        Returns:
            For each the same as :meth:`encode` gives.

        Raises:
            DataError: If a prompt is empty, or its instruction and answer cue alone are too long.
        """
        if not examples:
            return []
        prompts = self._prompts(examples)
        targets = self._targets(examples)
        return [
            Encoded(ids, [*target[: self.max_target - 1], self.eos_id], cut, len(target) >= self.max_target)
            for (ids, cut), target in zip(prompts, targets, strict=True)
        ]

    def _prompts(self, examples: Sequence[Example]) -> list[tuple[list[int], bool]]:
        """Token ids of the prompts, and whether each was cut."""
        if self.chat_template:
            whole = self._tokenise([self._render(example.input) for example in examples])
        else:
            plain = self._tokenise([example.input for example in examples])
            whole = [self._prefix + ids + self._suffix for ids in plain]
        for example, ids in zip(examples, whole, strict=True):
            if not ids:
                raise DataError(f"{_name(example)} has an empty input, expected text to answer.")
        long = [index for index, ids in enumerate(whole) if len(ids) > self.max_input]
        if self.chat_template:
            shortened = [self._cut_chat(examples[index], len(whole[index])) for index in long]
        else:
            shortened = self._cut([examples[index] for index in long])
        prompts = [(ids, False) for ids in whole]
        for index, ids in zip(long, shortened, strict=True):
            prompts[index] = (ids, True)
        return prompts

    def _cut(self, examples: Sequence[Example]) -> list[list[int]]:
        """Shorten prompts by the middle of their bodies; the parts are tokenised each on its own."""
        if not examples:
            return []
        heads = self._continue([example.head for example in examples], [""] * len(examples))
        bodies = self._continue(
            [example.body for example in examples], [example.head for example in examples]
        )
        tails = self._continue(
            [example.tail for example in examples], [example.head + example.body for example in examples]
        )
        shortened = []
        for example, head, body, tail in zip(examples, heads, bodies, tails, strict=True):
            start, end = self._prefix + head, tail + self._suffix
            room = self.max_input - len(start) - len(end)
            if room < 0:
                raise self._too_long(example, len(start) + len(end))
            shortened.append(start + _without_middle(body, room) + end)
        return shortened

    def _cut_chat(self, example: Example, length: int) -> list[int]:
        """Shorten the body's text and apply the chat template anew until the whole fits."""
        body = self._tokenise([example.body])[0]
        room = len(body) - (length - self.max_input)
        while room >= 0:
            kept = self._decode(body[: (room + 1) // 2]) + self._decode(body[len(body) - room // 2 :])
            ids = self._tokenise([self._render(example.head + kept + example.tail)])[0]
            if len(ids) <= self.max_input:
                return ids
            # Tokens around the cut may part differently, so the rest can be off by a few.
            room = min(room - 1, max(room - (len(ids) - self.max_input), 0)) if room else -1
        raise self._too_long(example, len(self._tokenise([self._render(example.head + example.tail)])[0]))

    def _targets(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of the targets, uncut and without the end-of-sequence token."""
        if self.encoder_decoder:
            texts = [example.target for example in examples]
            ids = self.tokenizer(text_target=texts, verbose=False)["input_ids"]
            return [row[:-1] if row and row[-1] == self.eos_id else row for row in map(list, ids)]
        if self.chat_template:
            # The template closes the prompt alike for every example.
            ending = self._render(examples[0].input)
            return self._continue([example.target for example in examples], [ending] * len(examples))
        before = [example.input for example in examples]
        texts = [_spaced(example.target, text) for example, text in zip(examples, before, strict=True)]
        return self._continue(texts, before)

    def _continue(self, texts: Sequence[str], before: Sequence[str]) -> list[list[int]]:
        """Tokenise texts as they continue others.

        Some tokenizers put a space before any text. The last character before it is tokenised along and
        dropped again, so that no such space appears in the middle.
        """
        ids = self._tokenise(list(texts))
        anchored: dict[str, list[int]] = defaultdict(list)
        for index, text in enumerate(before):
            if text and texts[index]:
                anchored[text[-1]].append(index)
        for anchor, indices in anchored.items():
            start = self._tokenise([anchor])[0]
            for index, row in zip(indices, self._tokenise([anchor + texts[i] for i in indices]), strict=True):
                # Where the character merges with the text, the text on its own is the best there is.
                if row[: len(start)] == start:
                    ids[index] = row[len(start) :]
        return ids

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        return [
            list(row) for row in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ]

    def _render(self, text: str) -> str:
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )

    def _decode(self, ids: list[int]) -> str:
        # Half a character at a cut decodes to the replacement character.
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip("\ufffd")

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text; a decoder-only prompt must not end with EOS."""
        if self.chat_template:
            return [], []
        plain = self._tokenise([_PROBE])[0]
        whole = list(self.tokenizer(_PROBE, verbose=False)["input_ids"])
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                after = whole[start + len(plain) :] if self.encoder_decoder else []
                return whole[:start], after
        raise ModelError(
            "The tokenizer gives other ids with special tokens than without; kifuse cannot use it."
        )

    def _too_long(self, example: Example, needed: int) -> DataError:
        return DataError(
            f"{_name(example)}: the instruction and the answer cue alone take {needed} tokens, "
            f"data.max_input allows {self.max_input}; raise data.max_input above {needed} or shorten the "
            f"instruction."
        )


def _spaced(target: str, before: str) -> str:
    """Put a space before a target that would otherwise stick to the prompt."""
    apart = not before or before[-1].isspace() or not target or target[0].isspace()
    return target if apart else f" {target}"


def _without_middle(ids: list[int], room: int) -> list[int]:
    if len(ids) <= room:
        return ids
    return ids[: (room + 1) // 2] + ids[len(ids) - room // 2 :]


def _name(example: Example) -> str:
    shown = example.input.strip().replace("\n", " ")[:60]
    which = f"Example {example.id}" if example.id else "Example"
    return f"{which} '{shown}…'"
