"""Grouped-query attention that reads each key once, for generation on a CPU.

With fewer key than query heads (GQA, Ainslie et al. 2023, arXiv 2305.13245), transformers' plain attention
first copies every key and value once for each query head of its group. In a decoding step this copies the
whole cache, which takes longer than the layer's own products. Here the query heads of a group are rows of one
product instead, with the same sums. The steps between the two products are the same as well, but done in
parts that stay in the processor's caches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

_NAME = "kifuse_grouped"
# How many columns attend at once: few, so that few of their weights are masked. The most attention weights
# that are computed at once, and how many of these are masked and normalised at once: a block that is larger
# than the processor's caches is also requested from the system again in each layer.
_COLUMNS, _WEIGHTS, _PART = 96, 2**22, 2**19


@contextmanager
def grouped_attention(model: Any) -> Iterator[torch.dtype | None]:
    """Let a model attend without copies of its keys; afterwards it attends as before.

    A model stays as it is if it is not on a CPU, if every query head has keys of its own, or if its attention
    is not exactly the plain one of transformers' LLaMA.

    Args:
        model: A transformers model, without PEFT's wrapper.

    Yields:
        The type to which keys and values may be rounded once, when they are cached, because every product
        would round them to it anyway; None if they should stay as they are.
    """
    if not _can_be_grouped(model):
        yield None
        return
    _register()
    model.set_attn_implementation(_NAME)
    try:
        yield torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    finally:
        model.set_attn_implementation("eager")


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling · Q Kᵀ + mask) V, where query head h goes with key head h // (heads / groups).

    Args:
        module: The attention module; not used.
        query: (rows, heads, columns, size).
        key: (rows, groups, length, size).
        value: As `key`.
        attention_mask: (rows, 1, columns, length), added to the products; None for none.
        scaling: Factor of the products.

    Returns:
        The attended values, (rows, columns, heads, size); the weights are not kept.
    """
    rows, heads, columns = query.shape[:3]
    length, found = key.shape[2], []
    some = max(_WEIGHTS // (heads * min(columns, _COLUMNS) * length), 1)
    for row in range(0, rows, some):
        part = slice(row, row + some)
        mask = None if attention_mask is None else attention_mask.expand(rows, 1, columns, length)[part]
        # the product would copy a part of a larger cache with its axes swapped, which takes twice as long
        keys, values = key[part].contiguous(), value[part]
        done = []
        for column in range(0, columns, _COLUMNS):
            block = slice(column, column + _COLUMNS)
            seen = _seen(mask, block, length)
            here = None if mask is None else mask[:, :, block, :seen]
            done.append(
                _attended(query[part, :, block], keys[:, :, :seen], values[:, :, :seen], here, scaling)
            )
        found.append(torch.cat(done, dim=1))
    return found[0] if len(found) == 1 else torch.cat(found), None


def _seen(mask: Tensor | None, block: slice, length: int) -> int:
    """How many keys some columns attend to: those up to their own, if the mask hides all that come later.

    A hidden key has a weight of exactly zero, provided that the column sees any key.
    """
    if mask is None or block.stop >= mask.shape[2]:
        return length
    own = length - mask.shape[2] + block.stop
    hidden = mask[:, :, block, own:] <= torch.finfo(mask.dtype).min
    return own if bool(hidden.all()) else length


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """The attended values, (rows, columns, heads, size)."""
    rows, heads, columns, size = query.shape
    groups, length = key.shape[1:3]
    together = query.reshape(rows, groups, -1, size)
    weights = torch.matmul(together, key.transpose(2, 3))
    weights = weights.view(rows, heads, columns, length).mul_(scaling)
    some_rows = max(_PART // (heads * columns * length), 1)
    some_heads = min(max(_PART // (columns * length), 1), heads)
    for row in range(0, rows, some_rows):
        for head in range(0, heads, some_heads):
            part = weights[row : row + some_rows, head : head + some_heads]
            masked = part if mask is None else part + mask[row : row + some_rows]
            part.copy_(torch.nn.functional.softmax(masked, dim=-1, dtype=torch.float32))
    found = torch.matmul(weights.view(rows, groups, -1, length), value)
    return found.view(rows, heads, columns, -1).transpose(1, 2)


def _can_be_grouped(model: Any) -> bool:
    heads, groups = (getattr(model.config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if model.device.type != "cpu" or not isinstance(heads, int) or not isinstance(groups, int):
        return False
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    if heads == groups or any(getattr(one, "_attn_implementation", None) != "eager" for one in configs):
        return False
    # each model family has its plain attention in the module of its layers; most are a copy of LLaMA's
    files = (sys.modules.get(type(module).__module__) for module in model.modules())
    plain = {getattr(file, "eager_attention_forward", None) for file in files} - {None}
    return bool(plain) and all(_is_llamas(function) for function in plain)


def _is_llamas(function: Any) -> bool:
    """Whether an attention function does, step by step, what LLaMA's does."""
    from transformers.models.llama import modeling_llama as llama

    if not isinstance(function, FunctionType):
        return False
    copies = function.__globals__.get("repeat_kv")
    known = llama.eager_attention_forward
    return _code(function) == _code(known) and _code(copies) == _code(llama.repeat_kv)


def _code(function: Any) -> tuple[Any, ...]:
    code = getattr(function, "__code__", None)
    return () if code is None else (code.co_code, code.co_names, code.co_consts)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, eager_mask)
