"""Caches of keys and values with spare room, so that most new tokens need no copy of the old ones.

transformers' own cache joins old and new keys into a new tensor in every step. Here each layer has one tensor
for all rows and columns of a batch: the prompts are read into it piece by piece, the answers after them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache as once
from typing import Any

import torch
from torch import Tensor

from kifuse.answering.session import OtherCacheError

# How many columns a cache grows by: room for the longest allowed answers would mostly stay empty.
_ROOM = 16


def cache_of(out: Any) -> Any:
    """The cache of a model output, which transformers before 5.24 calls `past_key_values`."""
    return (
        out["cache"] if isinstance(out, Mapping) and "cache" in out else getattr(out, "past_key_values", None)
    )


def row_cache(out: Any) -> Any:
    """The cache of a model output.

    Raises:
        OtherCacheError: If it is not made of growing keys and values for each row.
    """
    from transformers.cache_utils import (
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        EncoderDecoderCache,
    )

    cache: Any = cache_of(out)
    known = (DynamicLayer, DynamicSlidingWindowLayer, _layer_with_room())
    pair = isinstance(cache, EncoderDecoderCache)
    for part in (cache.self_attention_cache, cache.cross_attention_cache) if pair else (cache,):
        plain = type(part) is DynamicCache and not getattr(part, "offloading", False)
        layers: list[Any] = part.layers if plain else []
        if not layers or not all(type(layer) in known and layer.is_initialized for layer in layers):
            raise OtherCacheError
    return cache


def slides(cache: Any) -> bool:
    """Whether a cache forgets what has left a sliding window."""
    return any(layer.is_sliding for layer in cache.layers)


def with_room(like: Any, rows: int, columns: int, kind: torch.dtype | None) -> Any:
    """An empty cache for that many rows and columns, with room for some more columns.

    Args:
        like: A cache that shows the layers, their heads, sizes and types.
        rows: Rows of the batch.
        columns: Columns of the prompts.
        kind: The type that keys and values are rounded to; None for those of `like`.
    """

    def empty(states: Tensor) -> Tensor:
        heads, size = states.shape[1], states.shape[3]
        return states.new_empty(rows, heads, columns + _ROOM, size, dtype=kind)

    made = _layer_with_room()
    layers = [made(empty(layer.keys), empty(layer.values)) for layer in like.layers]
    return _of_layers(like, layers)


def part_of(cache: Any, rows: slice, first: int, starts: Any, which: Tensor, columns: slice) -> Any:
    """Take some rows of a cache with room, from column `first` on, and write columns of `starts` into them.

    The result shares its memory with the whole cache: what is added later is there too. The columns before
    `first` are set to zero.

    Args:
        cache: A cache with room.
        rows: The rows to take.
        first: The first column that they use.
        starts: A cache whose rows are starts.
        which: For each of these rows, the row of `starts` with its start.
        columns: The columns of `starts` to write; there may be none.
    """
    made = _layer_with_room()
    layers = []
    for layer, begun in zip(cache.layers, starts.layers, strict=True):
        # a masked column is still multiplied, by a weight of zero, so it must hold finite numbers
        layer.all_keys[rows, :, :first] = layer.all_values[rows, :, :first] = 0
        part = made(layer.all_keys[rows, :, first:], layer.all_values[rows, :, first:])
        if columns.stop > columns.start:
            part.update(*(states[:, :, columns][which] for states in (begun.keys, begun.values)))
        layers.append(part)
    return _of_layers(cache, layers)


def use(cache: Any, columns: int) -> None:
    """Let the first columns of a cache with room count as cached."""
    for layer in cache.layers:
        layer.use(columns)


def _of_layers(like: Any, layers: list[Any]) -> Any:
    made = copy.copy(like)
    made.layers = layers
    return made


@once
def _layer_with_room() -> Any:
    # made late: transformers takes seconds to import
    from transformers.cache_utils import DynamicLayer

    class LayerWithRoom(DynamicLayer):
        """One layer's keys and values: the first columns of tensors that have more columns."""

        def __init__(self, keys: Tensor, values: Tensor) -> None:
            super().__init__()
            self.all_keys, self.all_values = keys, values
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self.use(0)

        def use(self, columns: int) -> tuple[Tensor, Tensor]:
            """Let the first columns count as cached; returns them."""
            self.columns = columns
            self.keys, self.values = self.all_keys[:, :, :columns], self.all_values[:, :, :columns]
            return self.keys, self.values

        def update(
            self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor]:
            """Write new columns after those in use; returns all."""
            new = slice(self.columns, self.columns + key_states.shape[2])
            missing = new.stop - self.all_keys.shape[2]
            if missing > 0:
                self.all_keys, self.all_values = (
                    torch.nn.functional.pad(states, (0, 0, 0, max(missing, _ROOM)))
                    for states in (self.all_keys, self.all_values)
                )
            self.all_keys[:, :, new] = key_states
            self.all_values[:, :, new] = value_states
            return self.use(new.stop)

        def crop(self, tokens_to_remove: int) -> None:
            """Forget the last columns; their number is given with a minus sign."""
            self.use(self.columns + tokens_to_remove)

        def batch_select_indices(self, indices: Tensor) -> None:
            """Go on with these rows only."""
            self.all_keys, self.all_values = self.all_keys[indices], self.all_values[indices]
            self.use(self.columns)

    return LayerWithRoom
