"""MoCL (arXiv 2404.00790): a module for each task; an input mixes all modules by similarity to their keys.

    q(x)  = mean of the frozen input embeddings of x
    w     = softmax_i(tau cos(q(x), k_i)),      i = 1..t
    module of x = sum_i w_i module_i
    L     = L_task + lambda mean over target tokens of (1 - cos(q(x), k_t))

A module is a prefix of keys and values in every layer, or a LoRA pair beside every adapted layer. Only module
t and its key k_t train on task t; the others are frozen.

| symbol | setting |
| --- | --- |
| what a module is | `module` |
| places of a prefix in each layer | `length` |
| r, alpha, dropout, adapted layers of LoRA | `model.adapter` |
| tau | `sharpness` |
| lambda | `pull` |

Keys start uniformly distributed between -1 and 1.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from kifuse.adapters.asked import in_full, mean_of, put_on
from kifuse.adapters.base import Adapter
from kifuse.adapters.by_task import ByTask, GrowsByTask
from kifuse.adapters.mixed_lora import MixedLora
from kifuse.adapters.prefixes import TaskPrefixes
from kifuse.methods.base import SETTINGS, Method, NotNegative, Positive
from kifuse.methods.context import Batch, Context


class Keys(ByTask):
    """The current task's key, and those of the earlier tasks.

    Args:
        width: d.
        draw: Random generator for the first key.
    """

    key: nn.Parameter

    def __init__(self, width: int, draw: torch.Generator) -> None:
        super().__init__()
        self.add("key", torch.zeros(width))
        self.renew(draw)

    @torch.no_grad()
    def renew(self, draw: torch.Generator) -> None:
        """Start a task's key."""
        self.key.copy_(2 * torch.rand(self.key.shape, generator=draw) - 1)

    def alike(self, query: Tensor) -> Tensor:
        """Compute cos(q, k_i) for queries `(rows, d)`: `(rows, t)`."""
        return functional.cosine_similarity(query[:, None], self.all_of("key")[None], dim=-1)


class _Matching(GrowsByTask):
    """The common part of both kinds of modules: keys, and the weights computed from them."""

    alike: Any = None
    """cos(q, k_t) of each row of the last input, `(rows,)`."""

    def __init__(self, settings: Any, method: Any = None) -> None:
        super().__init__(settings, method)
        self.taken = Counter[int]()

    def weigh(self, embedded: Tensor, asked: Tensor) -> Tensor:
        """Compute the weights w of each row, `(rows, t)`."""
        with in_full(embedded):
            alike = self.model.router.alike(mean_of(embedded, asked))
            self.alike, weights = alike[:, -1], (self.method.sharpness * alike).softmax(dim=-1)
        self.count(weights.argmax(dim=1))
        return weights


class MatchedPrefixes(_Matching, TaskPrefixes):
    """Prefixes, summed with weights for each input."""

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Put prefixes and keys on the model."""
        super().attach(model, encoder_decoder=encoder_decoder, seed=seed)
        width = self.embed.weight.shape[-1]
        put_on(model, "router", Keys(width, torch.Generator().manual_seed(seed)))
        return model

    def renew(self, part: Any, draw: torch.Generator) -> None:
        """Start the next task's prefix, or its key."""
        if isinstance(part, Keys):
            part.renew(draw)
        else:
            super().renew(part, draw)

    def choose(self, ids: Tensor, embedded: Tensor, asked: Tensor) -> None:
        """Compute the weights of the prefixes."""
        if not self.goes_on:
            self._weights = self.weigh(embedded, asked)
        self._all = self.model.prefixes.all_of("prefix")

    def of_rows(self, layer: int, which: int) -> Tensor:
        """Compute sum_i w_i P_i of a layer, `(rows, L, width)`."""
        return torch.einsum("rt,tlw->rlw", self._weights.to(self._all.dtype), self._all[:, layer, which])


class MatchedLora(_Matching, MixedLora):
    """LoRA pairs, summed with weights for each input."""

    def router(self, width: int, draw: torch.Generator) -> Keys:
        """Make the keys."""
        return Keys(width, draw)


@final
@dataclass(kw_only=True, config=SETTINGS)
class MoCL(Method):
    """A module and a key for each task; the keys decide how each input mixes all modules."""

    module: Literal["prefix", "lora"] = "prefix"
    length: Annotated[int, Field(ge=1)] = 50
    sharpness: Positive = 8.0
    pull: NotNegative = 1.0

    plain_first_task = False

    @property
    def adapter(self) -> type[Adapter]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The class for prefixes, or for LoRA pairs."""
        return MatchedPrefixes if self.module == "prefix" else MatchedLora

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Pull the current task's key towards the task's inputs."""
        alike: Tensor = ctx.adapter.alike  # type: ignore[attr-defined]
        apart = (1.0 - alike).repeat_interleave(ctx.target_counts(batch))
        return ctx.target_loss + self.pull * ctx.mean_over_targets(apart)
