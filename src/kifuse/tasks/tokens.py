"""Texts to token ids by a model's tokenizer, without the tokens that it puts around every text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kifuse.errors import ModelError
from kifuse.tasks.encoded import token_list

_PROBE = "probe"


class Tokens:
    """A tokenizer, for texts that stand by themselves and for texts that continue others.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts, each by itself."""
        if not texts:
            return []
        found = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [token_list(row) for row in found]

    def continued(self, texts: Sequence[str], before: Sequence[str]) -> list[list[int]]:
        """Tokenise texts as they continue others.

        Some tokenizers put a space before any text. The last character before it is tokenised along and
        dropped again, so that no such space appears in the middle.
        """
        ids = self.ids(texts)
        anchored: dict[str, list[int]] = defaultdict(list)
        for index, text in enumerate(before):
            if text and texts[index]:
                anchored[text[-1]].append(index)
        for anchor, indices in anchored.items():
            start = self.ids([anchor])[0]
            for index, row in zip(indices, self.ids([anchor + texts[i] for i in indices]), strict=True):
                # Where the character merges with the text, the text on its own is the best there is.
                if row[: len(start)] == start:
                    ids[index] = row[len(start) :]
        return ids

    def one(self, text: str) -> list[int]:
        """Tokenise a text that may be a token of its own, such as what ends an answer."""
        number = self._tokenizer.convert_tokens_to_ids(text)
        unknown = number is None or (
            number == self._tokenizer.unk_token_id and text != self._tokenizer.unk_token
        )
        return self.continued([text], ["a"])[0] if unknown else [int(str(number))]

    def text(self, ids: Sequence[int]) -> str:
        """Decode a part of a text, special tokens included."""
        # Half a character at a cut decodes to the replacement character.
        return self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False).strip("\ufffd")

    def output(self, ids: Sequence[int]) -> str:
        """Decode what a model has generated: without special tokens, and without space around it."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text.

        Raises:
            ModelError: It gives other ids with special tokens than without.
        """
        plain = self.ids([_PROBE])[0]
        whole = list(self._tokenizer(_PROBE, verbose=False)["input_ids"])
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        raise ModelError(
            "The tokenizer gives other ids with special tokens than without; kifuse cannot use it."
        )
