"""O-LoRA (arXiv 2310.14152): a new LoRA pair for each task, whose A is kept orthogonal to earlier ones.

    L = L_t + lambda1 sum_layers sum_{i<t} |A_i A_t^T| + lambda2 sum_layers (||A_t||_F + ||B_t||_F)

|.| is the sum of the squares of the entries (the paper) or of their absolute values (the authors' code). Both
penalties act from the second task on; the earlier pairs are frozen and active.

| symbol | setting |
| --- | --- |
| lambda1 | `orthogonality` |
| lambda2 | `norm` |
| the sum over entries | `penalty` |

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
from kifuse.methods.pairs import Pair, PairPenalty, add_gradient, named_pairs
from kifuse.methods.parameters import Parameters


@final
@dataclass(kw_only=True, config=SETTINGS)
class OLoRA(PairPenalty):
    """One pair per task; a penalty keeps it orthogonal to the earlier pairs."""

    orthogonality: NotNegative = 0.5
    penalty: Literal["squares", "absolute"] = "squares"
    norm: NotNegative = 0.0

    plain_first_task = True

    @property
    def weight(self) -> float:
        """The paper's lambda1."""
        return self.orthogonality

    def parts(self, params: Parameters) -> Iterator[Tensor]:
        """Yield sum_{i<t} |A_i A_t^T| of each layer."""
        for _, _, overlap in self._overlaps(params):
            yield overlap.square().sum() if self.penalty == "squares" else overlap.abs().sum()

    def _overlaps(self, params: Parameters) -> Iterator[tuple[Pair, Tensor, Tensor]]:
        """Yield each layer's pair, its stored A (t r, in), and m = A_past A_t^T (t r, r)."""
        for _, pair in named_pairs(params):
            if pair.past_a is not None:
                past_a = pair.past_a.float()
                yield pair, past_a, past_a @ pair.a.detach().float().mT

    @torch.no_grad()
    def on_gradients(self, ctx: Context) -> None:
        """Add the gradients of both penalties."""
        if not (self.orthogonality or self.norm):
            return
        for pair, past_a, overlap in self._overlaps(ctx.params):
            # d sum m_kl^2 / d A_t = 2 m^T A_past,  d sum |m_kl| / d A_t = sign(m)^T A_past
            slope = 2.0 * overlap if self.penalty == "squares" else overlap.sign()
            add_gradient(pair.a, slope.mT @ past_a, self.orthogonality)
            for p in (pair.a, pair.b) if self.norm else ():
                # d ||P||_F / d P = P / ||P||_F; 0 where P is 0, as B is at the start
                length = p.norm()
                add_gradient(p, torch.where(length > 0, p / length, 0.0), self.norm)

    def on_step(self, ctx: Context) -> None:
        """Log the second penalty beside the first."""
        super().on_step(ctx)
        size = self._norms(ctx.params) if ctx.logging else None
        if size is not None:
            ctx.log(norm_penalty=size, weighted_norm_penalty=self.norm * size)

    def end_task(self, ctx: Context) -> None:
        """Record both penalties; for the second only its size at the end."""
        super().end_task(ctx)
        size = self._norms(ctx.params)
        if size is not None:
            ctx.event("norm penalty", weight=self.norm, value=size, weighted=self.norm * size)

    @torch.no_grad()
    def _norms(self, params: Parameters) -> float | None:
        """Compute sum_layers (||A_t||_F + ||B_t||_F); None if it is not part of the objective."""
        pairs = [pair for _, pair in named_pairs(params) if pair.past_a is not None]
        if not self.norm or not pairs:
            return None
        return float(torch.stack([p.float().norm() for pair in pairs for p in (pair.a, pair.b)]).sum())
