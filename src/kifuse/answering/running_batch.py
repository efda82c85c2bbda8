"""A running batch: its cache, and how tokens are appended to its rows or taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kifuse.answering.growing_caches import cache_of, row_cache, slides, use
from kifuse.answering.session import Session
from kifuse.answering.shared_starts import Starts


class CausalRows:
    """A running batch of a decoder-only model: cached keys and values, mask and next positions."""

    def __init__(
        self,
        session: Session,
        prompts: Sequence[list[int]],
        starts: Starts | None,
        which: Sequence[int] = (),
    ) -> None:
        """Read prompts.

        Args:
            session: The session of this generation.
            prompts: Token ids of the prompts; those with the most tokens beyond their start come first.
            starts: The starts of the prompts, which have been read; None if the model is to make its own
                cache.
            which: For each prompt the index of its start; if not given, all have the first of `starts`.
        """
        self._session, self._starts = session, starts
        self._which = list(which or [0] * len(prompts))
        begun = [0 if starts is None else starts.tokens[one] for one in self._which]
        rests = [prompt[count:] for prompt, count in zip(prompts, begun, strict=True)]
        ids, seen = pad_rows(rests, session.pad, left=True, device=session.device)
        rows, width = ids.shape
        self._length = width if starts is None else starts.widest(self._which) + width
        before = torch.tensor(begun, device=session.device)[:, None]
        self._positions = (before + seen.cumsum(dim=-1) - 1).clamp(min=0)
        self._next = self._positions[:, -1:] + 1
        # Columns: padding, a start, the left padded rest of its prompt, the answer.
        self._mask = seen.new_ones(rows, self._length + session.max_new)
        self._cache: Any = None if starts is None else starts.room(session, rows, self._length)
        pieces = [slice(0, rows)] if starts is None else session.pieces([len(rest) for rest in rests])
        self.logits = torch.cat([self._read(ids[part], seen[part], part) for part in pieces])
        self._starts = None  # the rows' cache now holds what the starts held
        if starts is not None:
            use(self._cache, self._length)
        self.takes_back = not slides(self._cache)

    def _read(self, ids: Tensor, seen: Tensor, part: slice) -> Tensor:
        """Read the prompts of some rows, without columns that are all padding; returns the last logits."""
        width = int(seen.sum(dim=-1).max())
        mask, cache, first = self._mask[part, : self._length], None, self._length - width
        mask[:, first:] = seen[:, -width:]
        if self._starts is not None:
            cache, begun = self._starts.put(self._which[part], self._cache, part, first)
            end, first = first, first - begun.shape[1]
            mask[:, first:end] = begun
        mask[:, :first] = 0
        positions = self._positions[part, -width:]
        logits, cache = self._forward(1, ids[:, -width:], mask[:, first:], positions, cache)
        if self._starts is None:
            self._cache = cache
        return logits[:, 0]

    def as_starts(self) -> Starts:
        """Use the prompts that were read as the starts of longer ones."""
        return Starts(self._mask[:, : self._length], self._cache)

    def _forward(
        self, columns: int, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Return the logits of the last columns, and the cache with all columns."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self._session.accepts:
            inputs["position_ids"] = positions
        if cache is not None:
            inputs[self._session.cache_name] = cache
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
            **{self._session.cache_name: self._cache},
        )
        self._cache = cache_of(out)
        return logits

    def take_back(self, columns: int) -> None:
        """Forget the last columns of all rows."""
        if columns:
            self._cache.self_attention_cache.crop(-columns)

    def keep(self, index: Tensor) -> None:
        """Go on with these rows only."""
        self._cache.batch_select_indices(index)
        self._mask, self._states = self._mask[index], self._states[index]


def pad_rows(
    rows: Sequence[list[int]], pad: int, *, left: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pad rows to one width; returns ids (rows, width) and mask (rows, width; 1 where there is text)."""
    width = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        gap, ones = [pad] * (width - len(row)), [1] * len(row)
        ids.append(gap + row if left else row + gap)
        mask.append([0] * len(gap) + ones if left else ones + [0] * len(gap))
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
