"""What a model's logits at a position speak of: the token there, or the next one."""

from __future__ import annotations

from typing import Any

from transformers.models.auto import modeling_auto


def is_aligned(model: Any) -> bool:
    """Whether the logits at a position are those of its own label, not of the next one.

    So it is for encoder-decoder models, whose labels are shifted inside, masked language models, and models
    that classify tokens. A decoder-only language model predicts the next token.

    Args:
        model: A model, with adapters or without.
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
