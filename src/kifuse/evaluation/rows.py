"""A running batch: what it has in its cache, and how tokens are appended to its rows or taken back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kifuse.evaluation.session import OtherCacheError, Session

# A shared prefix shorter than this is not worth a forward pass of its own.
_MIN_SHARED_PREFIX = 8


class CausalRows:
    """A running batch of a decoder-only model: cached keys and values, mask and next positions."""

    def __init__(self, session: Session, prompts: Sequence[list[int]], prefix: SharedPrefix | None) -> None:
        self._session = session
        shared = prefix.length if prefix is not None else 0
        rests = [prompt[shared:] for prompt in prompts]
        ids, seen = pad_rows(rests, session.pad, left=True, device=session.device)
        rows, width = ids.shape
        # Columns: the shared prefix, the left padded rest of the prompts, room for what will be generated.
        self._mask = seen.new_ones(rows, shared + width + session.max_new)
        self._mask[:, shared : shared + width] = seen
        self._length = shared + width
        self._positions = (shared + seen.cumsum(dim=-1) - 1).clamp(min=0)
        self._next = self._positions[:, -1:] + 1
        some = session.rows_at_once(rows, width)
        parts = [self._read(ids, range(at, min(at + some, rows)), prefix) for at in range(0, rows, some)]
        if len(parts) > 1 and _slides(parts[0][1]):
            parts = [self._read(ids, range(rows), prefix)]
        self.logits = torch.cat([logits for logits, _ in parts])
        self._cache = _joined([cache for _, cache in parts], shared)
        self.takes_back = not _slides(self._cache)

    def _read(self, ids: Tensor, rows: range, prefix: SharedPrefix | None) -> tuple[Tensor, Any]:
        """Read the prompts of some rows, without columns that are padding in all of them."""
        part = slice(rows.start, rows.stop)
        shared = self._length - ids.shape[1]
        gap = int(self._mask[part, shared : self._length].sum(dim=-1).max())
        rest = slice(ids.shape[1] - gap, None)
        mask = self._mask[part, : self._length]
        mask = torch.cat([mask[:, :shared], mask[:, shared:][:, rest]], dim=-1)
        cache = prefix.expand(len(rows)) if prefix is not None else None
        logits, cache = self._forward(1, ids[part, rest], mask, self._positions[part, rest], cache)
        return logits[:, 0], cache

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
        return logits, _row_cache(out)

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
        self._cache = _row_cache(out)
        self.takes_back = not _slides(self._cache.self_attention_cache)

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
class SharedPrefix:
    """Keys and values, for one row, of the tokens that all prompts of a call start with."""

    length: int
    cache: Any

    @classmethod
    def compute(cls, session: Session, prompts: Sequence[list[int]]) -> SharedPrefix | None:
        """Run the common prefix once; None where there is none or where it could not be used."""
        length = _common_prefix(prompts)
        if len(prompts) < 2 or length < _MIN_SHARED_PREFIX or "position_ids" not in session.accepts:
            return None
        ids = torch.tensor([prompts[0][:length]], device=session.device)
        positions = torch.arange(length, device=session.device)[None]
        out = session.cached(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
        cache = _row_cache(out)
        # The padding comes between prefix and rest: a sliding window would count it as text.
        return None if _slides(cache) else cls(length, cache)

    def expand(self, rows: int) -> Any:
        """A cache for that many rows, of views: a cache grows by copying, so the prefix stays as it is."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
        return cache


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


def _row_cache(out: Any) -> Any:
    """The cache of a model output, if it is made of growing keys and values for each row."""
    from transformers.cache_utils import (
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        EncoderDecoderCache,
    )

    cache: Any = getattr(out, "past_key_values", None)
    pair = isinstance(cache, EncoderDecoderCache)
    parts = (cache.self_attention_cache, cache.cross_attention_cache) if pair else (cache,)
    for part in parts:
        known = type(part) is DynamicCache and not getattr(part, "offloading", False)
        if not known or any(
            type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in part.layers
        ):
            raise OtherCacheError
    return cache


def _slides(cache: Any) -> bool:
    """Whether a cache forgets what has left a sliding window."""
    return any(layer.is_sliding for layer in cache.layers)


def _joined(caches: list[Any], shared: int) -> Any:
    """One cache of the rows of several, whose columns after the first `shared` are padded on the left."""
    whole = caches[0]
    if len(caches) > 1:
        for layer, *others in zip(*(cache.layers for cache in caches), strict=True):
            parts = [layer, *others]
            width = max(part.keys.shape[2] for part in parts)
            layer.keys = torch.cat([_widened(part.keys, shared, width) for part in parts])
            layer.values = torch.cat([_widened(part.values, shared, width) for part in parts])
    return whole


def _widened(states: Tensor, shared: int, width: int) -> Tensor:
    """Keys or values (rows, heads, columns, size) with zeros, which are masked, after `shared` columns."""
    if states.shape[2] == width:
        return states
    gap = states.new_zeros(*states.shape[:2], width - states.shape[2], states.shape[3])
    return torch.cat([states[:, :, :shared], gap, states[:, :, shared:]], dim=2)
