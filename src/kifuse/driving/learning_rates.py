"""The learning rates of an optimizer's parameter groups: a memory step scales all of them alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any


def rate_of(optimizer: Any) -> float:
    """The current learning rate: that of the first group whose rate is not 0; 0 if all are 0."""
    return next((rate for rate in _rates(optimizer) if rate), 0.0)


def first_rate(optimizer: Any, otherwise: float) -> float:
    """The initial rate of the first group that has one; `otherwise` if none has one."""
    groups = [] if optimizer is None else optimizer.param_groups
    return next((float(group["initial_lr"]) for group in groups if group.get("initial_lr")), otherwise)


def ratios_of(optimizer: Any) -> list[float]:
    """Each group's rate as a share of `rate_of`; if all rates are 0 now, the initial rates count."""
    rates = _rates(optimizer)
    if not any(rates):
        rates = [float(group.get("initial_lr", 0.0)) for group in optimizer.param_groups]
    one = next((rate for rate in rates if rate), None)
    return [1.0 if one is None else rate / one for rate in rates]


@contextlib.contextmanager
def at_rate(optimizer: Any, lr: float, ratios: Sequence[float]) -> Iterator[None]:
    """Run one step at another learning rate, then restore the rates of the schedule.

    Args:
        optimizer: The optimizer whose groups get the rate.
        lr: The rate of a group whose ratio is 1.
        ratios: What `ratios_of` gave.
    """
    before = [group["lr"] for group in optimizer.param_groups]
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        group["lr"] = lr * ratio
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = value


def _rates(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]
