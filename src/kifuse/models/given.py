"""A model that the user has already loaded."""

from __future__ import annotations

import inspect
from typing import Any

from kifuse.errors import ModelError
from kifuse.models.loading import Backbone, pick_precision


def given_name(model: Any) -> str:
    """The name of a given model: its folder or hub id, otherwise its class."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)


def given_backbone(model: Any, tokenizer: Any, precision: str = "auto") -> Backbone:
    """Use a transformers model and its tokenizer as they are.

    Args:
        model: A causal or encoder-decoder model without an adapter; it is changed in place.
        tokenizer: Its tokenizer.
        precision: As in `load_backbone`.

    Raises:
        ModelError: There is no tokenizer, or the model has an adapter or cannot generate.
    """
    if tokenizer is None:
        raise ModelError(
            "tokenizer: found none, expected the model's tokenizer. Give tokenizer=AutoTokenizer..."
        )
    if hasattr(model, "peft_config"):
        raise ModelError(
            "model: it already has an adapter. Give the base model; kifuse adds the adapter that it trains."
        )
    if not hasattr(model, "generate") or not hasattr(model, "config"):
        raise ModelError(
            f"model: found {type(model).__name__}, expected a transformers model that generates text."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise ModelError("tokenizer: it has no end token, so an output could not end. Set eos_token.")
    device = next(model.parameters()).device
    model.config.use_cache = True
    return Backbone(
        model,
        tokenizer,
        bool(getattr(model.config, "is_encoder_decoder", False)),
        frozenset(inspect.signature(model.forward).parameters),
        pick_precision(precision, device),
        device,
        given_name(model),
    )
