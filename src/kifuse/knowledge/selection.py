"""Exact selection of the most important scalars in the model, a module or a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from kifuse.knowledge.skill_units import SkillUnits
from kifuse.knowledge.threshold import share_threshold, top_fraction_threshold

Scope = Literal["global", "module", "layer"]
"""The set within which scalars are compared: the whole model, one linear layer, or one transformer layer."""


def quantile_threshold(values: Tensor, quantile: float) -> Tensor:
    """Find the value above which at most a share ``1 - quantile`` of a tensor's scalars lies.

    Args:
        values: Floating tensor of any shape.
        quantile: In [0, 1]; 0.8 selects the top 20%, 0 selects everything, 1 nothing.

    Returns:
        0-dim tensor, see `top_fraction_threshold`.

    Raises:
        ValueError: For the reasons given in `top_fraction_threshold`.
    """
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile: found {quantile}, expected a number between 0 and 1.")
    return top_fraction_threshold([values], 1.0 - quantile)


def interpolated_fraction(count: int, quantile: float) -> float:
    """Return the fraction of scalars above their interpolated quantile, which the authors' code uses.

    ``torch.quantile(values, q)`` lies between the two sorted values around position ``q (n - 1)``. So
    ``n - 1 - floor(q (n - 1))`` scalars lie above it unless some are equal: 58 of 288 for q = 0.8, while
    `quantile_threshold` selects 57, at most a fifth.

    Args:
        count: Number of scalars n.
        quantile: q, in [0, 1].

    Returns:
        The fraction to pass to `thresholds`.

    Raises:
        ValueError: If there is no scalar or the quantile is outside [0, 1].
    """
    if count < 1 or not 0.0 <= quantile <= 1.0:
        raise ValueError(f"Found {count} scalars and quantile {quantile}; expected some, and 0 to 1.")
    return (count - 1 - math.floor(quantile * (count - 1) + 1e-9)) / count


def above(tensors: Sequence[Tensor], threshold: Tensor) -> list[Tensor]:
    """Mark the scalars strictly above a threshold.

    Args:
        tensors: Tensors of any shapes.
        threshold: 0-dim tensor, as `top_fraction_threshold` returns it.

    Returns:
        One boolean mask per tensor, of its shape and on its device.
    """
    return [tensor > threshold.to(tensor.device) for tensor in tensors]


def scope_groups(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], scope: Scope
) -> tuple[int, ...] | None:
    """Number the groups of tensors that have a common threshold.

    Args:
        names: Unique parameter names, as ``model.named_parameters()`` gives them.
        shapes: Their shapes, in the same order.
        scope: ``global``: one threshold for all. ``module``, ``layer``: one for each unit of
            `SkillUnits` at that level.

    Returns:
        The group of each tensor, for `masks`; None for the global scope.

    Raises:
        ValueError: If the scope is unknown, or for the reasons given in `SkillUnits.build`.
    """
    if scope not in get_args(Scope):
        raise ValueError(f"scope: found {scope!r}, expected one of {', '.join(get_args(Scope))}.")
    if scope == "global":
        return None
    units = SkillUnits.build(names, shapes, scope)
    return tuple(int(unit) for unit in units.expand(torch.arange(units.count)))


def thresholds(
    scores: Sequence[Tensor],
    *,
    fraction: float | None = None,
    share: float | None = None,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """Find the threshold of the most important scalars, by their number or by their share of the total.

    Args:
        scores: One tensor per parameter, of one floating dtype.
        fraction: Select at most this fraction of the scalars; see `top_fraction_threshold` for ties.
        share: Select the fewest scalars that carry this share of the total; see `share_threshold`.
            Exactly one of the two is given.
        groups: The group of each tensor, see `scope_groups`; the rule is applied within each group. None
            treats all tensors as one group.

    Returns:
        0-dim tensor without groups, else the threshold of each tensor, `(tensors,)`; of the scores' dtype, on
        the first tensor's device.

    Raises:
        ValueError: If both or neither of ``fraction`` and ``share`` are given, the number of groups differs
            from that of the tensors, or the threshold function refuses the scores.
    """
    if fraction is not None and share is None:
        threshold = partial(top_fraction_threshold, fraction=fraction)
    elif share is not None and fraction is None:
        threshold = partial(share_threshold, share=share)
    else:
        raise ValueError(f"Found fraction {fraction} and share {share}; expected exactly one of them.")
    if groups is None:
        return threshold(scores)
    if len(groups) != len(scores):
        raise ValueError(f"Found {len(groups)} groups for {len(scores)} tensors; expected one for each.")
    members: dict[int, list[Tensor]] = {}
    for score, group in zip(scores, groups, strict=True):
        members.setdefault(group, []).append(score)
    of_group = {group: threshold(together) for group, together in members.items()}
    return torch.stack([of_group[group].to(scores[0].device) for group in groups])


def masks(
    scores: Sequence[Tensor],
    *,
    fraction: float | None = None,
    share: float | None = None,
    groups: Sequence[int] | None = None,
) -> list[Tensor]:
    """Mark the most important scalars.

    Args:
        scores: One tensor per parameter, of one floating dtype.
        fraction: As in `thresholds`.
        share: As in `thresholds`; exactly one of the two is given.
        groups: The group of each tensor, or None.

    Returns:
        One boolean mask per tensor, of its shape and on its device.

    Raises:
        ValueError: For the reasons given in `thresholds`.
    """
    limits = thresholds(scores, fraction=fraction, share=share, groups=groups)
    each = limits.expand(len(scores)) if limits.dim() == 0 else limits
    return [above([score], limit)[0] for score, limit in zip(scores, each, strict=True)]
