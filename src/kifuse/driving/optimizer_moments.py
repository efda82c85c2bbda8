"""An optimizer's moments as tensors by name, for a state that is kept without pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from kifuse.driving.shards import joined, spread

_ZERO_AT_FIRST = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
"""What Adam and AdamW keep of a parameter, all of it zero before their first step."""


def moments(optimizer: Any, named: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """The state of an optimizer by `<parameter> <key>`, as whole tensors; all processes must call it.

    Args:
        optimizer: A torch optimizer, or Accelerate's wrapper of one.
        named: `(name, parameter)` pairs; the state of other parameters is left out.
    """
    state = _inner(optimizer).state
    return {
        f"{n} {key}": joined(torch.as_tensor(value))
        for n, p in named
        for key, value in state.get(p, {}).items()
    }


def load_moments(optimizer: Any, named: Iterable[tuple[str, Any]], kept: Mapping[str, Tensor]) -> None:
    """Put back what `moments` gave."""
    by_name, state = dict(named), _inner(optimizer).state
    for full, tensor in kept.items():
        name, _, key = full.rpartition(" ")
        p = by_name[name]
        # as in torch: the step count of AdamW stays on the CPU
        state[p][key] = tensor.clone() if key == "step" else spread(tensor.to(p.device, copy=True), p)


def forget_moments(optimizer: Any) -> None:
    """Reset the moments, as if no step had been taken.

    Adam's moments are set to zero in place. An empty state would not stay empty under FSDP2: before a
    checkpoint torch fills it by a step with zero gradients, and that step counts.
    """
    state = _inner(optimizer).state
    found = [pair for kept in state.values() for pair in kept.items()]
    if any(key not in _ZERO_AT_FIRST or not isinstance(value, Tensor) for key, value in found):
        return state.clear()
    for _, value in found:
        value.zero_()


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)
