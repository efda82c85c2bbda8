"""Run the model on one example at a time, without padding: its log-likelihood and its gold logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kifuse.models.loading import Backbone
from kifuse.tasks.encoding import Encoded
from tests.parity.literal import Values


class OneByOne:
    """Gradients of single examples at given values, by automatic differentiation."""

    def __init__(self, backbone: Backbone) -> None:
        self.model: Any = copy.deepcopy(backbone.model).eval()
        self.encoder_decoder = backbone.encoder_decoder

    def logits(self, theta: Values, example: Encoded) -> Tensor:
        """Return the logits of an example's target tokens, `(tokens, vocabulary)`."""
        if self.encoder_decoder:
            start = torch.tensor([[0, *example.target_ids[:-1]]])
            inputs = {"input_ids": torch.tensor([example.input_ids]), "decoder_input_ids": start}
            return torch.func.functional_call(self.model, theta, (), inputs).logits[0]
        text = {"input_ids": torch.tensor([example.input_ids + example.target_ids])}
        found = torch.func.functional_call(self.model, theta, (), text).logits[0]
        return found[len(example.input_ids) - 1 : -1]

    def log_likelihood(self, theta: Values, example: Encoded) -> Tensor:
        """Return the sum of log p over the target's tokens."""
        rows = zip(self.logits(theta, example), example.target_ids, strict=True)
        return torch.stack([row.log_softmax(-1)[token] for row, token in rows]).sum()

    def gold_logits(self, theta: Values, example: Encoded) -> Tensor:
        """Return the sum of the gold tokens' logits."""
        rows = zip(self.logits(theta, example), example.target_ids, strict=True)
        return torch.stack([row[token] for row, token in rows]).sum()

    def gradient(self, of: Callable[[Values, Encoded], Tensor], theta: Values, example: Encoded) -> Values:
        """Return the gradient of one of these functions, by the parameters' names."""
        leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
        grads = torch.autograd.grad(of(leaves, example), list(leaves.values()))
        return dict(zip(leaves, grads, strict=True))
