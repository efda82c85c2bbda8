"""MoE-LoRA: several LoRA experts in each adapted layer, and a router that weights them token by token.

    y = W x + s sum_e G(x)_e B_e A_e x,        G(x) = softmax(W_g x),        s = alpha/r

All experts and the router train on every task. Nothing is done against forgetting, except that tokens of
other tasks may use other experts. With `top_k` only a token's largest gates are used, rescaled so that they
sum to 1.

| symbol | setting |
| --- | --- |
| number of experts e | `experts` |
| experts of a token | `top_k`; 0: all of them |
| r, alpha, dropout, adapted layers | `model.adapter` |

In the papers' tables there are as many experts as tasks; no code for continual learning was published. The
contrastive term of the paper that gave the method its name (arXiv 2402.12851) is left out. The mixture
depends on the input, so it cannot be merged into W and is not a standard PEFT adapter.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from kifuse.adapters.base import Adapter, attached
from kifuse.adapters.places import linear_layers, target_modules
from kifuse.methods.base import SETTINGS, Method


class Experts(nn.Module):
    """The experts and the router of one layer.

    Args:
        inputs: Number of columns of W.
        outputs: Number of rows of W.
        experts: Number of experts, E.
        rank: r of each expert.
        scale: s.
        top_k: Number of experts that a token uses; 0 for all.
        dropout: Share of the experts' inputs that is set to zero in training.
    """

    def __init__(
        self, inputs: int, outputs: int, *, experts: int, rank: int, scale: float, top_k: int, dropout: float
    ) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(experts, rank, inputs))
        self.b = nn.Parameter(torch.zeros(experts, outputs, rank))
        self.router = nn.Parameter(torch.empty(experts, inputs))
        self.scale, self.top_k, self.dropout = scale, top_k, nn.Dropout(dropout)
        for expert in self.a:
            nn.init.kaiming_uniform_(expert, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.router, a=math.sqrt(5))

    def gates(self, x: Tensor) -> Tensor:
        """Compute G(x): the weight of each expert, `(..., E)` in float32; the weights sum to 1."""
        gates = functional.linear(x.float(), self.router.float()).softmax(dim=-1)
        if not 0 < self.top_k < gates.shape[-1]:
            return gates
        kept, places = gates.topk(self.top_k, dim=-1)
        return torch.zeros_like(gates).scatter(-1, places, kept / kept.sum(dim=-1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """Compute s sum_e G(x)_e B_e A_e x, for inputs `(..., in)`."""
        inner = torch.einsum("...i,eri->...er", self.dropout(x), self.a.to(x.dtype))
        weighed = inner * self.gates(x).to(inner.dtype)[..., None]
        return self.scale * torch.einsum("...er,eor->...o", weighed, self.b.to(weighed.dtype))


class RoutedLora(Adapter):
    """Experts beside every adapted linear layer."""

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Put experts beside the layers of `model.adapter.target_modules`, and freeze everything else."""
        model.requires_grad_(False)
        settings, method = self.settings, self.method
        torch.manual_seed(seed)
        for layer in linear_layers(model, target_modules(model, settings.target_modules)):
            layer.experts = Experts(
                layer.in_features,
                layer.out_features,
                experts=method.experts,
                rank=settings.rank,
                scale=settings.alpha / settings.rank,
                top_k=method.top_k,
                dropout=settings.dropout,
            ).to(layer.weight.device)
            layer.register_forward_hook(_add_experts)
        return attached(self, model)


def _add_experts(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    added: Tensor = layer.experts(inputs[0])  # type: ignore[operator]
    return output + added.to(output.dtype)


@final
@dataclass(kw_only=True, config=SETTINGS)
class MoELoRA(Method):
    """A mixture of LoRA experts that is trained on one task after another."""

    experts: Annotated[int, Field(ge=1)] = 4
    top_k: Annotated[int, Field(ge=0)] = 0

    adapter = RoutedLora
