"""Adapters added to the weights that they adapt, for generation, where that is as exact as a batch is.

In float32, W + s B A instead of W x + s B (A x) changes the last bits of a logit, as another batch does, and
no more; a layer then costs what it costs without an adapter. In bf16 the sum would be rounded to the weights'
few digits, and some answers in a hundred would change, so there adapters stay beside their layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Tokens of prompts below which adding takes longer than it saves; the most bytes of weights that are held
# twice meanwhile.
_LEAST_TOKENS, _MOST_BYTES = 1024, 2**31


@contextmanager
def merged_adapters(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Iterator[bool]:
    """Let LoRA's layers multiply with W + s B A while the block lasts; afterwards the model is what it was.

    Each layer gets another parameter for that time, and then its own one back: not a bit of it changes, and a
    weight that two modules share is changed for neither. Left alone is a model that is not on a CPU or runs
    under autocast, has other layers of PEFT than plain LoRA in float32, or whose layers would take too
    much memory twice.

    Args:
        model: A PEFT wrapper of a model, or a model without an adapter.
        prompts: What it will read, as token ids.

    Yields:
        Whether the adapters are merged.
    """
    layers = _layers(model) if sum(map(len, prompts)) >= _LEAST_TOKENS else []
    kept: list[tuple[Any, nn.Module, nn.Parameter]] = []
    try:
        for layer in layers:
            base = layer.get_base_layer()
            kept.append((layer, base, base.weight))
            base.weight = nn.Parameter(_sum(layer, base.weight), requires_grad=False)
            layer.merged_adapters = _active(layer)
        yield bool(layers)
    finally:
        for layer, base, weight in kept:
            base.weight, layer.merged_adapters = weight, []


@torch.no_grad()
def _sum(layer: Any, weight: Tensor) -> Tensor:
    """W + s B A, over all adapters that are active."""
    return sum(map(layer.get_delta_weight, _active(layer)), start=weight)


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _layers(model: nn.Module) -> list[Any]:
    """The adapted layers; none unless all can be merged."""
    if not hasattr(model, "peft_config") or torch.is_autocast_enabled("cpu"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not all(_can_be_merged(layer) for layer in layers):
        return []
    held = sum(layer.get_base_layer().weight.nbytes for layer in layers)
    return layers if held <= _MOST_BYTES else []


def _can_be_merged(layer: Any) -> bool:
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or layer.merged or layer.disable_adapters:
        return False
    active = _active(layer)
    # DoRA and its like; PEFT cannot add a bias where there is none
    if any(name in layer.lora_variant or layer.lora_bias[name] for name in active):
        return False
    # somebody watches what the adapter does
    if any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules()):
        return False
    weights = [layer.get_base_layer().weight, *(layer.lora_B[name].weight for name in active)]
    return bool(active) and all(
        type(each) is nn.Parameter
        and type(each.data) is Tensor
        and each.dtype == torch.float32
        and each.device.type == "cpu"
        for each in weights
    )
