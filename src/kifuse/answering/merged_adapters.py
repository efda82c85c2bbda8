"""For generation, adapters are added to the weights that they adapt, where that is exact enough.

In float32, (W + s B A) x instead of W x + s B (A x) changes only the last bits of a logit, as another batch
does too. A layer then takes no more time than without an adapter. In bf16 the sum would be rounded to the few
digits of the weights, and some answers in a hundred would change, so there adapters stay beside their layers.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def adapted_layers(model: nn.Module, most_bytes: int) -> list[Any]:
    """The layers whose adapters may be added to their weights; none unless all may.

    The list is empty if the model is not on a CPU or runs under autocast, if it has other layers of PEFT than
    plain LoRA in float32, or if a hook observes what an adapter does.

    Args:
        model: A PEFT wrapper of a model, or a model without an adapter.
        most_bytes: The most bytes that the adapted weights may take.
    """
    if not hasattr(model, "peft_config") or torch.is_autocast_enabled("cpu"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not all(_can_be_merged(layer) for layer in layers):
        return []
    held = sum(layer.get_base_layer().weight.nbytes for layer in layers)
    return layers if held <= most_bytes else []


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """W + s B A, over all adapters that are active; float32 of the weight's shape."""
    weight: Tensor = layer.get_base_layer().weight
    return sum(map(layer.get_delta_weight, _active(layer)), start=weight)


def mark_merged(layer: Any, undo: ExitStack) -> None:
    """Let PEFT multiply with a layer's weight alone, until ``undo`` is closed."""
    undo.callback(setattr, layer, "merged_adapters", [])
    layer.merged_adapters = _active(layer)


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _can_be_merged(layer: Any) -> bool:
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or layer.merged or layer.disable_adapters:
        return False
    active = _active(layer)
    # DoRA and similar variants, and biases: PEFT cannot add a bias to a layer without one
    if any(name in layer.lora_variant or layer.lora_bias[name] for name in active):
        return False
    # a hook observes what the adapter does
    if any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules()):
        return False
    weights = [layer.get_base_layer().weight, *(layer.lora_B[name].weight for name in active)]
    return bool(active) and all(dense_on_cpu(each) and each.dtype == torch.float32 for each in weights)


def dense_on_cpu(parameter: Any) -> bool:
    """Whether a parameter is a plain tensor on the CPU: not quantised, not sharded, not computed."""
    return (
        type(parameter) is nn.Parameter and type(parameter.data) is Tensor and parameter.device.type == "cpu"
    )
