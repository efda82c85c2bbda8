"""L2P, learning to prompt (arXiv 2112.08654), for language models: each input picks its prompts from a pool.

    q(x) = mean of the frozen input embeddings of x
    prompts of x: the N of M whose keys k_m have the largest cos(q(x), k_m), put before x, N L vectors
    L = L_task - lambda mean over target tokens of sum_(m picked for x) cos(q(x), k_m)

Only the pool trains: M prompts (L, d) and M keys (d). No task id is needed, neither in training nor
afterwards.

| symbol | setting |
| --- | --- |
| M | `pool` |
| L | `length` |
| N | `picked` |
| lambda | `pull` |

A prompt starts as embeddings of random tokens, its key as the mean of the prompt with a little noise.
Published ports to language models differ: in some the mean includes padding, or the keys are never trained.
Here the paper's rule is used, except that its term is weighted by target tokens, like the rest of the loss.
In training, q reads the prompt of an example and never its answer.
"""

from __future__ import annotations

from typing import Annotated, Any, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from kifuse.adapters.asked import mean_of
from kifuse.adapters.prompts import SoftPrompts, embeddings_of_tokens
from kifuse.methods.base import SETTINGS, Method, NotNegative
from kifuse.methods.context import Batch, Context
from kifuse.methods.parameters import Parameters


class Pool(nn.Module):
    """The prompts and their keys.

    Args:
        embeddings: The model's input embeddings, `(vocabulary, d)`.
        pool: M.
        length: L.
        seed: Seed of the random tokens.
    """

    def __init__(self, embeddings: Tensor, pool: int, length: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        start = embeddings_of_tokens(embeddings, (pool, length), draw)
        noise = torch.randn(pool, start.shape[-1], generator=draw).to(start.device)
        self.prompts = nn.Parameter(start.clone())
        self.keys = nn.Parameter(start.mean(dim=1) + 0.1 * start.std() * noise)

    def pick(self, query: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the prompts with the nearest keys.

        Args:
            query: q, `(rows, d)`.
            count: N.

        Returns:
            The prompts `(rows, N L, d)`, the most similar first, and the sum of their cosines `(rows,)`.
        """
        alike = functional.cosine_similarity(query[:, None], self.keys[None], dim=-1)
        best, places = alike.topk(count, dim=-1)
        return self.prompts[places].flatten(1, 2), best.sum(dim=-1)


class PromptPool(SoftPrompts):
    """A pool of prompts; the model's own weights stay frozen."""

    place = "prompt_pool"

    alike: Any = None
    """Sum of the cosines of each row of the last input, `(rows,)`."""

    def make(self, embeddings: Tensor, seed: int) -> Pool:
        """Make the pool."""
        return Pool(embeddings, self.method.pool, self.method.length, seed)

    def vectors(self, ids: Tensor, embedded: Tensor, asked: Tensor) -> Tensor:
        """Return the prompts from the pool that fit each row's prompt best."""
        query = mean_of(embedded, asked)
        prompts, self.alike = self.model.prompt_pool.pick(query, self.method.picked)
        return prompts


@final
@dataclass(kw_only=True, config=SETTINGS)
class L2P(Method):
    """A pool of prompts; each input picks some of them."""

    pool: Annotated[int, Field(ge=1)] = 10
    length: Annotated[int, Field(ge=1)] = 5
    picked: Annotated[int, Field(ge=1)] = 3
    pull: NotNegative = 0.5

    adapter = PromptPool
    plain_first_task = False

    def check(self, params: Parameters) -> None:
        """Refuse to pick more prompts than the pool has.

        Raises:
            ValueError: `picked` is larger than `pool`.
        """
        if self.picked > self.pool:
            raise ValueError(f"method.picked: found {self.picked}, expected at most method.pool, {self.pool}")

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Pull the picked keys towards the inputs that picked them."""
        alike: Tensor = ctx.adapter.alike  # type: ignore[attr-defined]
        pulled = alike.repeat_interleave(ctx.target_counts(batch))
        return ctx.target_loss - self.pull * ctx.mean_over_targets(pulled)
