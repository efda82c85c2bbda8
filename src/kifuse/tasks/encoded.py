"""Token ids of an example, and of texts that are learned as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kifuse.tasks.task import Example

_ONE_OF_EACH: dict[int, int] = {}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one example.

    Args:
        input_ids: The prompt: the start of generation, and what a decoder-only model reads before the target.
        target_ids: The target, including the tokens that end an answer.
        cut: Whether the prompt lost tokens from the middle of its texts.
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


def token_list(ids: Iterable[int]) -> list[int]:
    """Make a list of token ids in which equal ids are one object.

    Python makes an object of 28 bytes for every number above 256 that it reads. Sharing the objects, a token
    takes 8 bytes instead of 36.
    """
    return [_ONE_OF_EACH.setdefault(each, each) for each in ids]


def is_text(example: Example) -> bool:
    """Whether an example is a text to continue, in which every token is learned."""
    return not example.input and example.conversation is None


def in_pieces(encoded: Encoded, most: int) -> list[Encoded]:
    """Split a text into pieces of at most `most` tokens; each token is learned in one of them."""
    whole = encoded.input_ids + encoded.target_ids
    return [
        Encoded(whole[start : start + 1], whole[start + 1 : start + most], cut=False)
        for start in range(0, len(whole) - 1, most - 1)
    ]


def name_of(example: Example) -> str:
    """The name of an example in messages."""
    shown = (example.input or example.target).strip().replace("\n", " ")[:60]
    which = f"Example {example.id}" if example.id else "Example"
    return f"{example.where}: " * bool(example.where) + f"{which} '{shown}…'"
