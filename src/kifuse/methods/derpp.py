"""DER++, dark experience replay (arXiv 2004.07211): stores the model's predictions with the kept examples.

When a task ends, the model reads each example that the memory will keep. At every target position its
prediction is stored: the log-probabilities of its K most probable tokens, and the total probability of all
others. Later tasks mix these examples into their batches, as `replay` does, with the loss

    L = 1/N [ sum_(current) CE + beta sum_(memory) CE + lambda sum_(memory) KL(stored || present) ]

where N is the number of target tokens in the batch and the sums run over target positions. KL has K + 1
outcomes: the K tokens, and any other token.

| symbol | setting |
| --- | --- |
| lambda | `strength` |
| beta | `label_weight`; 0 is DER, which replays no labels |
| K | `tokens` |

The paper works on images: it keeps all logits and uses their squared distance. A language model has tens of
thousands of tokens, so the KL divergence is used instead, between distributions that take a few KiB per
example. The paper fills its buffer during the task; here it is filled at the end of the task, as for every
method.
"""

from __future__ import annotations

from typing import Annotated, Any, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from kifuse.methods.base import SETTINGS, Method, Need, NotNegative, OldData
from kifuse.methods.context import Batch, Context


@final
@dataclass(kw_only=True, config=SETTINGS)
class DERPP(Method):
    """Replay with stored distributions in addition to the labels."""

    strength: NotNegative = 1.0
    label_weight: NotNegative = 1.0
    tokens: Annotated[int, Field(ge=1)] = 64

    plain_first_task = False

    @property
    def old_data(self) -> OldData:
        """Memory examples are mixed into the current task's batches."""
        return "mixed"

    @property
    def needs(self) -> frozenset[Need]:
        """The method reads the examples that will be kept once, at the end of the task."""
        return frozenset({"kept"})

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Add the divergence from the stored distributions, for rows of the memory."""
        total, terms = ctx.target_loss, []
        stored = ctx.stored(batch)
        if not any(stored):
            return total
        for kept, (logits, gold) in zip(stored, ctx.targets(batch, outputs), strict=True):
            if kept:
                terms.append(self.strength * divergence(kept, logits))
                if self.label_weight != 1.0:
                    again = functional.cross_entropy(logits, gold, reduction="none")
                    terms.append((self.label_weight - 1.0) * again)
        return total + ctx.mean_over_targets(torch.cat(terms))

    @torch.no_grad()
    def end_task(self, ctx: Context) -> None:
        """Store the model's predictions for the examples that the memory will keep."""
        count = 0
        for example in ctx.kept_examples():
            ((logits, _),) = ctx.targets(example, ctx.forward(example))
            ctx.store(example, likeliest(logits, self.tokens))
            count += 1
        ctx.event("stored distributions", examples=count, tokens=self.tokens)


def likeliest(logits: Tensor, count: int) -> dict[str, Tensor]:
    """Return the most probable tokens of each position, and the probability of all others.

    Args:
        logits: `(positions, vocabulary)`, float32.
        count: K; limited to one less than the vocabulary.

    Returns:
        `ids` int32 and `logs` float16, both `(positions, K)`, and `rest` float32 `(positions,)`, the
        logarithm of the probability of all other tokens.
    """
    logs = functional.log_softmax(logits, dim=-1)
    top, ids = logs.topk(min(count, logs.shape[-1] - 1), dim=-1)
    return {"ids": ids.to(torch.int32), "logs": top.half(), "rest": _rest(logs, ids)}


def divergence(stored: dict[str, Tensor], logits: Tensor) -> Tensor:
    """Compute KL(stored || present) at each position; all tokens that are not stored are one outcome.

    Args:
        stored: Stored distributions, from `likeliest`.
        logits: The present logits, `(positions, vocabulary)`; the result is differentiable in them.

    Returns:
        `(positions,)`.
    """
    logs, ids = functional.log_softmax(logits, dim=-1), stored["ids"].long()
    present = torch.cat([logs.gather(-1, ids), _rest(logs, ids)[:, None]], dim=-1)
    # half precision rounds the probabilities; make them sum to 1 again
    kept = torch.cat([stored["logs"].float(), stored["rest"].float()[:, None]], dim=-1).log_softmax(dim=-1)
    return functional.kl_div(present, kept, reduction="none", log_target=True).sum(dim=-1)


def _rest(logs: Tensor, ids: Tensor) -> Tensor:
    """The logarithm of the total probability of all tokens except `ids`, `(positions,)`."""
    return logs.scatter(-1, ids, float("-inf")).logsumexp(dim=-1)
