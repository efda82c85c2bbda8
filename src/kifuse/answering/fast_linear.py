"""Faster products of linear layers for generation on a CPU, with the same answers.

oneDNN multiplies packed weights: weights stored in the order in which it reads them. Given plain weights, it
packs them again in every product, which takes longer than the product itself if there are few rows. Here
weights are packed once. In bf16 the result is the same to the bit. In float32 torch multiplies with MKL,
which takes about twice as long on AMD's processors; with oneDNN only the last bits differ, as they do in
another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.answering.merged_adapters import adapted_layers, dense_on_cpu, mark_merged, merged_weight

# With fewer prompt tokens, or fewer inputs or outputs of a layer, preparing takes longer than it saves.
_LEAST_TOKENS, _LEAST_WIDTH = {torch.float32: 1024, torch.bfloat16: 8192}, 64
# The most bytes of packed copies of weights, and the most bytes of copies with adapters added.
_MOST_BYTES = 2**31


@contextmanager
def quick_products(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Iterator[None]:
    """Let linear layers multiply with packed weights that include the adapters, while the block lasts.

    Afterwards the model is what it was: no parameter is written to. Meanwhile a layer has another
    ``forward``, or another parameter where only the adapter is added. A layer that is not plain stays as it
    is (PEFT's own kinds, quantised, parametrised, sharded, on another device, with a hook before it). Weights
    are not packed, and adapters not added, where the copies would take too much memory.

    Args:
        model: A model, or a PEFT wrapper of one.
        prompts: The prompts that the model will read, as token ids.
    """
    with ExitStack() as undo:
        _prepare(model, sum(map(len, prompts)), undo)
        yield


@torch.no_grad()
def _prepare(model: nn.Module, tokens: int, undo: ExitStack) -> None:
    worth = {dtype for dtype, least in _LEAST_TOKENS.items() if tokens >= least}
    if not worth:
        return
    quicker = worth & _dtypes()
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    kept = {linear: dtype for linear in linears if (dtype := _dtype(linear)) is not None and dtype in quicker}
    packs = sum(linear.weight.numel() * dtype.itemsize for linear, dtype in kept.items()) <= _MOST_BYTES
    if not packs:  # torch itself multiplies plain bf16 weights with oneDNN, so only float32 gains
        kept = {linear: dtype for linear, dtype in kept.items() if dtype == torch.float32}
    layers = adapted_layers(model, _MOST_BYTES) if torch.float32 in worth else []
    adapted = {layer.get_base_layer(): layer for layer in layers}
    for linear in {**adapted, **kept}:
        weight = linear.weight
        if linear in adapted:
            weight = merged_weight(adapted[linear])
            mark_merged(adapted[linear], undo)
        if linear in kept:
            linear.forward = _product(linear, weight, kept[linear], packs)
            undo.callback(delattr, linear, "forward")
        else:
            undo.callback(setattr, linear, "weight", linear.weight)
            linear.weight = nn.Parameter(weight, requires_grad=False)


def _dtype(linear: nn.Linear) -> torch.dtype | None:
    """The precision in which a plain layer multiplies; None for a layer that must stay as it is."""
    if linear._forward_pre_hooks or "forward" in vars(linear) or min(linear.weight.shape) < _LEAST_WIDTH:
        return None
    if not all(dense_on_cpu(each) for each in (linear.weight, linear.bias) if each is not None):
        return None
    autocast = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if autocast else linear.weight.dtype


def _dtypes() -> frozenset[torch.dtype]:
    """The precisions in which oneDNN, on this processor, is faster than torch with plain weights."""
    about: dict[str, Any] = dict(torch.cpu.get_capabilities())
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return frozenset()
    if about.get("architecture") != "x86_64":
        return frozenset()
    found = {torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set()
    if torch.backends.mkl.is_available() and "AMD" in str(about.get("cpu_name")):
        found.add(torch.float32)
    return frozenset(found)


def _product(
    linear: nn.Linear, weight: Tensor, dtype: torch.dtype, packs: bool
) -> Callable[[Tensor], Tensor]:
    """A layer's forward, x W' + b, in one precision."""
    # torch has these functions under private names only; its own compiler uses these names
    multiply = torch.ops.mkldnn._linear_pointwise.default
    bias = None if linear.bias is None else linear.bias.detach().to(dtype)
    held = weight.detach().to(dtype)
    if packs:
        held = torch.ops.mkldnn._reorder_linear_weight.default(held)
    autocast = torch.is_autocast_enabled("cpu")

    def forward(input: Tensor) -> Tensor:
        if autocast and not torch.is_autocast_enabled("cpu"):  # the model turned autocast off here
            return nn.Linear.forward(linear, input)
        return multiply(input.to(dtype), held, bias, "none", [], "")

    return forward
