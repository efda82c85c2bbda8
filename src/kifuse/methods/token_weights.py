"""Losses that weigh each target token by what the model thinks of it, in the hope of moving less of the rest.

    DFT     p_t CE_t                                       (arXiv 2508.05629)
    EAFT    (H_t / 3)^alpha CE_t                           (arXiv 2601.02151)
    ASFT    p_t CE_t + lambda KL(before || now)_t          (arXiv 2509.23753)

with p_t the model's probability of the gold token and H_t the entropy of its 20 most probable tokens, made to
sum to 1. Neither passes a gradient on. The sum is divided by the target tokens of the batch, as ever.

| symbol | setting |
| --- | --- |
| p_t or H_t | `weigh_by` |
| alpha | `power` |
| lambda | `anchor`; `before` is the model before the task |

DFT drops what the model finds unlikely, EAFT what it is certain of, rightly or wrongly. No figures of
continual learning were published for any of them.
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
"""Tokens that the entropy is taken over, and what it is divided by: ln 20 is 2.996."""


@final
@dataclass(kw_only=True, config=SETTINGS)
class TokenWeights(Method):
    """Cross-entropy whose tokens are weighed by probability or by entropy."""

    weigh_by: Literal["probability", "entropy"] = "probability"
    power: NotNegative = 1.0
    anchor: NotNegative = 0.0

    plain_first_task = False

    @property
    def needs(self) -> frozenset[Need]:
        """The weights before the task, for the anchor."""
        return frozenset({"before task"} if self.anchor else ())

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """The anchor's forward pass, a third of a step's work."""
        return task.steps // 3 if self.anchor else 0

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """The weighed loss, in place of the plain one."""
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
        """The weight of each target token.

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
