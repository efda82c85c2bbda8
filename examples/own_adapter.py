"""A method that changes the forward pass, with its adapter, in one short file.

    kifuse compare CONFIG.yaml --methods sequential,own_adapter:Shifting

One vector is added to every input embedding, and only that vector is trained. This is of no practical use. It
shows what an adapter must do: put its parameters on the model, hook them into the forward pass, and freeze
everything else.
"""

from __future__ import annotations

from typing import Any, final

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

import kifuse
from kifuse.adapters.base import attached
from kifuse.methods.base import SETTINGS, NotNegative


class Shift(kifuse.Adapter):
    """A trained vector, added to the input embeddings."""

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Put the vector on the model. It is zero at first, so the model computes the same as before."""
        model.requires_grad_(False)
        embeddings = model.get_input_embeddings()
        embeddings.shift = nn.Parameter(torch.zeros(embeddings.embedding_dim))
        embeddings.register_forward_hook(lambda layer, inputs, output: output + layer.shift)
        return attached(self, model)


@final
@dataclass(kw_only=True, config=SETTINGS)
class Shifting(kifuse.Method):
    """Trains the vector on task after task, and adds decay * |vector|^2 / 2 to the loss."""

    decay: NotNegative = 0.01

    adapter = Shift

    def loss(self, ctx: kifuse.Context, model: Any, batch: Any, outputs: Any) -> Tensor:
        """Add the penalty to the loss of the targets."""
        (vector,) = ctx.params.tensors
        return ctx.target_loss + 0.5 * self.decay * vector.square().sum()
