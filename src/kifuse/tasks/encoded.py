"""Token ids of an example, and of texts that are learned as a whole."""

from __future__ import annotations

import mmap
import tempfile
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from kifuse.tasks.on_disk import Lazy
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


class EncodedOnDisk(Lazy[Encoded]):
    """Encoded examples whose token ids stay in a memory-mapped file.

    Args:
        ids: All token ids, of 4 bytes each; any buffer.
        sizes: The numbers of tokens of the first prompt, the first target, the second prompt and so on.
        cuts: `cut` and `target_cut` of each example, one byte each.
    """

    def __init__(self, ids: Any, sizes: Iterable[int], cuts: Any) -> None:
        self.ids, self.cuts = memoryview(ids).cast("B").cast("i"), memoryview(cuts).cast("B")
        self._ends = array("q", accumulate(sizes, initial=0))

    @classmethod
    def of(cls, examples: Iterable[Encoded]) -> EncodedOnDisk:
        """Put examples into a temporary file that has no name; they are read once."""
        sizes, cuts = array("q"), bytearray()
        with tempfile.TemporaryFile() as file:
            for each in examples:
                for part in (each.input_ids, each.target_ids):
                    array("i", part).tofile(file)
                    sizes.append(len(part))
                cuts += bytes((each.cut, each.target_cut))
            file.flush()
            # a file without a byte cannot be mapped
            ids = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if any(sizes) else b""
        return cls(ids, sizes, cuts)

    @property
    def sizes(self) -> array[int]:
        """The numbers of tokens, as they were given."""
        ends = self._ends
        return array("q", (end - start for start, end in pairwise(ends)))

    def __len__(self) -> int:
        return len(self._ends) // 2

    def item(self, place: int) -> Encoded:
        """Read one example."""
        start, middle, end = self._ends[2 * place : 2 * place + 3]
        cut, target_cut = self.cuts[2 * place : 2 * place + 2]
        return Encoded(
            self.ids[start:middle].tolist(), self.ids[middle:end].tolist(), bool(cut), bool(target_cut)
        )


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
