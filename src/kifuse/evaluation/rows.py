"""A running batch: what it has in its cache, and how tokens are appended to its rows or taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kifuse.evaluation.caches import part_of, row_cache, slides, use, with_room
from kifuse.evaluation.session import Session

# A shared prefix shorter than this is not worth a forward pass of its own.
_MIN_SHARED_PREFIX = 8


class CausalRows:
    """A running batch of a decoder-only model: cached keys and values, mask and next positions."""

    def __init__(self, session: Session, prompts: Sequence[list[int]], start: Start | None) -> None:
        self._session = session
        shared = start.length if start is not None else 0
        rests = [prompt[shared:] for prompt in prompts]
        ids, seen = pad_rows(rests, session.pad, left=True, device=session.device)
        rows, width = ids.shape
        self._length = shared + width
        self._positions = (shared + seen.cumsum(dim=-1) - 1).clamp(min=0)
        self._next = self._positions[:, -1:] + 1
        # Columns: padding of a piece, the shared start, the left padded rest of its prompts, the answers.
        self._mask = seen.new_ones(rows, self._length + session.max_new)
        self._cache: Any = None if start is None else start.room(session, rows, self._length)
        pieces = [slice(0, rows)] if start is None else session.pieces([len(rest) for rest in rests])
        self.logits = torch.cat([self._read(ids[part], seen[part], part, start) for part in pieces])
        if start is not None:
            use(self._cache, self._length)
        self.takes_back = not slides(self._cache)

    def _read(self, ids: Tensor, seen: Tensor, part: slice, start: Start | None) -> Tensor:
        """Read the prompts of some rows, without columns that are padding in all of them; the last logits."""
        width = int(seen.sum(dim=-1).max())
        shared = start.length if start is not None else 0
        first = self._length - width - shared
        mask = self._mask[part, : self._length]
        mask[:, :first] = 0
        mask[:, first + shared :] = seen[:, -width:]
        cache = None if start is None else start.of(self._cache, part, first)
        positions = self._positions[part, -width:]
        logits, cache = self._forward(1, ids[:, -width:], mask[:, first:], positions, cache)
        if start is None:
            self._cache = cache
        return logits[:, 0]

    def _forward(
        self, columns: int, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Logits of the last columns, and the cache with all."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._session.accepts:
            inputs["position_ids"] = positions
        if cache is not None:
            inputs["past_key_values"] = cache
        logits, out = self._session.last_logits(columns, **inputs)
        return logits, row_cache(out)

    def extend(self, tokens: Tensor) -> Tensor:
        """Append tokens (rows, columns); returns the logits after each, (rows, columns, vocabulary)."""
        columns = tokens.shape[1]
        self._length += columns
        positions = self._next + torch.arange(columns, device=tokens.device)
        self._next = self._next + columns
        mask = self._mask[:, : self._length]
        logits, self._cache = self._forward(columns, tokens, mask, positions, self._cache)
        return logits

    def take_back(self, columns: int) -> None:
        """Forget the last columns of all rows."""
        if columns:
            self._cache.crop(-columns)
            self._length -= columns
            self._next = self._next - columns

    def keep(self, index: Tensor) -> None:
        """Go on with these rows only."""
        self._cache.batch_select_indices(index)
        self._mask, self._next = self._mask[index], self._next[index]


class EncoderDecoderRows:
    """A running batch of an encoder-decoder model: encoder states, and the decoder's keys and values."""

    def __init__(self, session: Session, prompts: Sequence[list[int]]) -> None:
        ids, self._mask = pad_rows(prompts, session.pad, left=False, device=session.device)
        self._session = session
        start = ids.new_full((len(prompts), 1), session.start)
        logits, out = session.last_logits(
            1, input_ids=ids, attention_mask=self._mask, decoder_input_ids=start
        )
        self.logits = logits[:, 0]
        self._states: Tensor = out.encoder_last_hidden_state
        self._cache = row_cache(out)
        self.takes_back = not slides(self._cache.self_attention_cache)

    def extend(self, tokens: Tensor) -> Tensor:
        """Append tokens (rows, columns); returns the logits after each, (rows, columns, vocabulary)."""
        from transformers.modeling_outputs import BaseModelOutput

        logits, out = self._session.last_logits(
            tokens.shape[1],
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),  # pyright: ignore[reportArgumentType]
            attention_mask=self._mask,
            decoder_input_ids=tokens,
            past_key_values=self._cache,
        )
        self._cache = out.past_key_values
        return logits

    def take_back(self, columns: int) -> None:
        """Forget the last columns of all rows."""
        if columns:
            self._cache.self_attention_cache.crop(-columns)

    def keep(self, index: Tensor) -> None:
        """Go on with these rows only."""
        self._cache.batch_select_indices(index)
        self._mask, self._states = self._mask[index], self._states[index]


@dataclass(frozen=True)
class Start:
    """What the prompts of a call start with, if anything, and how the model caches it.

    Attributes:
        length: Tokens that all prompts start with; 0 where there are too few.
        cache: Their keys and values, for one row.
    """

    length: int
    cache: Any

    @classmethod
    def read(cls, session: Session, prompts: Sequence[list[int]]) -> Start | None:
        """Run the common start once; None where rows cannot have room of their own in a cache."""
        if "position_ids" not in session.accepts:
            return None
        length = _common_prefix(prompts)
        length = 0 if len(prompts) < 2 or length < _MIN_SHARED_PREFIX else length
        # without a start, one token still shows what the model caches
        ids = torch.tensor([prompts[0][: max(length, 1)]], device=session.device)
        positions = torch.arange(ids.shape[1], device=session.device)[None]
        out = session.cached(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
        cache = row_cache(out)
        # The padding comes between start and rest: a sliding window would count it as text.
        return None if slides(cache) else cls(length, cache)

    def room(self, session: Session, rows: int, columns: int) -> Any:
        """An empty cache for that many rows and columns of prompts."""
        return with_room(self.cache, rows, columns, session.cache_type)

    def of(self, cache: Any, part: slice, first: int) -> Any:
        """What some rows have of a cache with room, the shared start put into it from column `first` on."""
        return part_of(cache, part, first, self.cache, self.length)


def _common_prefix(prompts: Sequence[list[int]]) -> int:
    """Number of leading tokens all prompts share; every prompt keeps at least one token of its own."""
    low, high = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    # What the smallest and the largest prompt share, all between them share.
    return next((place for place in range(limit) if low[place] != high[place]), limit)


def pad_rows(
    rows: Sequence[list[int]], pad: int, *, left: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids (rows, width) and mask (rows, width; 1 where there is text)."""
    width = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        gap, ones = [pad] * (width - len(row)), [1] * len(row)
        ids.append(gap + row if left else row + gap)
        mask.append([0] * len(gap) + ones if left else ones + [0] * len(gap))
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
