"""The learning rates of an optimizer's parameter groups: a memory step scales all of them alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def rate_of(optimizer: Any) -> float:
    """The present learning rate: that of the first group that has one; 0 where none has."""
    return next((rate for rate in _rates(optimizer) if rate), 0.0)


def first_rate(optimizer: Any, otherwise: float) -> float:
    """The rate that the schedule of the first group that has one starts from."""
    groups = [] if optimizer is None else optimizer.param_groups
    return next((float(group["initial_lr"]) for group in groups if group.get("initial_lr")), otherwise)


def ratios_of(optimizer: Any) -> list[float]:
    """Each group's rate as a share of `rate_of`; where all are 0 now, of those it began with."""
    rates = _rates(optimizer)
    if not any(rates):
        rates = [float(group.get("initial_lr", 0.0)) for group in optimizer.param_groups]
    one = next((rate for rate in rates if rate), None)
    return [1.0 if one is None else rate / one for rate in rates]


@contextlib.contextmanager
def at_rate(optimizer: Any, lr: float, ratios: Sequence[float]) -> Iterator[None]:
    """Run one step at another learning rate, then give the schedule its own back.

    Args:
        optimizer: Whose groups are meant.
        lr: The rate of a group whose ratio is 1.
        ratios: From `ratios_of`.
    """
    before = [group["lr"] for group in optimizer.param_groups]
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        group["lr"] = lr * ratio
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = value


def like_groups(optimizer: Any, **settings: Any) -> torch.optim.AdamW:
    """A new AdamW over the groups of another optimizer, which get the same settings but their rates."""
    groups = [{"params": list(group["params"])} for group in optimizer.param_groups]
    return torch.optim.AdamW(groups, **settings)


def _rates(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]
