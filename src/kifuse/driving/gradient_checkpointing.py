"""Gradient checkpointing: a layer's inputs are kept, the rest is computed again in the backward pass."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

# transformers 6 knows the newer name only
_NAME = (
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)


def recomputing(on: bool) -> dict[str, Any]:
    """The Trainer's arguments for gradient checkpointing; recomputing calls the modules and their hooks."""
    return {_NAME: True, f"{_NAME}_kwargs": {"use_reentrant": False}} if on else {}


def stop_recomputing(model: Any) -> None:
    """Turn gradient checkpointing off on a model; the Trainer leaves it on."""
    getattr(model, f"{_NAME}_disable")()
