"""Knowledge fusion: per-unit weights (KIF), masked task vectors (Recurrent-KIF), running averages.

In KIF's rules a weight is the share of the *previous* value, in [0, 1]. In Recurrent-KIF's rules each of the
two task vectors has a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from kifuse.knowledge.chunks import SMALLEST
from kifuse.knowledge.importance import min_max
from kifuse.knowledge.selection import quantile_threshold


def static_weights(previous: Tensor, current: Tensor, *, gamma: float = 0.7, quantile: float = 0.8) -> Tensor:
    """Weight the previous value of each unit by which tasks need the unit (KIF Eq. 15).

    A unit is important when its value lies *strictly* above the quantile of all units' values. So a unit
    exactly at the threshold is unimportant, and so is every unit if all values are equal. With ``n`` units at
    most
    ``floor((1 - quantile) * n)`` are important; ``quantile=0`` makes every unit important and
    ``quantile=1`` none.

    Args:
        previous: Normalised importance for all earlier tasks, ``(units,)``.
        current: Normalised importance for the task just learned, ``(units,)``.
        gamma: Weight if both find the unit important.
        quantile: Quantile that is the threshold, computed for ``previous`` and for ``current`` separately.

    Returns:
        ``(units,)``: gamma where both are important, 1 where only the history is, 0 where only the
        current task is, 0.5 elsewhere.
    """
    needed_before = previous > quantile_threshold(previous, quantile)
    needed_now = current > quantile_threshold(current, quantile)
    return case_weights(needed_before, needed_now, gamma=gamma).to(previous.dtype)


def case_weights(needed_before: Tensor, needed_now: Tensor, *, gamma: float = 0.7) -> Tensor:
    """Weight the previous value of each unit by the four cases of KIF Eq. 15.

    Args:
        needed_before: Whether the earlier tasks need the unit, boolean ``(units,)``.
        needed_now: Whether the task just learned needs it, boolean ``(units,)``.
        gamma: Weight if both do.

    Returns:
        float32 ``(units,)``: gamma where both do, 1 where only the earlier tasks do, 0 where only the
        current one does, 0.5 elsewhere.
    """
    _check_share("gamma", gamma)
    weights = torch.full(needed_before.shape, 0.5, device=needed_before.device)
    weights[needed_before & needed_now] = gamma
    weights[needed_before & ~needed_now] = 1.0
    weights[~needed_before & needed_now] = 0.0
    return weights


def adaptive_weights(previous: Tensor, current: Tensor, *, tau: float = 0.15) -> Tensor:
    """Weight the previous value of each unit by a softmax over the two importances (KIF Eq. 16-17).

    Args:
        previous: Normalised importance for all earlier tasks, ``(units,)``.
        current: Normalised importance for the task just learned, ``(units,)``.
        tau: Temperature, above 0; small values choose one side, large values give the mean.

    Returns:
        ``sigmoid((previous - current) / tau)``, ``(units,)``: 0.5 where the two are equal.

    Raises:
        ValueError: If ``tau`` is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"tau: found {tau}, expected a number above 0.")
    # A temperature below the smallest normal number would become 0 in the tensor's dtype.
    return torch.sigmoid((previous - current) / max(tau, torch.finfo(previous.dtype).tiny))


@torch.no_grad()
def blend(previous: Sequence[Tensor], current: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Blend two models parameter by parameter: ``w * previous + (1 - w) * current``.

    The result is bitwise ``previous`` where the weight is 1 or the two are equal, bitwise ``current``
    where the weight is 0, and never outside the interval between the two.

    Args:
        previous: Values before the task, any shapes and floating dtypes.
        current: Values after the task, same shapes and dtypes.
        weights: Weights of the previous values in [0, 1], each broadcastable to its parameter
            (see `SkillUnits.expand`).

    Returns:
        New tensors of the parameters' shapes and dtypes; half precision is blended in float32.
    """
    fused = [new.detach().clone() for new in current]
    blend_into(fused, previous, weights)
    return fused


@torch.no_grad()
def blend_into(current: Sequence[Tensor], previous: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Do the same as `blend` in place, with little extra memory.

    Args:
        current: Values after the task; overwritten with the blend.
        previous: Values before the task.
        weights: As in `blend`.
    """
    for new, old, weight in zip(current, previous, weights, strict=True):
        rows = max(1, SMALLEST * new.shape[0] // max(new.numel(), 1)) if new.dim() else 1
        sliced = new.dim() > 0 and weight.dim() == new.dim() and weight.shape[0] == new.shape[0]
        for start in range(0, new.shape[0], rows) if new.dim() else [0]:
            part = slice(start, start + rows) if new.dim() else ...
            share = weight[part] if sliced else weight
            new[part] = _blended(old[part], new[part], share)


def _blended(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    dtype = torch.promote_types(old.dtype, torch.float32)
    wide_old, wide_new, share = old.to(dtype), new.to(dtype), weight.to(old.device, dtype)
    value = torch.lerp(wide_new, wide_old, share)
    value = torch.clamp(value, torch.minimum(wide_old, wide_new), torch.maximum(wide_old, wide_new))
    value = torch.where(share == 0, new, value.to(old.dtype))
    return torch.where((share == 1) | (old == new), old, value)


@torch.no_grad()
def masked_sum(
    base: Sequence[Tensor],
    tau_in: Sequence[Tensor],
    tau_out: Sequence[Tensor],
    mask_in: Sequence[Tensor],
    mask_out: Sequence[Tensor],
    *,
    both: tuple[float, float] = (1.0, 1.0),
    only_in: float = 1.0,
    only_out: float = 1.0,
    neither: tuple[float, float] = (0.0, 0.0),
) -> list[Tensor]:
    """Add the important parts of two task vectors to a model (Recurrent-KIF Eq. 8-9).

    The defaults are the paper's rule, ``base + mask_in * tau_in + mask_out * tau_out``. The authors'
    published code is ``both=(0.4, 0.6), neither=(0.5, 0.5)``.

    Args:
        base: Parameters at the start of the round.
        tau_in: Change made by the inner loop, same shapes.
        tau_out: Change made by the outer loop, same shapes.
        mask_in: Where the inner change matters, broadcastable: boolean, or soft in [0, 1].
        mask_out: Where the outer change matters, of the same form.
        both: Factors of (tau_in, tau_out) where both masks are 1.
        only_in: Factor of tau_in where only ``mask_in`` is 1; tau_out is dropped there.
        only_out: Factor of tau_out where only ``mask_out`` is 1; tau_in is dropped there.
        neither: Factors of (tau_in, tau_out) where both masks are 0.

    Returns:
        New tensors of the shapes and dtypes of ``base``.
    """
    dtypes = [torch.promote_types(start.dtype, torch.float32) for start in base]
    start, change_in, change_out, m_in, m_out = (
        [tensor.to(own.device, dtype) for tensor, own, dtype in zip(tensors, base, dtypes, strict=True)]
        for tensors in (base, tau_in, tau_out, mask_in, mask_out)
    )
    if (both, only_in, only_out, neither) != ((1.0, 1.0), 1.0, 1.0, (0.0, 0.0)):
        m_in, m_out = _factors(m_in, m_out, both, only_in, only_out, neither)
    total = torch._foreach_addcmul(start, m_in, change_in)
    torch._foreach_addcmul_(total, m_out, change_out)
    return [value.to(own.dtype) for value, own in zip(total, base, strict=True)]


def _factors(
    mask_in: list[Tensor],
    mask_out: list[Tensor],
    both: tuple[float, float],
    only_in: float,
    only_out: float,
    neither: tuple[float, float],
) -> tuple[list[Tensor], list[Tensor]]:
    """Turn masks into the factors of tau_in and tau_out; soft masks weight the four cases."""
    shared = torch._foreach_mul(mask_in, mask_out)
    alone_in, alone_out = torch._foreach_sub(mask_in, shared), torch._foreach_sub(mask_out, shared)
    factors = []
    for side, alone, only in ((0, alone_in, only_in), (1, alone_out, only_out)):
        factor = torch._foreach_mul(shared, both[side])
        torch._foreach_add_(factor, torch._foreach_mul(alone, only))
        if neither[side]:
            # 1 - m_in - m_out + m_in m_out
            rest = torch._foreach_neg(torch._foreach_add(mask_in, alone_out))
            torch._foreach_add_(rest, 1.0)
            torch._foreach_add_(factor, torch._foreach_mul(rest, neither[side]))
        factors.append(list(factor))
    return factors[0], factors[1]


def soft_masks(inner: Tensor, outer: Tensor, *, tau: float = 0.15) -> tuple[Tensor, Tensor]:
    """Weight two task vectors scalar by scalar, by a softmax over their normalised importances.

    This is the formula that was published for the variant of Recurrent-KIF with soft masks: KIF's adaptive
    fusion (its Eq. 16-17) with single scalars as units.

    Args:
        inner: Importance of each scalar for the current task, finite, any shape.
        outer: Importance of each scalar for the earlier tasks, same shape.
        tau: Temperature, above 0; small values give everything to one side, large values half to each.

    Returns:
        The weights of tau_in and of tau_out, in [0, 1] and with sum 1, same shape:
        ``sigmoid((Norm(inner) - Norm(outer)) / tau)`` and its complement, where Norm is `min_max`.

    Raises:
        ValueError: If ``tau`` is not above 0 or an importance is not finite.
    """
    weight = adaptive_weights(min_max(inner), min_max(outer), tau=tau)
    return weight, 1.0 - weight


def total_weights(inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Weight two whole task vectors by their total importances.

    Args:
        inner: Importance of each scalar for the current task, at least 0, any shape.
        outer: Importance of each scalar for the earlier tasks.

    Returns:
        0-dim float32 weights of tau_in and of tau_out: ``s_in / (s_in + s_out)`` and its complement, where s
        is the sum of the importances; one half each if both sums are 0.
    """
    sum_in, sum_out = (scores.sum(dtype=torch.float64) for scores in (inner, outer))
    total = sum_in + sum_out
    weight = torch.where(total > 0, sum_in / total, 0.5).to(torch.float32)
    return weight, 1.0 - weight


class ParameterAverage:
    """Average of a model's parameters over the steps of a training run.

    With a decay it is the exponential average that starts at the given parameters; without one it is
    the plain mean of the parameters passed to `update`.

    Args:
        params: Parameters at the start; copied, in float32 (float64 if any is float64).
        decay: Weight of the past in [0, 1), or None for the plain mean.
    """

    def __init__(self, params: Iterable[Tensor], decay: float | None) -> None:
        if decay is not None and not 0.0 <= decay < 1.0:
            raise ValueError(f"decay: found {decay}, expected None or a number of at least 0 and below 1.")
        params = [param.detach() for param in params]
        self.decay = decay
        self.steps = 0
        self._dtypes = [param.dtype for param in params]
        wide = torch.float64 if torch.float64 in self._dtypes else torch.float32
        self._average = [param.to(wide, copy=True) for param in params]
        self._latest = [torch.empty_like(average) for average in self._average]

    @torch.no_grad()
    def update(self, params: Sequence[Tensor]) -> None:
        """Add the parameters after an optimizer step to the average."""
        self.steps += 1
        if not self._average:
            return
        share = 1.0 - self.decay if self.decay is not None else 1.0 / self.steps
        torch._foreach_copy_(self._latest, list(params))  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_lerp_(self._average, self._latest, share)  # pyright: ignore[reportPrivateImportUsage]

    def average(self) -> list[Tensor]:
        """Return the average so far as new tensors of the parameters' shapes and dtypes."""
        return [
            average.to(dtype, copy=True) for average, dtype in zip(self._average, self._dtypes, strict=True)
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and the step count as tensors."""
        state = {f"average.{index}": average.clone() for index, average in enumerate(self._average)}
        return {"steps": torch.tensor(self.steps), **state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned for parameters of the same shapes."""
        names = [f"average.{index}" for index in range(len(self._average))]
        if set(state) != {"steps", *names}:
            raise ValueError(f"Found a state of {len(state) - 1} parameters, expected {len(names)}.")
        for name, average in zip(names, self._average, strict=True):
            if state[name].shape != average.shape:
                found, expected = tuple(state[name].shape), tuple(average.shape)
                raise ValueError(f"{name}: found shape {found}, expected {expected}.")
            average.copy_(state[name])
        self.steps = int(state["steps"])


def _check_share(name: str, value: float) -> None:
    """Refuse a weight outside [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: found {value}, expected a number between 0 and 1.")
