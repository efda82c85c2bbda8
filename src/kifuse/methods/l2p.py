"""L2P, learning to prompt (arXiv 2112.08654), for language models: each input picks its prompts from a pool.

    q(x) = mean of the frozen input embeddings of x
    prompts of x: the N of M whose keys k_m have the largest cos(q(x), k_m), put before x, N L vectors
    L = L_task - lambda mean over target tokens of sum_(m picked for x) cos(q(x), k_m)

Only the pool trains: M prompts (L, d) and M keys (d). No task id is needed, in training or afterwards.

| symbol | setting |
| --- | --- |
| M | `pool` |
| L | `length` |
| N | `picked` |
| lambda | `pull` |

Prompts begin as embeddings of random tokens, keys as the means of their prompts with a little noise.
Published ports to language models differ: in some the mean runs over padding, or the keys never learn. This
is the paper's rule, but that its term is weighed by target tokens, as everything else in the loss is. In
training q reads the prompt of an example and never its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from kifuse.adapters.base import Adapter, attached
from kifuse.errors import ModelError
from kifuse.methods.base import SETTINGS, Method, NotNegative
from kifuse.methods.context import Batch, Context
from kifuse.methods.parameters import Parameters

IGNORED = -100


class Pool(nn.Module):
    """Prompts and their keys.

    Args:
        embeddings: The model's input embeddings, `(vocabulary, d)`.
        pool: M.
        length: L.
        seed: Of the random tokens.
    """

    def __init__(self, embeddings: Tensor, pool: int, length: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(len(embeddings), (pool, length), generator=draw)
        start = embeddings[tokens.to(embeddings.device)].float()
        noise = torch.randn(pool, start.shape[-1], generator=draw).to(start.device)
        self.prompts = nn.Parameter(start.clone())
        self.keys = nn.Parameter(start.mean(dim=1) + 0.1 * start.std() * noise)

    def pick(self, query: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The prompts of the nearest keys.

        Args:
            query: q, `(rows, d)`.
            count: N.

        Returns:
            The prompts `(rows, N L, d)`, the most alike first, and the sum of their cosines `(rows,)`.
        """
        alike = functional.cosine_similarity(query[:, None], self.keys[None], dim=-1)
        best, places = alike.topk(count, dim=-1)
        return self.prompts[places].flatten(1, 2), best.sum(dim=-1)


class PromptPool(Adapter):
    """A pool of prompts; the model's own weights stay frozen."""

    plain_generation = True

    alike: Any = None
    """Sum of the cosines of each row of the last input, `(rows,)`."""
    _own: Tensor | None = None
    """Tokens of the input that are no answer, `(rows, tokens)`."""
    _asked: int | None = None
    """While it generates: how many tokens were asked."""
    _added = 0
    """Vectors that were put before the input."""

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Put a pool on the model, and prompts before what its encoder, or a decoder-only model, reads."""
        model.requires_grad_(False)
        self.embed, method = model.get_input_embeddings(), self.method
        weights = self.embed.weight
        model.prompt_pool = Pool(weights.detach(), method.pool, method.length, seed).to(weights.device)
        model.register_forward_pre_hook(self._see_labels, with_kwargs=True)
        reader = model.get_encoder() if encoder_decoder else model.base_model
        reader.register_forward_pre_hook(self._prepend, with_kwargs=True)
        if encoder_decoder:
            model.get_decoder().register_forward_pre_hook(self._widen, with_kwargs=True)
        else:
            reader.register_forward_hook(self._cut)
            model.generate = self._by_prompt(model.generate)
        return attached(self, model)

    def _by_prompt(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Let a decoder-only model generate with prompts that are picked by what it was asked alone."""

        def whole(inputs: Tensor | None = None, **kwargs: Any) -> Any:
            ids = kwargs.pop("input_ids", inputs)
            self._asked = ids.shape[1]
            try:
                return generate(input_ids=ids, **{**kwargs, "use_cache": False})
            finally:
                self._asked = None

        return whole

    def _see_labels(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out which tokens of a decoder-only model are the prompt: those that are no targets."""
        labels, ids = kwargs.get("labels"), kwargs.get("input_ids")
        self._own = None
        if labels is not None and ids is not None and not model.config.is_encoder_decoder:
            targets = functional.pad(labels != IGNORED, (ids.shape[1] - labels.shape[1], 0))
            self._own = ~targets
        elif ids is not None and self._asked is not None:
            self._own = (torch.arange(ids.shape[1], device=ids.device) < self._asked).expand_as(ids)

    def _prepend(self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.model.config.is_encoder_decoder:
            # the older name is deprecated since transformers 5.24
            if any(kwargs.get(name) is not None for name in ("cache", "past_key_values")):
                raise ModelError(
                    "an adapter of prompts reads the whole input anew for each token: "
                    "call the model without a cache, or its generate."
                )
            kwargs["use_cache"] = False
        ids = kwargs.pop("input_ids", None) if not args else args[0]
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        embedded = self.embed(ids)
        read = mask.bool() if self._own is None else mask.bool() & self._own
        weight = read[..., None].float()
        query = (embedded.detach().float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        prompts, self.alike = self.model.prompt_pool.pick(query, self.method.picked)
        self._added = prompts.shape[1]
        kwargs["inputs_embeds"] = torch.cat([prompts.to(embedded.dtype), embedded], dim=1)
        kwargs["attention_mask"] = functional.pad(mask, (self._added, 0), value=1)
        places = kwargs.get("position_ids")
        if places is not None:
            first = torch.arange(self._added, device=places.device).expand(len(places), -1)
            kwargs["position_ids"] = torch.cat([first, places + self._added], dim=1)
        return (), kwargs

    def _widen(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let a decoder look at the prompts, too."""
        mask = kwargs.get("encoder_attention_mask")
        states = kwargs.get("encoder_hidden_states")
        if mask is not None and states is not None and mask.shape[1] < states.shape[1]:
            kwargs["encoder_attention_mask"] = functional.pad(
                mask, (states.shape[1] - mask.shape[1], 0), value=1
            )
        return args, kwargs

    def _cut(self, reader: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Leave out what was computed for the prompts, so that places are those of the input again."""
        output.last_hidden_state = output.last_hidden_state[:, self._added :]
        return output


@final
@dataclass(kw_only=True, config=SETTINGS)
class L2P(Method):
    """A pool of prompts that inputs choose from."""

    pool: Annotated[int, Field(ge=1)] = 10
    length: Annotated[int, Field(ge=1)] = 5
    picked: Annotated[int, Field(ge=1)] = 3
    pull: NotNegative = 0.5

    adapter = PromptPool
    plain_first_task = False

    def check(self, params: Parameters) -> None:
        """Refuse to pick more prompts than there are.

        Raises:
            ValueError: `picked` is larger than `pool`.
        """
        if self.picked > self.pool:
            raise ValueError(f"method.picked: found {self.picked}, expected at most method.pool, {self.pool}")

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Pull the keys that were picked to what picked them."""
        alike: Tensor = ctx.adapter.alike  # type: ignore[attr-defined]
        pulled = alike.repeat_interleave(ctx.target_counts(batch))
        return ctx.target_loss - self.pull * ctx.mean_over_targets(pulled)
