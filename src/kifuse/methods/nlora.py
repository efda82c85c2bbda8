"""N-LoRA (arXiv 2410.10179): a new LoRA pair for each task, made sparse so that tasks rarely collide.

    L = L_t + lambda sum_layers ||Delta W_t||_1,        Delta W_t = B_t A_t

This loss is used in every task, including the first; the earlier pairs are frozen and active. Delta W does
not contain the scale alpha/r.

| symbol | setting |
| --- | --- |
| lambda | `strength` |
| Delta W_t | `product`: "BA", the update (the paper), or "AB" (the authors' code) |

The authors' code multiplies the factors in the other order. A_t B_t is (r, r) instead of (out, in), needs
layers with as many inputs as outputs, and has the same nonzero eigenvalues as the update. But a small A_t B_t
does not make any entry of the update 0. The published values of lambda belong to A_t B_t.

The penalty's gradient is added once per step, after the loss's gradient was clipped, whatever the
accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, final

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import SETTINGS, Context, NotNegative
from kifuse.methods.pairs import PairPenalty, add_gradient, named_pairs
from kifuse.methods.parameters import Parameters


@final
@dataclass(kw_only=True, config=SETTINGS)
class NLoRA(PairPenalty):
    """One pair per task, with a sparse update."""

    strength: NotNegative = 1e-5
    product: Literal["BA", "AB"] = "BA"

    plain_first_task = False

    def check(self, params: Parameters) -> None:
        """Refuse layers for which A B does not exist."""
        for name, pair in named_pairs(params) if self.product == "AB" else ():
            inputs, outputs = pair.a.shape[1], pair.b.shape[0]
            if inputs != outputs:
                raise ValueError(
                    f"product: found 'AB', which needs layers with as many inputs as outputs, but {name} is "
                    f"of a layer with {inputs} inputs and {outputs} outputs; use 'BA' (the paper's), or "
                    "name square layers in model.adapter.target_modules."
                )

    @property
    def weight(self) -> float:
        """The paper's lambda."""
        return self.strength

    def parts(self, params: Parameters) -> Iterator[Tensor]:
        """Yield ||B A||_1 (or ||A B||_1) of each layer."""
        for _, pair in named_pairs(params):
            a, b = pair.a.detach().float(), pair.b.detach().float()
            yield (b @ a if self.product == "BA" else a @ b).abs().sum()

    @torch.no_grad()
    def on_gradients(self, ctx: Context) -> None:
        """Add the penalty's gradient, layer by layer."""
        for _, pair in named_pairs(ctx.params) if self.strength else ():
            a, b = pair.a.float(), pair.b.float()
            if self.product == "BA":
                # d sum |(B A)_ij| / d A = B^T S,  / d B = S A^T,  with S = sign(B A)
                signs = (b @ a).sign_()
                toward_a, toward_b = b.mT @ signs, signs @ a.mT
            else:
                # d sum |(A B)_kl| / d A = S B^T,  / d B = A^T S,  with S = sign(A B)
                signs = (a @ b).sign_()
                toward_a, toward_b = signs @ b.mT, a.mT @ signs
            add_gradient(pair.a, toward_a, self.strength)
            add_gradient(pair.b, toward_b, self.strength)
