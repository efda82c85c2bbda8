"""Adapters whose forward pass depends on the whole input: on what is asked of the model, never on its answer.

A decoder-only model reads both in one sequence. What is asked is known from, in this order: the argument
`prompt_mask`, which kifuse's own batches bring along and which is taken out before the model sees it; the
labels, of which every target is answer; in `generate`, the prompt that it was given. Otherwise all of the
input is asked. The encoder of an encoder-decoder model reads nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kifuse.adapters.base import Adapter
from kifuse.errors import ModelError

IGNORED = -100


class ReadsAsked(Adapter):
    """Base of adapters that look at what is asked."""

    plain_generation = True
    reads = frozenset({"prompt_mask"})
    caches: ClassVar[bool] = False
    """Whether what was found in the prompt holds for the tokens after it, so that `generate` may cache."""

    embed: Any
    """The model's input embeddings."""
    _encoder_decoder = False
    _own: Any = None
    """Tokens of the input that are no answer, `(rows, tokens)`."""
    _labels: Any = None
    """Of the batch that is trained on next, from `before_batch`."""
    _asked: int | None = None
    """While it generates: how many tokens were asked."""
    _asked_read = False
    goes_on = False
    """Whether `generate` has read what it was asked before, so that what was found in it holds."""

    def listen(self, model: Any, *, encoder_decoder: bool) -> Any:
        """Find out from now on what is asked.

        Args:
            model: A transformers model.
            encoder_decoder: The kind of model.

        Returns:
            What reads the input: its encoder, or all of a decoder-only model but its head.
        """
        self.embed, self._encoder_decoder = model.get_input_embeddings(), encoder_decoder
        model.register_forward_pre_hook(self._find_own, with_kwargs=True)
        if encoder_decoder:
            return model.get_encoder()
        model.generate = self._by_prompt(model.generate)
        return model.base_model

    def _by_prompt(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Let a decoder-only model generate by what it was asked alone."""

        def whole(inputs: Tensor | None = None, **kwargs: Any) -> Any:
            ids = kwargs.pop("input_ids", inputs)
            self._asked, self._asked_read = ids.shape[1], False
            try:
                return generate(input_ids=ids, **(kwargs if self.caches else {**kwargs, "use_cache": False}))
            finally:
                self._asked = None

        return whole

    def before_batch(self, batch: Mapping[str, Any]) -> None:
        """Keep the labels for the forward pass, since a Trainer's loss function may take them out."""
        self._labels = batch.get("labels")

    def _find_own(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Find out which tokens of a decoder-only model are asked: those that are no targets."""
        given, labels, ids = kwargs.pop("prompt_mask", None), kwargs.get("labels"), kwargs.get("input_ids")
        labels = self._labels if labels is None else labels
        self._own = self._labels = None
        self.goes_on = self._asked is not None and self._asked_read
        self._asked_read = self._asked is not None
        if self._encoder_decoder or ids is None:
            return args, kwargs
        if given is not None:
            self._own = given.bool()
        elif labels is not None:
            targets = functional.pad(labels != IGNORED, (ids.shape[1] - labels.shape[1], 0))
            self._own = ~targets
        elif self._asked is not None:
            self._own = (torch.arange(ids.shape[1], device=ids.device) < self._asked).expand_as(ids)
        return args, kwargs

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """What the reader is given.

        Returns:
            Token ids, mask and which tokens are asked, each `(rows, tokens)`. Where `generate` goes on from a
            cache these are none of those that it was asked, see `goes_on`.

        Raises:
            ModelError: A cache is used outside of `generate`.
        """
        ids: Any = args[0] if args else kwargs.get("input_ids")
        # the older name is deprecated since transformers 5.24
        cached = any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))
        if cached and not self._encoder_decoder and (not self.caches or self._asked is None):
            raise ModelError(
                "an adapter that depends on the whole input reads it anew for each token: "
                "call the model without a cache, or its generate."
            )
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask[:, -ids.shape[1] :]
        return ids, mask, mask.bool() if self._own is None else mask.bool() & self._own


def mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over the tokens that count.

    Args:
        values: Of each token, `(rows, tokens, d)`.
        counted: Which tokens count, `(rows, tokens)`.

    Returns:
        float32, `(rows, d)`.
    """
    weight = counted[..., None].float()
    return (values.detach().float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def largest_of(values: Tensor, counted: Tensor) -> Tensor:
    """The largest value of each dimension over the tokens that count; float32, `(rows, d)`."""
    return values.detach().float().masked_fill(~counted[..., None], -torch.inf).amax(dim=1)


def in_full(tensor: Tensor) -> torch.autocast:
    """A context in which matrix products are not rounded, for what decides between tasks."""
    return torch.autocast(tensor.device.type, enabled=False)


def put_on(model: nn.Module, name: str, module: nn.Module) -> None:
    """Give a model a module of an adapter's own, where its embeddings are."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    model.add_module(name, module.to(embeddings.weight.device))
