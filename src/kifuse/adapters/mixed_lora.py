"""LoRA pairs of all tasks, weighed for each input by what is asked.

    y = W x + s sum_i a_i B_i A_i x,        s = alpha/r

with one a for the whole network, which the input embeddings of what is asked decide: it is found once for an
input, and holds for every layer and every token of its answer. The last task's pair is trained, those of
earlier tasks are frozen. Neither padding nor the other rows of a batch change what a row gets.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kifuse.adapters.asked import put_on
from kifuse.adapters.base import attached
from kifuse.adapters.by_task import ByTask, GrowsByTask
from kifuse.adapters.places import linear_layers, target_modules


class OwnPair(ByTask):
    """The pair of the present task in one layer, and those of the earlier ones.

    Args:
        inputs: Columns of W.
        outputs: Rows of W.
        rank: r.
        scale: s.
        dropout: Share of the pairs' inputs zeroed in training.
        draw: Of the first A.
    """

    a: nn.Parameter
    b: nn.Parameter

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, scale: float, dropout: float, draw: torch.Generator
    ) -> None:
        super().__init__()
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.add("a", torch.zeros(rank, inputs))
        self.add("b", torch.zeros(outputs, rank))
        self.renew(draw)

    @torch.no_grad()
    def renew(self, draw: torch.Generator) -> None:
        """Begin a task's pair as PEFT does: A Kaiming-uniform, B 0."""
        # drawn on the CPU, so that it is the same on every device
        self.a.copy_(nn.init.kaiming_uniform_(torch.empty(self.a.shape), a=math.sqrt(5), generator=draw))
        self.b.zero_()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """S sum_i a_i B_i A_i x.

        Args:
            x: `(rows, tokens, in)`.
            weights: a, `(rows, t)`.
        """
        if len(weights) != len(x):  # beams are rows that are there several times
            weights = weights.repeat_interleave(len(x) // len(weights), dim=0)
        inner = torch.einsum("...i,tri->...tr", self.dropout(x), self.all_of("a").to(x.dtype))
        weighed = inner * weights[:, None, :, None].to(inner.dtype)
        return self.scale * torch.einsum("...tr,tor->...o", weighed, self.all_of("b").to(weighed.dtype))


class MixedLora(GrowsByTask):
    """A pair for each task beside every adapted linear layer."""

    caches = True
    place: ClassVar[str] = "router"
    """Name of the module on the model that decides about a."""
    weights: Any = None
    """a of the last input, `(rows, t)`."""

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Put a pair beside each layer of `model.adapter.target_modules`, and a router on the model."""
        model.requires_grad_(False)
        settings, draw = self.settings, torch.Generator().manual_seed(seed)
        for layer in [*linear_layers(model, target_modules(model, settings.target_modules))]:
            layer.pairs = OwnPair(
                layer.in_features,
                layer.out_features,
                rank=settings.rank,
                scale=settings.alpha / settings.rank,
                dropout=settings.dropout,
                draw=draw,
            ).to(layer.weight.device)
            layer.register_forward_hook(self._add)
        reader = self.listen(model, encoder_decoder=encoder_decoder)
        put_on(model, self.place, self.router(self.embed.weight.shape[-1], draw))
        reader.register_forward_pre_hook(self._weigh, with_kwargs=True)
        return attached(self, model)

    def router(self, width: int, draw: torch.Generator) -> ByTask:
        """What decides about a; `width` is that of the input embeddings."""
        raise NotImplementedError

    def weigh(self, embedded: Tensor, asked: Tensor) -> Tensor:
        """Decide about a.

        Args:
            embedded: The input's embeddings, `(rows, tokens, d)`.
            asked: Which of its tokens are asked, `(rows, tokens)`.

        Returns:
            float32 `(rows, t)`, differentiable in what the router trains.
        """
        raise NotImplementedError

    def renew(self, part: Any, draw: torch.Generator) -> None:
        """Begin the next task's pair, or its part of the router."""
        part.renew(draw)

    def _weigh(self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids, _, asked = self.read(args, kwargs)
        if not self.goes_on:
            self.weights = self.weigh(self.embed(ids), asked)

    def _add(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + layer.pairs(inputs[0], self.weights).to(output.dtype)
