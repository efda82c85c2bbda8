"""Functions that put an adapter on a model and work with it, in the form that is easiest to read in tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kifuse.adapters.base import Adapter, adapter_on
from kifuse.adapters.kinds import KINDS, add_adapter
from kifuse.adapters.osf import Osf
from kifuse.adapters.stack import Stack
from kifuse.methods.inclora import IncLoRA

__all__ = ["KINDS", "add_adapter"]


def add_stack(model: Any, settings: Any, *, encoder_decoder: bool, seed: int) -> Any:
    """Do the same as `add_adapter`, for a method that keeps a pair for each task."""
    return add_adapter(model, settings, encoder_decoder=encoder_decoder, seed=seed, method=IncLoRA())


def on(model: nn.Module) -> Adapter:
    found = adapter_on(model)
    assert found is not None
    return found


def stack_on(model: nn.Module) -> Stack:
    found = on(model)
    assert isinstance(found, Stack)
    return found


def save_adapter(model: nn.Module, folder: Path) -> None:
    on(model).save(folder)


def load_adapter_weights(model: nn.Module, folder: Path) -> None:
    on(model).load(folder)


def learned_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return on(model).learned()


def set_learned_weights(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    on(model).set_learned(values)


def open_factors(model: nn.Module, share: float) -> None:
    found = on(model)
    assert isinstance(found, Osf)
    found.open(share)


def close_factors(model: nn.Module) -> None:
    on(model).end_task()


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    return on(model).frozen()


def grow(model: nn.Module, seed: int) -> None:
    stack_on(model).grow(seed)


def stacked(model: nn.Module) -> int:
    return stack_on(model).count
