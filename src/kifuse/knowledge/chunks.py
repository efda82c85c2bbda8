"""Treats many tensors as one row of scalars, in chunks of limited size, without joining them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1 << 18
"""A chunk may always hold this many scalars: 1 MiB of float32, which stays in a core's cache."""


@dataclass(frozen=True)
class Chunk:
    """A stretch of the row of scalars, from `low` to `high`.

    Attributes:
        low: Index of the first scalar.
        high: Index after the last scalar.
        pieces: (tensor, from, to) for each piece in the chunk: a range of scalars of a flattened tensor.
    """

    low: int
    high: int
    pieces: tuple[tuple[int, int, int], ...]


class Window:
    """A buffer that holds one chunk's scalars of a row of tensors.

    Args:
        chunk: The chunk.
        buffer: `(at least high - low,)`; its first part is used.
        shapes: The shape of every tensor of the row.

    Attributes:
        flat: The part of the buffer that holds the chunk, `(high - low,)`.
    """

    def __init__(self, chunk: Chunk, buffer: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
        self.flat = buffer[: chunk.high - chunk.low]
        self._parts: list[tuple[int, slice | None]] = []
        self._views: list[Tensor] = []
        at = 0
        for index, start, stop in chunk.pieces:
            piece, whole = self.flat[at : at + stop - start], stop - start == math.prod(shapes[index])
            at += stop - start
            # a tensor that lies completely in the chunk is used as it is, without a new view in each step
            self._parts.append((index, None if whole else slice(start, stop)))
            self._views.append(piece.view(shapes[index]) if whole else piece)

    def load(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Copy the chunk's scalars of some tensors into the buffer, with zeros where a tensor is None."""
        views, found = self._present(tensors)
        if len(views) < len(self._views):
            self.flat.zero_()
        if views:
            torch._foreach_copy_(views, found)
        return self.flat

    def multiply(self, tensors: Sequence[Tensor]) -> Tensor:
        """Multiply the buffer by the chunk's scalars of some tensors."""
        views, found = self._present(tensors)
        if any(other.dtype != self.flat.dtype or other.device != self.flat.device for other in found):
            found = [other.to(self.flat) for other in found]
        torch._foreach_mul_(views, found)
        return self.flat

    def _present(self, tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
        views, found = [], []
        for (index, part), view in zip(self._parts, self._views, strict=True):
            tensor = tensors[index]
            if tensor is not None:
                views.append(view)
                found.append(tensor.detach() if part is None else tensor.detach().reshape(-1)[part])
        return views, found


class FlatCopy:
    """A copy of tensors in one row, at least float32.

    Args:
        tensors: The tensors to copy.

    Attributes:
        row: All scalars, `(scalars,)`.
        views: Views of the row in the tensors' shapes.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        dtype = torch.float32
        for tensor in tensors:
            dtype = torch.promote_types(dtype, tensor.dtype)
        total = sum(tensor.numel() for tensor in tensors)
        self.row = torch.empty(total, dtype=dtype, device=tensors[0].device)
        self.views = split(self.row, [tuple(tensor.shape) for tensor in tensors])
        self.take(tensors)

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Copy the tensors again."""
        torch._foreach_copy_(self.views, [tensor.detach() for tensor in tensors])


def split(row: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Cut a row of scalars into views of these shapes."""
    pieces = row.split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def chunk_size(total: int, device: torch.device) -> int:
    """Number of scalars in a chunk: on a CPU as many as fit in a cache, elsewhere a sixteenth of all."""
    return SMALLEST if device.type == "cpu" else max(SMALLEST, -(-total // 16))


def cut(sizes: Sequence[int], most: int) -> list[Chunk]:
    """Cut tensors of these sizes into as few chunks as possible, with at most `most` scalars each.

    Args:
        sizes: Scalars of each tensor.
        most: Most scalars in a chunk; at least 1.
    """
    chunks: list[Chunk] = []
    pieces: list[tuple[int, int, int]] = []
    low = high = 0
    for index, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = min(size, start + most - (high - low))
            pieces.append((index, start, stop))
            high += stop - start
            start = stop
            if high - low == most:
                chunks.append(Chunk(low, high, tuple(pieces)))
                pieces, low = [], high
    if pieces:
        chunks.append(Chunk(low, high, tuple(pieces)))
    return chunks
