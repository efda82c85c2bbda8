"""What prompts start with and share: read once, and copied to the rows that go on from it.

All prompts of a task start with its instruction. Beyond that, several may ask about one text, as the
questions of a reading test do: prompts with a longer start of their own in common are a family.
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
# What reading a family's start apart costs beside its tokens, in tokens; the most prompts in a family, which
# bounds the search; and the share of all tokens that families must save to be worth a second pass, and the
# memory of what they start with beside that of their rows.
_APART, _MOST, _LEAST_SAVED = 32, 64, 0.25


@dataclass(frozen=True)
class Starts:
    """Some starts of prompts, and how the model caches them.

    Attributes:
        mask: (starts, columns), 1 where there is text, whose last token is in the last column; nothing but 0
            where the prompts share too few tokens.
        cache: Their keys and values, a row for each.
    """

    mask: Tensor
    cache: Any

    @cached_property
    def tokens(self) -> list[int]:
        """How many each has."""
        return self.mask.sum(dim=1).tolist()

    @cached_property
    def _columns(self) -> list[int]:
        """How many of the last columns hold each start, gaps in it included."""
        spans = self.mask.shape[1] - self.mask.argmax(dim=1)
        return [span if count else 0 for span, count in zip(spans.tolist(), self.tokens, strict=True)]

    def widest(self, which: Sequence[int]) -> int:
        """How many columns some starts take, all ending together."""
        return max(self._columns[one] for one in which)

    @classmethod
    def read(cls, session: Session, prompts: Sequence[list[int]]) -> Starts | None:
        """Run the start of all prompts once; None where rows cannot have room of their own in a cache."""
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
            which: The start of each of these rows.
            cache: Of all rows.
            rows: Which rows.
            end: The column before which all their starts end.

        Returns:
            What these rows have of the cache, from the first column of the widest start on, and the mask of
            what was written.
        """
        index = torch.tensor(which, device=self.mask.device)
        last = slice(self.mask.shape[1] - self.widest(which), self.mask.shape[1])
        found = part_of(cache, rows, end - self.widest(which), self.cache, index, last)
        return found, self.mask[index, last]


def families(prompts: Sequence[list[int]], shared: int) -> list[int]:
    """Which prompts are read together from a start that they share, so that the fewest tokens are read.

    Args:
        prompts: Token ids.
        shared: Tokens that all of them start with, read already.

    Returns:
        The family of each prompt, named by the place of its longest member; a prompt of no family is its
        own. All are if sharing would save too little.
    """
    order = sorted(range(len(prompts)), key=lambda place: prompts[place])
    rows = [prompts[place] for place in order]
    same = [0, *(_common_prefix(pair) for pair in pairwise(rows))]
    cost, begin = [0], [0]  # the least for so many prompts, and where their last family begins
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
    """The starts of the families among some prompts.

    A prompt whose family is elsewhere has all but its last token for a start, so that all rows go on alike.

    Args:
        prompts: Token ids.
        family: The name of each one's family.
        shared: Tokens that all prompts start with, read already.

    Returns:
        Every start's token ids, longest first, and which of them each prompt has; None if no two prompts are
        of one family, or one has a single token beyond `shared`.
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
