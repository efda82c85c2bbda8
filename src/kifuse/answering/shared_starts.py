"""Starts that prompts share: each is read once, and copied to the rows of the prompts that have it.

All prompts of a task start with its instruction. Some may share a longer start, as the questions about one
text do in a reading test. Such prompts are called a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kifuse.answering.growing_caches import part_of, row_cache, slides, with_room
from kifuse.answering.session import Session

# A start of all prompts that is shorter than this is not worth a forward pass of its own.
_MIN_START = 8
# What it costs to read a family's start in a pass of its own, in tokens, beside the start's tokens. The most
# prompts in a family, which bounds the search. The share of all tokens that families must save: with less,
# the second pass and the memory for the starts are not worth it.
_APART, _MOST, _LEAST_SAVED = 32, 64, 0.25


@dataclass(frozen=True)
class Starts:
    """Some starts of prompts, and the model's cache of them.

    Attributes:
        mask: (starts, columns), 1 where there is text. The last token of a start is in the last column. All
            is 0 if the prompts share too few tokens.
        cache: Keys and values of the starts, a row for each.
    """

    mask: Tensor
    cache: Any

    @cached_property
    def tokens(self) -> list[int]:
        """How many tokens each start has."""
        return self.mask.sum(dim=1).tolist()

    @cached_property
    def _columns(self) -> list[int]:
        """How many of the last columns hold each start, gaps in it included."""
        spans = self.mask.shape[1] - self.mask.argmax(dim=1)
        return [span if count else 0 for span, count in zip(spans.tolist(), self.tokens, strict=True)]

    def widest(self, which: Sequence[int]) -> int:
        """How many columns some starts take; they all end in the same column."""
        return max(self._columns[one] for one in which)

    @classmethod
    def read(cls, session: Session, prompts: Sequence[list[int]]) -> Starts | None:
        """Run the start of all prompts once; None if the model's cache cannot have room for each row."""
        if "position_ids" not in session.accepts:
            return None
        length = _common_prefix(prompts)
        length = 0 if len(prompts) < 2 or length < _MIN_START else length
        # without a start, one token still shows what the model caches
        ids = torch.tensor([prompts[0][: max(length, 1)]], device=session.device)
        positions = torch.arange(ids.shape[1], device=session.device)[None]
        out = session.cached(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
        cache = row_cache(out)
        # The padding comes between start and rest: a sliding window would count it as text.
        return None if slides(cache) else cls(torch.full_like(ids, bool(length)), cache)

    def room(self, session: Session, rows: int, columns: int) -> Any:
        """An empty cache for that many rows and columns of prompts."""
        return with_room(self.cache, rows, columns, session.cache_type)

    def put(self, which: Sequence[int], cache: Any, rows: slice, end: int) -> tuple[Any, Tensor]:
        """Write starts into some rows of a cache with room.

        Args:
            which: For each of these rows the index of its start.
            cache: The cache of all rows.
            rows: The rows to write to.
            end: The column right after the starts, which all end together.

        Returns:
            These rows of the cache, from the first column of the widest start on, and the mask of the starts
            written.
        """
        index = torch.tensor(which, device=self.mask.device)
        last = slice(self.mask.shape[1] - self.widest(which), self.mask.shape[1])
        found = part_of(cache, rows, end - self.widest(which), self.cache, index, last)
        return found, self.mask[index, last]


def families(prompts: Sequence[list[int]], shared: int) -> list[int]:
    """Group prompts that share a start into families, so that the fewest tokens are read.

    Args:
        prompts: Token ids.
        shared: How many tokens all prompts start with; these have been read already.

    Returns:
        The family of each prompt, named by the place of its longest member. A prompt that shares nothing is a
        family of its own; so is every prompt if sharing would save too little.
    """
    order = sorted(range(len(prompts)), key=lambda place: prompts[place])
    rows = [prompts[place] for place in order]
    same = [0, *(_common_prefix(pair) for pair in pairwise(rows))]
    cost, begin = [0], [0]  # the least cost of the first so many prompts, and where their last family begins
    for end in range(1, len(rows) + 1):
        common = own = len(rows[end - 1])
        best = (cost[end - 1] + own - shared, end - 1)
        for first in range(end - 2, max(end - 1 - _MOST, -1), -1):
            common = min(common, same[first + 1])
            if common <= shared:
                break
            own += len(rows[first])
            apart = common - shared + own - (end - first) * common + _APART
            best = min(best, (cost[first] + apart, first))
        cost.append(best[0])
        begin.append(best[1])
    alone = sum(map(len, rows)) - shared * len(rows)
    if cost[-1] > (1 - _LEAST_SAVED) * alone:
        return list(range(len(prompts)))
    found, end = [0] * len(rows), len(rows)
    while end:
        members = order[begin[end] : end]
        longest = min(members, key=lambda place: (-len(prompts[place]), place))
        for place in members:
            found[place] = longest
        end = begin[end]
    return found


def stems(
    prompts: Sequence[list[int]], family: Sequence[int], shared: int
) -> tuple[list[list[int]], list[int]] | None:
    """Find the starts of the families among some prompts.

    If only one prompt of a family is here, its start is all but its last token, so that all rows go on alike.

    Args:
        prompts: Token ids.
        family: The name of each prompt's family.
        shared: How many tokens all prompts start with; these have been read already.

    Returns:
        The token ids of every start, longest first, and for each prompt the index of its start; None if no
        two prompts are of one family, or a start is no longer than `shared`.
    """
    members: dict[int, list[list[int]]] = {}
    for prompt, number in zip(prompts, family, strict=True):
        members.setdefault(number, []).append(prompt)
    if len(members) == len(prompts):
        return None
    found = {number: some[0][: _common_prefix(some)] for number, some in members.items()}
    if any(len(start) <= shared for start in found.values()):
        return None
    order = sorted(found, key=lambda number: -len(found[number]))
    places = {number: place for place, number in enumerate(order)}
    return [found[number] for number in order], [places[number] for number in family]


def _common_prefix(prompts: Sequence[list[int]]) -> int:
    """Number of leading tokens all prompts share; every prompt keeps at least one token of its own."""
    low, high = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    # What the smallest and the largest prompt share, all between them share.
    return next((place for place in range(limit) if low[place] != high[place]), limit)
