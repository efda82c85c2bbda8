"""DER++, dark experience replay (arXiv 2004.07211): kept examples keep what the model said to them, too.

When a task ends, the model reads each example that the memory will keep, and what it says at every target
position is stored: the log-probabilities of its K most probable tokens, and the probability of all others
together. Later tasks replay these examples, mixed into their batches as by `replay`, and

    L = 1/N [ sum_(current) CE + beta sum_(memory) CE + lambda sum_(memory) KL(stored || present) ]

with N the target tokens of the batch and the sums over target positions. KL is that of K + 1 outcomes: the K
tokens, and any other token.

| symbol | setting |
| --- | --- |
| lambda | `strength` |
| beta | `label_weight`; 0 is DER, which replays no labels |
| K | `tokens` |

The paper has images: it keeps all logits and takes their squared distance. For the tens of thousands of
tokens of a language model the KL divergence takes its place, of distributions that are a few KiB an example.
The paper fills its buffer during the task; here it is filled at its end, as for every method.
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
    """Replay with stored distributions beside the labels."""

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
        """The examples that will be kept are read once, at the task's end."""
        return frozenset({"kept"})

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Add the divergence from what is stored, on rows of the memory."""
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
        """Store what the model says to the examples that the memory will keep."""
        count = 0
        for example in ctx.kept_examples():
            ((logits, _),) = ctx.targets(example, ctx.forward(example))
            ctx.store(example, likeliest(logits, self.tokens))
            count += 1
        ctx.event("stored distributions", examples=count, tokens=self.tokens)


def likeliest(logits: Tensor, count: int) -> dict[str, Tensor]:
    """The most probable tokens of each position, and what is left.

    Args:
        logits: `(positions, vocabulary)`, float32.
        count: K; at most one less than the vocabulary is kept.

    Returns:
        `ids` int32 and `logs` float16, both `(positions, K)`, and `rest` float32 `(positions,)`, the
        logarithm of the probability of all other tokens.
    """
    logs = functional.log_softmax(logits, dim=-1)
    top, ids = logs.topk(min(count, logs.shape[-1] - 1), dim=-1)
    return {"ids": ids.to(torch.int32), "logs": top.half(), "rest": _rest(logs, ids)}


def divergence(stored: dict[str, Tensor], logits: Tensor) -> Tensor:
    """KL(stored || present) at each position, over the stored tokens and all others as one outcome.

    Args:
        stored: From `likeliest`.
        logits: The present ones, `(positions, vocabulary)`; the result is differentiable in them.

    Returns:
        `(positions,)`.
    """
    logs, ids = functional.log_softmax(logits, dim=-1), stored["ids"].long()
    present = torch.cat([logs.gather(-1, ids), _rest(logs, ids)[:, None]], dim=-1)
    # what half precision has rounded is made to sum to 1 again
    kept = torch.cat([stored["logs"].float(), stored["rest"].float()[:, None]], dim=-1).log_softmax(dim=-1)
    return functional.kl_div(present, kept, reduction="none", log_target=True).sum(dim=-1)


def _rest(logs: Tensor, ids: Tensor) -> Tensor:
    """The logarithm of the probability of all tokens but some, `(positions,)`."""
    return logs.scatter(-1, ids, float("-inf")).logsumexp(dim=-1)
