"""Exact thresholds over any number of scalars in many tensors, without sorting them all.

A threshold separates the most important scalars from the others, either by their number
(`top_fraction_threshold`) or by their share of the total (`share_threshold`). For many scalars, the search
counts, or sums, the leading bits of their sort keys, and then looks only at those that share the leading
bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

_CHUNK = 1 << 18  # scalars processed together: limits the temporary memory and fits in a cache
_FEW = 1 << 12  # up to this number, sorting is quicker than counting
_DIGIT = 16  # bits of the sort key that one pass looks at
_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_ROUNDING = 1e-12  # largest rounding error of a product or sum, as a share of the whole
_Amount = TypeVar("_Amount", int, float)


def top_fraction_threshold(tensors: Sequence[Tensor], fraction: float) -> Tensor:
    """Find the value above which at most a given fraction of all scalars lies.

    The threshold is the order statistic of rank ``floor(fraction * n) + 1`` from the top, over all
    ``n`` scalars of all tensors, so ``x > threshold`` selects exactly ``floor(fraction * n)`` scalars
    unless some are tied with the threshold; ties are not selected. The result is exact for any number
    of scalars: many are searched by counting bit patterns, without sorting or interpolation.

    Args:
        tensors: Tensors of one floating dtype, of any shapes, on any devices. Infinities are fine.
        fraction: Share of the scalars to select, in [0, 1].

    Returns:
        0-dim tensor of the tensors' dtype on the first tensor's device; ``+inf`` when ``fraction`` is
        0 (selects nothing), ``-inf`` when it is 1 (selects every value above ``-inf``).

    Raises:
        ValueError: If there is no scalar, the dtypes differ or are not floating, a value is NaN, or
            ``fraction`` is outside [0, 1].
    """
    total = _checked(tensors, "fraction", fraction)
    dtype, device = tensors[0].dtype, tensors[0].device
    rank = _floor(fraction * total, total) + 1
    if fraction == 0.0 or rank > total:
        return torch.tensor(math.inf if fraction == 0.0 else -math.inf, dtype=dtype, device=device)
    find = _rank_by_sorting if total <= _FEW else _rank_by_counting
    return find(tensors, rank).to(device)


def share_threshold(tensors: Tensor | Sequence[Tensor], share: float) -> Tensor:
    """Find the value such that the fewest scalars above it carry a given share of the total.

    Scalars are taken from the largest down until their sum reaches ``share`` of the sum of all. The smallest
    scalar taken is the edge, and ``x > threshold`` selects the edge and all larger scalars. Scalars equal to
    the edge cannot be told apart, so all of them are selected: the selection carries *at least* the share,
    and without any one of its different values it would not. Zeros carry nothing and are never selected.

    | scores | selected |
    | --- | --- |
    | ``share`` 0, or all scores 0 | nothing |
    | ``share`` 1 | every score above 0 |
    | all scores equal and above 0 | all of them, for any share above 0 |

    Sums are computed in float64. A sum that misses the share only by rounding (1e-12 of the total) counts as
    reaching it. For float32 and half precision, up to that rounding, the result does not depend on the order
    of the scalars or on how they are split into tensors.

    Args:
        tensors: Scores, finite and not negative: one tensor (say, one score per unit), or several of one
            floating dtype, of any shapes, on any devices.
        share: Share of the total to carry, in [0, 1].

    Returns:
        0-dim tensor of the scores' dtype on the first tensor's device: the next smaller number below the
        edge; ``+inf`` when nothing is selected.

    Raises:
        ValueError: If there is no scalar, the dtypes differ or are not floating, a score is negative,
            infinite or NaN, or ``share`` is outside [0, 1].
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else tensors
    total = _checked(tensors, "share", share)
    dtype, device = tensors[0].dtype, tensors[0].device
    largest = _largest_score(tensors)
    if share == 0.0 or largest == 0.0:
        return torch.tensor(math.inf, dtype=dtype, device=device)
    if share == 1.0:
        return torch.zeros((), dtype=dtype, device=device)
    # float64 scores may be too large to sum
    scale = 2.0**-100 if largest > 2.0**900 else 1.0
    find = _carrier_by_sorting if total <= _FEW else _carrier_by_counting
    edge = find(tensors, share, scale)
    bits = torch.finfo(dtype).bits
    return _flip(_keys(edge) - 1, bits).view(dtype).to(device)


def _checked(tensors: Sequence[Tensor], name: str, value: float) -> int:
    """Count the scalars; refuse an empty list, mixed dtypes, or a value outside [0, 1]."""
    total = sum(tensor.numel() for tensor in tensors)
    if total == 0:
        raise ValueError("A threshold needs at least one scalar; found none.")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: found {value}, expected a number between 0 and 1.")
    dtype = tensors[0].dtype
    if dtype not in _BITS or any(tensor.dtype != dtype for tensor in tensors):
        found = sorted({str(tensor.dtype) for tensor in tensors})
        raise ValueError(f"Found tensors of {', '.join(found)}; expected one floating dtype for all.")
    return total


def _floor(product: float, total: int) -> int:
    """Round down; a product within rounding error of an integer counts as that integer."""
    nearest = round(product)  # (1 - 0.8) * 10 is 1.9999999999999996 and means 2
    return nearest if abs(product - nearest) <= _ROUNDING * total else math.floor(product)


def _refuse_nan(values: Tensor) -> None:
    """Refuse values that have no order."""
    if bool(torch.isnan(values.amax())):
        raise ValueError("The values to select from contain NaN; expected numbers.")


def _largest_score(tensors: Sequence[Tensor]) -> float:
    """Find the largest score; refuse scores that are negative, infinite or NaN."""
    ends = [torch.stack(torch.aminmax(chunk)).to(tensors[0].device) for chunk in _chunks(tensors)]
    low, high = (float(end) for end in torch.aminmax(torch.stack(ends)))
    if math.isnan(high):
        raise ValueError("The scores to select from contain NaN; expected numbers.")
    if low < 0.0 or math.isinf(high):
        raise ValueError(f"Found scores from {low:g} to {high:g}; expected finite numbers of at least 0.")
    return high


def _rank_by_sorting(tensors: Sequence[Tensor], rank: int) -> Tensor:
    """Find the ``rank``-th largest scalar among few."""
    values = torch.cat([chunk.to(tensors[0].device) for chunk in _chunks(tensors)])
    _refuse_nan(values)
    return values.sort(descending=True).values[rank - 1]


def _rank_by_counting(tensors: Sequence[Tensor], rank: int) -> Tensor:
    """Find the ``rank``-th largest scalar by a radix search from the highest bits of the sort keys."""
    bits = torch.finfo(tensors[0].dtype).bits
    counts = torch.zeros(1 << _DIGIT, dtype=torch.int64)
    for chunk in _chunks(tensors):
        _refuse_nan(chunk)
        counts += _count(_keys(chunk) >> (bits - _DIGIT))
    digit, rank = _locate(counts, rank)
    prefix = digit - (1 << (_DIGIT - 1))
    for shift in range(bits - 2 * _DIGIT, -1, -_DIGIT):
        counts = torch.zeros_like(counts)
        for keys in _starting_with(tensors, prefix, shift + _DIGIT):
            counts += _count(_next_digit(keys, prefix, shift))
        digit, rank = _locate(counts, rank)
        prefix = (prefix << _DIGIT) + digit
    return _value(prefix, tensors[0].dtype)


def _carrier_by_sorting(tensors: Sequence[Tensor], share: float, scale: float) -> Tensor:
    """Find the smallest score needed to carry the share, among few."""
    values = torch.cat([chunk.cpu() for chunk in _chunks(tensors)]).sort(descending=True).values
    carried = (values.to(torch.float64) * scale).cumsum(0)
    return values[int(torch.searchsorted(carried, _to_carry(share, carried)))]


def _carrier_by_counting(tensors: Sequence[Tensor], share: float, scale: float) -> Tensor:
    """Find the smallest score needed to carry the share by a radix search, as `_rank_by_counting`."""
    dtype = tensors[0].dtype
    bits = torch.finfo(dtype).bits
    sums = torch.zeros(1 << _DIGIT, dtype=torch.float64)
    for chunk in _chunks(tensors):
        sums += _sum(_keys(chunk) >> (bits - _DIGIT), chunk, scale)
    digit, needed = _locate(sums, _to_carry(share, sums.flip(0).cumsum(0)))
    prefix = digit - (1 << (_DIGIT - 1))
    for shift in range(bits - 2 * _DIGIT, -1, -_DIGIT):
        sums = torch.zeros_like(sums)
        for keys in _starting_with(tensors, prefix, shift + _DIGIT):
            sums += _sum(_next_digit(keys, prefix, shift), _flip(keys, bits).view(dtype), scale)
        digit, needed = _locate(sums, needed)
        prefix = (prefix << _DIGIT) + digit
    return _value(prefix, dtype)


def _to_carry(share: float, carried: Tensor) -> float:
    """The sum that the selected scores must reach, given running sums; above 0, so that one is selected."""
    return max((share - _ROUNDING) * float(carried[-1]), math.ulp(0.0))


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield all scalars as flat pieces of limited size; many small tensors are joined into one piece."""
    return _joined(piece for tensor in tensors for piece in tensor.detach().reshape(-1).split(_CHUNK))


def _starting_with(tensors: Sequence[Tensor], prefix: int, shift: int) -> Iterator[Tensor]:
    """Yield the keys whose bits from ``shift`` up are ``prefix``, in pieces of limited size."""
    # searched again in each pass: if kept, they could be as many as the scalars themselves
    return _joined(keys[(keys >> shift) == prefix] for keys in map(_keys, _chunks(tensors)))


def _joined(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Join consecutive pieces on the same device as long as they stay small."""
    waiting: list[Tensor] = []
    size = 0
    for piece in pieces:
        if waiting and (size + piece.numel() > _CHUNK or waiting[0].device != piece.device):
            yield torch.cat(waiting)
            waiting, size = [], 0
        if piece.numel():
            waiting.append(piece)
            size += piece.numel()
    if waiting:
        yield torch.cat(waiting) if len(waiting) > 1 else waiting[0]


def _keys(values: Tensor) -> Tensor:
    """Map floats to signed integers of the same order."""
    return _flip(values.contiguous().view(_BITS[values.dtype]), torch.finfo(values.dtype).bits)


def _value(key: int, dtype: torch.dtype) -> Tensor:
    """Map a sort key back to its float."""
    return _flip(torch.tensor(key, dtype=_BITS[dtype]), torch.finfo(dtype).bits).view(dtype)


def _flip(bits: Tensor, width: int) -> Tensor:
    """Reverse the order of the negative floats' bit patterns; its own inverse."""
    flipped = bits >> (width - 1)  # all ones where negative
    return flipped.bitwise_and_((1 << (width - 1)) - 1).bitwise_xor_(bits)


def _next_digit(keys: Tensor, prefix: int, shift: int) -> Tensor:
    """Read the digit at ``shift`` of keys that start with ``prefix``, as a signed number."""
    return (keys >> shift) - (prefix << _DIGIT) - (1 << (_DIGIT - 1))


def _indices(digits: Tensor) -> Tensor:
    """Number the signed 16-bit digits from 0, which is the smallest."""
    return digits.to(torch.int32, copy=True).add_(1 << (_DIGIT - 1))


def _count(digits: Tensor) -> Tensor:
    """Count each signed 16-bit digit; index 0 is the smallest digit."""
    return torch.bincount(_indices(digits), minlength=1 << _DIGIT).cpu()


def _sum(digits: Tensor, values: Tensor, scale: float) -> Tensor:
    """Sum the values of each signed 16-bit digit; index 0 is the smallest digit.

    The highest digit of a float32 holds its exponent. Numbers with the same exponent are multiples of one
    unit, so their float64 sum is exact, in whatever order a device adds them.
    """
    sums = torch.zeros(1 << _DIGIT, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, _indices(digits), values.to(torch.float64), alpha=scale).cpu()


def _locate(weights: Tensor, needed: _Amount) -> tuple[int, _Amount]:
    """Find the digit at which the weights, summed from the top, reach `needed`, and how much it must add."""
    from_top = weights.flip(0).cumsum(0)
    # an earlier sum that was rounded differently may differ by that rounding
    most: Any = from_top[-1].item()
    needed = min(needed, most)
    index = int(torch.searchsorted(from_top, needed))
    before: Any = from_top[index - 1].item() if index else 0
    return weights.numel() - 1 - index, needed - before
