"""ELLA (arXiv 2601.02232): a new LoRA pair for each task, kept off the entries that earlier tasks changed.

    L = L_t + lambda sum_layers ||Delta W_t * W_past||_F^2,  Delta W_t = B_t A_t,  W_past = sum_{i<t} B_i A_i

where * multiplies entry by entry. The penalty starts with the second task; the earlier pairs are frozen and
active. W_past is computed from the stored factors for one layer at a time, and never kept.

| symbol | setting |
| --- | --- |
| lambda | `strength` |
| | `normalise`: W_past divided by the root mean square of its layer's entries |

It is not known whether the authors' Delta W contains the scale alpha/r; here it does not. If it did, lambda
would have to be divided by (alpha/r)^4, or by (alpha/r)^2 where W_past is normalised.

The penalty's gradient is added once per step, after the loss's gradient was clipped, whatever the
accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import SETTINGS, Context, NotNegative
from kifuse.methods.pairs import Pair, PairPenalty, add_gradient, named_pairs
from kifuse.methods.parameters import Parameters


@final
@dataclass(kw_only=True, config=SETTINGS)
class ELLA(PairPenalty):
    """One pair per task, whose update is kept small where the earlier updates are large."""

    strength: NotNegative = 1e4
    normalise: bool = False

    plain_first_task = True

    @property
    def weight(self) -> float:
        """The paper's lambda."""
        return self.strength

    def parts(self, params: Parameters) -> Iterator[Tensor]:
        """Yield ||Delta W_t * W_past||_F^2 of each layer."""
        for a, b, past, _ in self._layers(params):
            yield (b @ a).mul_(past).square_().sum()

    def _layers(self, params: Parameters) -> Iterator[tuple[Tensor, Tensor, Tensor, Pair]]:
        """Yield A, B and W_past (out, in) of each layer; only one W_past exists at a time."""
        for _, pair in named_pairs(params):
            if pair.past_a is not None and pair.past_b is not None:
                past = pair.past_b.float() @ pair.past_a.float()
                if self.normalise:
                    size = past.square().mean().sqrt()
                    past = torch.where(size > 0, past / size, 0.0)
                yield pair.a.detach().float(), pair.b.detach().float(), past, pair

    @torch.no_grad()
    def on_gradients(self, ctx: Context) -> None:
        """Add the penalty's gradient, layer by layer."""
        if not self.strength:
            return
        for a, b, past, pair in self._layers(ctx.params):
            # d ||(B A) * W||_F^2 / d (B A) = 2 (B A) * W * W
            slope = (b @ a).mul_(past).mul_(past).mul_(2.0)
            add_gradient(pair.a, b.mT @ slope, self.strength)
            add_gradient(pair.b, slope @ a.mT, self.strength)
