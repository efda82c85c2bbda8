"""Losses that weight each target token by the model's prediction, in the hope of changing less of the rest.

    DFT     p_t CE_t                                       (arXiv 2508.05629)
    EAFT    (H_t / 3)^alpha CE_t                           (arXiv 2601.02151)
    ASFT    p_t CE_t + lambda KL(before || now)_t          (arXiv 2509.23753)

where p_t is the model's probability of the gold token and H_t the entropy of its 20 most probable tokens,
rescaled to sum to 1. No gradient flows through p_t or H_t in the weights. The sum is divided by the number of
target tokens in the batch, as usual.

| symbol | setting |
| --- | --- |
| p_t or H_t | `weigh_by` |
| alpha | `power` |
| lambda | `anchor`; `before` is the model before the task |

DFT gives little weight to tokens that the model finds unlikely, EAFT to tokens of which it is certain,
rightly or wrongly. No continual learning results were published for any of them.
"""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from kifuse.methods.base import SETTINGS, Method, Need, NotNegative
from kifuse.methods.context import Batch, Context, TaskInfo

LIKELIEST, SCALE = 20, 3.0
"""Number of tokens in the entropy, and the divisor of the entropy: ln 20 is 2.996."""


@final
@dataclass(kw_only=True, config=SETTINGS)
class TokenWeights(Method):
    """Cross-entropy with tokens weighted by probability or by entropy."""

    weigh_by: Literal["probability", "entropy"] = "probability"
    power: NotNegative = 1.0
    anchor: NotNegative = 0.0

    plain_first_task = False

    @property
    def needs(self) -> frozenset[Need]:
        """The weights before the task, for the anchor."""
        return frozenset({"before task"} if self.anchor else ())

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """The anchor's forward pass: a third of a step's work."""
        return task.steps // 3 if self.anchor else 0

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Return the weighted loss, instead of the plain one."""
        targets = ctx.targets(batch, outputs)
        logits, gold = torch.cat([each for each, _ in targets]), torch.cat([each for _, each in targets])
        terms = self.weights(logits, gold) * functional.cross_entropy(logits, gold, reduction="none")
        if self.anchor:
            before = torch.cat([t for t, _ in ctx.targets(batch, ctx.forward(batch, at="before task"))])
            terms = terms + self.anchor * functional.kl_div(
                logits.log_softmax(dim=-1), before.log_softmax(dim=-1), reduction="none", log_target=True
            ).sum(dim=-1)
        return ctx.mean_over_targets(terms)

    @torch.no_grad()
    def weights(self, logits: Tensor, gold: Tensor) -> Tensor:
        """Return the weight of each target token.

        Args:
            logits: `(positions, vocabulary)`.
            gold: The target tokens, `(positions,)`.

        Returns:
            `(positions,)`, without gradient.
        """
        if self.weigh_by == "probability":
            found = logits.log_softmax(dim=-1).gather(-1, gold[:, None])[:, 0].exp()
        else:
            logs = logits.topk(min(LIKELIEST, logits.shape[-1]), dim=-1).values.log_softmax(dim=-1)
            found = -(logs.exp() * logs).sum(dim=-1) / SCALE
        return found.clamp(min=0.0) ** self.power
