"""Prefixes: each task's own keys and values, which every attention layer reads beside those of its input.

A prefix has L places. Each layer has its own P_K and P_V (L, width), and attends over

    K = [P_K; W_k h],        V = [P_V; W_v h]

(prefix tuning, arXiv 2101.00190). L empty vectors in front of the input hold the places; what the layers
compute for them is dropped afterwards. In an encoder-decoder model only the encoder's layers have prefixes,
and the decoder sees only the states of the input. Neither padding nor the other rows of a batch change what a
row gets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.adapters.by_task import ByTask, GrowsByTask
from kifuse.adapters.places import keys_and_values
from kifuse.adapters.prompts import SoftPrompts

SPREAD = 0.02
"""Standard deviation of a prefix's starting values."""


class OwnPrefix(ByTask):
    """The current task's prefix, and those of the earlier tasks.

    Args:
        start: Starting values of the first prefix, `(layers, 2, L, width)`: keys, then values.
    """

    prefix: nn.Parameter
    past_prefix: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.add("prefix", start)


class TaskPrefixes(GrowsByTask, SoftPrompts):
    """Prefixes of all tasks, one for each task; each has `method.length` places."""

    place = "prefixes"
    decoder_sees_them = False
    bare = False
    """Whether the model reads the input without a prefix."""
    reader: Any
    """The module that reads the input: the encoder, or a decoder-only model without its head."""
    _layers = 0
    _width = 0

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Put prefixes beside the keys and values of the encoder's, or the decoder-only model's, layers.

        Raises:
            ModelError: The model's keys and values are not found.
        """
        self.reader = model.get_encoder() if encoder_decoder else model.base_model
        pairs = keys_and_values(self.reader)
        self._layers, self._width = len(pairs), pairs[0][0].out_features
        super().attach(model, encoder_decoder=encoder_decoder, seed=seed)
        for layer, pair in enumerate(pairs):
            for which, projection in enumerate(pair):
                projection.register_forward_hook(partial(self._put, layer, which))
        return model

    def make(self, embeddings: Tensor, seed: int) -> OwnPrefix:
        """Make the first task's prefix."""
        return OwnPrefix(self._drawn(torch.Generator().manual_seed(seed)))

    def _drawn(self, draw: torch.Generator) -> Tensor:
        shape = (self._layers, 2, self.method.length, self._width)
        return SPREAD * torch.randn(shape, generator=draw, device="cpu")

    def renew(self, part: Any, draw: torch.Generator) -> None:
        """Start the next task's prefix."""
        part.prefix.copy_(self._drawn(draw))

    def vectors(self, ids: Tensor, embedded: Tensor, asked: Tensor) -> Tensor:
        """Return empty vectors, which hold the places of the prefix."""
        self.choose(ids, embedded, asked)
        return embedded.new_zeros(len(ids), self.method.length, embedded.shape[-1])

    def choose(self, ids: Tensor, embedded: Tensor, asked: Tensor) -> None:
        """Decide which prefix each row gets; see `vectors` of `SoftPrompts`."""
        raise NotImplementedError

    def of_rows(self, layer: int, which: int) -> Tensor:
        """Return the keys (`which` 0) or values (1) of a layer's prefix, for the rows of the present input.

        Returns:
            `(L, width)` for all rows, or `(rows, L, width)`.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def without(self) -> Iterator[None]:
        """A context in which the model reads the input without a prefix."""
        self.bare = True
        try:
            yield
        finally:
            self.bare = False

    def _insert(self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if self.bare else super()._insert(reader, args, kwargs)

    def _put(self, layer: int, which: int, projection: nn.Module, args: Any, output: Tensor) -> Tensor:
        if self.bare or self.from_cache:
            return output
        own = self.of_rows(layer, which).to(output.dtype).expand(len(output), -1, -1)
        return torch.cat([own, output[:, self._added :]], dim=1)

    def _cut(self, reader: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output if self.bare else super()._cut(reader, args, output)
