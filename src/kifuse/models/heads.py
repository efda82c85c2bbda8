"""Whether a model's logits at a position predict the token there, or the next one."""

from __future__ import annotations

from typing import Any

from transformers.models.auto import modeling_auto


def is_aligned(model: Any) -> bool:
    """Whether the logits at a position predict that position's own label, not the next one.

    This is so for encoder-decoder models, which shift the labels inside, for masked language models, and for
    models that classify tokens. A decoder-only language model predicts the next token.

    Args:
        model: A model, with or without adapters.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return True
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = type(base).__name__
    if own in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return False
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    tokens = modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
    return own in {*masked.values(), *tokens.values()}
