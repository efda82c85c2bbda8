"""LoRA pairs of all tasks, weighted for each input by its prompt.

    y = W x + s sum_i a_i B_i A_i x,        s = alpha/r

There is one vector a for the whole network. The input embeddings of the prompt decide it. It is computed once
for an input and holds for every layer and every token of the answer. The current task's pair is trained, the
pairs of earlier tasks are frozen. Neither padding nor the other rows of a batch change what a row gets.
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
    """The current task's pair in one layer, and the pairs of earlier tasks.

    Args:
        inputs: Number of columns of W.
        outputs: Number of rows of W.
        rank: r.
        scale: s.
        dropout: Share of the pairs' inputs that is set to zero in training.
        draw: Random generator for the first A.
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
        """Start a task's pair as PEFT does: A is Kaiming-uniform, B is 0."""
        # drawn on the CPU, so that it is the same on every device
        self.a.copy_(nn.init.kaiming_uniform_(torch.empty(self.a.shape), a=math.sqrt(5), generator=draw))
        self.b.zero_()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Compute s sum_i a_i B_i A_i x.

        Args:
            x: `(rows, tokens, in)`.
            weights: a, `(rows, t)`.
        """
        if len(weights) != len(x):  # beam search repeats each row several times
            weights = weights.repeat_interleave(len(x) // len(weights), dim=0)
        inner = torch.einsum("...i,tri->...tr", self.dropout(x), self.all_of("a").to(x.dtype))
        weighed = inner * weights[:, None, :, None].to(inner.dtype)
        return self.scale * torch.einsum("...tr,tor->...o", weighed, self.all_of("b").to(weighed.dtype))


class MixedLora(GrowsByTask):
    """A LoRA pair for each task beside every adapted linear layer."""

    place: ClassVar[str] = "router"
    """Name of the module on the model that computes a."""
    weights: Any = None
    """a of the last input, `(rows, t)`."""

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Put a pair beside each layer of `model.adapter.target_modules`, and the router on the model."""
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
        """Make the module that computes a; `width` is the size of the input embeddings."""
        raise NotImplementedError

    def weigh(self, embedded: Tensor, asked: Tensor) -> Tensor:
        """Compute a.

        Args:
            embedded: The input's embeddings, `(rows, tokens, d)`.
            asked: Which of the input's tokens are the prompt, `(rows, tokens)`.

        Returns:
            a as float32 `(rows, t)`, differentiable in the tensors that the router trains.
        """
        raise NotImplementedError

    def renew(self, part: Any, draw: torch.Generator) -> None:
        """Start the next task's pair, or its part of the router."""
        part.renew(draw)

    def _weigh(self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids, _, asked = self.read(args, kwargs)
        if not self.goes_on:
            self.weights = self.weigh(self.embed(ids), asked)

    def _add(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + layer.pairs(inputs[0], self.weights).to(output.dtype)
