"""Adapters whose forward pass depends on the whole prompt (what the model is asked), never on its answer.

A decoder-only model reads the prompt and the answer in one sequence. To tell them apart, the adapter looks at
the following, in this order: the argument `prompt_mask`, which kifuse's own batches carry and which the
adapter takes out before the model sees it; the labels, since every token that is a target belongs to the
answer; in `generate`, the prompt that the call was given. If it has none of these, it takes the whole input
as the prompt. The encoder of an encoder-decoder model reads only the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kifuse.adapters.base import Adapter
from kifuse.errors import ModelError

IGNORED = -100


class ReadsAsked(Adapter):
    """Base of adapters that look at the prompt."""

    plain_generation = True
    reads = frozenset({"prompt_mask"})
    embed: Any
    """The model's input embeddings."""
    _encoder_decoder = False
    _own: Any = None
    """Mask of the input tokens that are not part of the answer, `(rows, tokens)`."""
    _labels: Any = None
    """Labels of the next training batch, set by `before_batch`."""
    _asked: int | None = None
    """During `generate`: the number of tokens in the prompt; otherwise None."""
    _asked_read = False
    goes_on = False
    """Whether `generate` has already read the prompt, so that what the adapter found in it still holds."""
    from_cache = False
    """Whether the present input holds only what comes after the prompt: its keys and values are cached."""

    def listen(self, model: Any, *, encoder_decoder: bool) -> Any:
        """Watch every forward pass from now on, to know which tokens are the prompt.

        Args:
            model: A transformers model.
            encoder_decoder: Whether the model is an encoder-decoder model.

        Returns:
            The module that reads the input: the encoder, or a decoder-only model without its head.
        """
        self.embed, self._encoder_decoder = model.get_input_embeddings(), encoder_decoder
        model.register_forward_pre_hook(self._find_own, with_kwargs=True)
        if encoder_decoder:
            return model.get_encoder()
        model.generate = self._by_prompt(model.generate)
        return model.base_model

    def _by_prompt(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Make a decoder-only model's `generate` tell the adapter how long the prompt is."""

        def whole(inputs: Tensor | None = None, **kwargs: Any) -> Any:
            ids = kwargs.pop("input_ids", inputs)
            self._asked, self._asked_read = ids.shape[1], False
            try:
                return generate(input_ids=ids, **kwargs)
            finally:
                self._asked = None

        return whole

    def before_batch(self, batch: Mapping[str, Any]) -> None:
        """Keep the labels for the forward pass, since a Trainer's loss may take them out of the batch."""
        self._labels = batch.get("labels")

    def _find_own(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Find the prompt tokens of a decoder-only model: those that are not targets."""
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
        """Return what the reading module gets as its input.

        Returns:
            Token ids, attention mask, and the mask of the prompt tokens, each `(rows, tokens)`. When
            `generate` continues from a cache, the ids hold no prompt tokens; see `goes_on`.

        Raises:
            ModelError: A cache is used outside of `generate`.
        """
        ids: Any = args[0] if args else kwargs.get("input_ids")
        # transformers 5.24 deprecates the older name
        cached = any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))
        if cached and not self._encoder_decoder and self._asked is None:
            raise ModelError(
                "an adapter that depends on the whole prompt cannot tell it from the answer in a cache: "
                "call the model without a cache, or its generate."
            )
        self.from_cache = cached and self.goes_on
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask[:, -ids.shape[1] :]
        return ids, mask, mask.bool() if self._own is None else mask.bool() & self._own


def mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over the tokens that are counted.

    Args:
        values: One vector for each token, `(rows, tokens, d)`.
        counted: Which tokens are counted, `(rows, tokens)`.

    Returns:
        float32, `(rows, d)`.
    """
    weight = counted[..., None].float()
    return (values.detach().float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def largest_of(values: Tensor, counted: Tensor) -> Tensor:
    """The largest value of each dimension over the counted tokens; float32, `(rows, d)`."""
    return values.detach().float().masked_fill(~counted[..., None], -torch.inf).amax(dim=1)


def in_full(tensor: Tensor) -> torch.autocast:
    """A context that turns autocast off, so that decisions between tasks are not rounded."""
    return torch.autocast(tensor.device.type, enabled=False)


def put_on(model: nn.Module, name: str, module: nn.Module) -> None:
    """Add an adapter's own module to a model, on the device of the model's embeddings."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    model.add_module(name, module.to(embeddings.weight.device))
