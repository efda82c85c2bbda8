"""Turns texts into token ids with a model's tokenizer, without the tokens that it adds around texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kifuse.errors import DataError, ModelError
from kifuse.tasks.encoded import token_list

_PROBE = "probe"


class Tokens:
    """A tokenizer, for texts on their own and for texts that continue others.

    Args:
        tokenizer: The model's tokenizer.

    Attributes:
        unknown: The token for text that the tokenizer does not know; None if no token has only this use.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        self._special = special - {tokenizer.unk_token_id}
        parts = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        self.unknown: int | None = None if tokenizer.unk_token_id in parts else tokenizer.unk_token_id

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts, each on its own."""
        if not texts:
            return []
        found = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [token_list(row) for row in found]

    def continued(self, texts: Sequence[str], before: Sequence[str]) -> list[list[int]]:
        """Tokenise texts as continuations of others.

        Some tokenizers put a space before any text. So the last character before the text is tokenised with
        it and then removed, and no such space appears in the middle.
        """
        ids = self.ids(texts)
        anchored: dict[str, list[int]] = defaultdict(list)
        for index, text in enumerate(before):
            if text and texts[index]:
                anchored[text[-1]].append(index)
        for anchor, indices in anchored.items():
            start = self.ids([anchor])[0]
            for index, row in zip(indices, self.ids([anchor + texts[i] for i in indices]), strict=True):
                # If that character merges with the text into one token, tokenising the text alone is the best
                # choice.
                if row[: len(start)] == start:
                    ids[index] = row[len(start) :]
        return ids

    def one(self, text: str) -> list[int]:
        """Tokenise a text that may be a single token, such as what ends an answer."""
        number = self._tokenizer.convert_tokens_to_ids(text)
        unknown = number is None or (
            number == self._tokenizer.unk_token_id and text != self._tokenizer.unk_token
        )
        return self.continued([text], ["a"])[0] if unknown else [int(str(number))]

    def text(self, ids: Sequence[int]) -> str:
        """Decode a part of a text, special tokens included."""
        # A character that is cut in half decodes to the replacement character.
        return self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False).strip("\ufffd")

    def output(self, ids: Sequence[int]) -> str:
        """Decode a model's output, without special tokens and without white space around it."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def silent(self, ids: Sequence[int]) -> bool:
        """Whether the ids are only special tokens and white space, so that `output` leaves nothing."""
        return (not ids or not self._special.isdisjoint(ids)) and not self.output(ids)

    def around(self) -> tuple[list[int], list[int]]:
        """Return the tokens that the tokenizer adds before and after a text.

        Raises:
            ModelError: With special tokens the tokenizer gives other ids for the text itself than without.
        """
        plain = self.ids([_PROBE])[0]
        whole = list(self._tokenizer(_PROBE, verbose=False)["input_ids"])
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        raise ModelError(
            "The tokenizer gives different ids with special tokens than without, so kifuse cannot use it."
        )


def spaced(target: str, before: str) -> str:
    """Put a space before a target that would otherwise be joined to the prompt."""
    apart = not before or before[-1].isspace() or not target or target[0].isspace()
    return target if apart else f" {target}"


def only_special(where: str, answer: str) -> DataError:
    """Make the error for an answer that would read as an empty output."""
    return DataError(
        f"{where}: the answer {answer[:60]!r} consists of special tokens only, which are not text in an "
        "output. Write the answer as text."
    )


def without_end(text: str, ends: Sequence[str]) -> str:
    """Remove all end tokens at the end of a text; other texts are unchanged."""
    found = text
    while any(found.rstrip().endswith(end) for end in ends):
        end = next(end for end in ends if found.rstrip().endswith(end))
        found = found.rstrip().removesuffix(end)
    return found
