"""Exact global selection: which scalars are among the most important ones of the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 18  # scalars looked at together: bounds the temporary memory and fits in a cache
_FEW = 1 << 12  # up to here sorting is quicker than counting
_DIGIT = 16  # bits of the sort key counted in one pass
_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


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
    total = sum(tensor.numel() for tensor in tensors)
    if total == 0:
        raise ValueError("A threshold needs at least one scalar; found none.")
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction: found {fraction}, expected a number between 0 and 1.")
    dtype, device = tensors[0].dtype, tensors[0].device
    if dtype not in _BITS or any(tensor.dtype != dtype for tensor in tensors):
        found = sorted({str(tensor.dtype) for tensor in tensors})
        raise ValueError(f"Found tensors of {', '.join(found)}; expected one floating dtype for all.")
    rank = _floor(fraction * total, total) + 1
    if fraction == 0.0 or rank > total:
        return torch.tensor(math.inf if fraction == 0.0 else -math.inf, dtype=dtype, device=device)
    find = _by_sorting if total <= _FEW else _by_counting
    return find(tensors, rank).to(device)


def quantile_threshold(values: Tensor, quantile: float) -> Tensor:
    """Find the value above which at most a share ``1 - quantile`` of a tensor's scalars lies.

    Args:
        values: Floating tensor of any shape.
        quantile: In [0, 1]; 0.8 selects the top 20%, 0 selects everything, 1 nothing.

    Returns:
        0-dim tensor, see `top_fraction_threshold`.

    Raises:
        ValueError: As `top_fraction_threshold`.
    """
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile: found {quantile}, expected a number between 0 and 1.")
    return top_fraction_threshold([values], 1.0 - quantile)


def above(tensors: Sequence[Tensor], threshold: Tensor) -> list[Tensor]:
    """Mark the scalars strictly above a threshold.

    Args:
        tensors: Tensors of any shapes.
        threshold: 0-dim tensor, as `top_fraction_threshold` returns it.

    Returns:
        One boolean mask per tensor, of its shape and on its device.
    """
    return [tensor > threshold.to(tensor.device) for tensor in tensors]


def _floor(product: float, total: int) -> int:
    """Round down, taking a product within rounding error of an integer as that integer."""
    nearest = round(product)  # (1 - 0.8) * 10 is 1.9999999999999996 and means 2
    return nearest if abs(product - nearest) <= 1e-12 * total else math.floor(product)


def _by_sorting(tensors: Sequence[Tensor], rank: int) -> Tensor:
    """Find the ``rank``-th largest scalar among few."""
    values = torch.cat([chunk.to(tensors[0].device) for chunk in _chunks(tensors)])
    _refuse_nan(values)
    return values.sort(descending=True).values[rank - 1]


def _by_counting(tensors: Sequence[Tensor], rank: int) -> Tensor:
    """Find the ``rank``-th largest scalar by a radix search from the highest bits of the sort keys."""
    dtype = tensors[0].dtype
    bits = torch.finfo(dtype).bits
    counts = torch.zeros(1 << _DIGIT, dtype=torch.int64)
    for chunk in _chunks(tensors):
        _refuse_nan(chunk)
        counts += _count(_keys(chunk) >> (bits - _DIGIT))
    digit, rank = _locate(counts, rank)
    prefix = digit - (1 << (_DIGIT - 1))
    shift = bits - _DIGIT
    if shift > 0:  # only the scalars that share the leading bits are looked at again
        matching = [keys[(keys >> shift) == prefix].cpu() for keys in map(_keys, _chunks(tensors))]
        left = torch.cat(matching)
        while shift > 0:
            shift -= _DIGIT
            lower = (left >> shift) - (prefix << _DIGIT) - (1 << (_DIGIT - 1))
            digit, rank = _locate(_count(lower), rank)
            prefix = (prefix << _DIGIT) + digit
            left = left[(left >> shift) == prefix]
    key = torch.tensor(prefix, dtype=_BITS[dtype])
    return _flip(key, bits).view(dtype)


def _refuse_nan(values: Tensor) -> None:
    """Refuse values that have no order."""
    if bool(torch.isnan(values.amax())):
        raise ValueError("The values to select from contain NaN; expected numbers.")


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield all scalars as flat pieces of bounded size, many small tensors joined into one piece."""
    waiting: list[Tensor] = []
    size = 0
    for tensor in tensors:
        for piece in tensor.detach().reshape(-1).split(_CHUNK):
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


def _flip(bits: Tensor, width: int) -> Tensor:
    """Reverse the order of the negative floats' bit patterns; its own inverse."""
    flipped = bits >> (width - 1)  # all ones where negative
    return flipped.bitwise_and_((1 << (width - 1)) - 1).bitwise_xor_(bits)


def _count(digits: Tensor) -> Tensor:
    """Count each signed 16-bit digit; index 0 is the smallest digit."""
    indices = digits.to(torch.int32, copy=True).add_(1 << (_DIGIT - 1))
    return torch.bincount(indices, minlength=1 << _DIGIT).cpu()


def _locate(counts: Tensor, rank: int) -> tuple[int, int]:
    """Find the digit that holds the ``rank``-th largest key, and the rank left among its keys."""
    from_top = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_top, rank))
    before = int(from_top[index - 1]) if index else 0
    return counts.numel() - 1 - index, rank - before
