"""An orthonormal basis with a limited number of directions, which gradients are made orthogonal to (OGD).

Vectors are added one after another, each as a direction (its length does not count). While there is room, the
basis spans all of them. Once it is full, it keeps the best subspace of its size: the one that holds the most
of the squared length of all unit vectors so far, as far as the earlier bases have kept them,

    S = sum_j c_j c_j^T,  c_j the coordinates of vector j in the basis;  V <- W^T V,  S <- W^T S W,

where W holds the leading eigenvectors of S. This is the truncated singular value decomposition of the matrix
of all vectors, computed from a (k, k) matrix.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

DEPENDENT = 1e-4
"""If less than this of a unit vector lies outside the basis, it is rounding noise and adds no direction."""
_MOST = 1 << 22  # scalars that are turned into float64 at once


class CappedBasis:
    """Holds at most `cap` orthonormal float32 rows of `size` scalars.

    Args:
        size: Length of the vectors.
        cap: Most rows; 0 or more.
        device: The device that holds the rows.
    """

    def __init__(self, size: int, cap: int, device: torch.device | str | None = None) -> None:
        self.cap = cap
        self.rows = torch.zeros(0, size, device=device)
        """The basis V, `(vectors, size)`."""
        self.spread = torch.zeros(0, 0, dtype=torch.float64)
        """S, `(vectors, vectors)`, on the CPU."""

    def __len__(self) -> int:
        return len(self.rows)

    def extend(self, vectors: Iterable[Tensor]) -> float:
        """Add vectors; a zero vector has no direction and is skipped.

        Args:
            vectors: `(size,)` each.

        Returns:
            The share of the squared length of all unit vectors in the basis that is kept: 1 while there is
            room.
        """
        fresh: list[Tensor] = []
        for each in vectors:
            vector = each.detach()
            length = torch.linalg.vector_norm(vector, dtype=torch.float64)
            if not bool(length > 0):
                continue
            rest, coordinates = _without(self.rows, fresh, vector.double() / length)
            beside = float(torch.linalg.vector_norm(rest))
            if beside > DEPENDENT:
                fresh.append((rest / beside).float())
                coordinates = torch.cat([coordinates, torch.tensor([beside], dtype=torch.float64)])
                self.spread = torch.nn.functional.pad(self.spread, (0, 1, 0, 1))
            self.spread = self.spread + torch.outer(coordinates, coordinates)
        if fresh:
            self.rows = torch.cat([self.rows, torch.stack(fresh)])
        return self._shrink() if len(self.rows) > self.cap else 1.0

    def _shrink(self) -> float:
        """Keep the best subspace of `cap` dimensions."""
        values, directions = torch.linalg.eigh(self.spread)  # ascending
        last = len(values) - self.cap
        leading, kept = values[last:].flip(0), directions[:, last:].flip(1)
        # the rows are orthonormal except for rounding errors, which must not build up from task to task:
        # with W^T V V^T W = L L^T, the rows of L^-1 W^T V are orthonormal
        products = torch.zeros_like(self.spread, device=self.rows.device)
        for columns in _pieces(self.rows):
            wide = self.rows[:, columns].double()
            products += wide @ wide.mT
        lower = torch.linalg.cholesky(kept.mT @ products.cpu() @ kept)
        turn = torch.linalg.solve_triangular(lower, kept.mT, upper=False).to(self.rows.device)
        turned = torch.empty(self.cap, self.rows.shape[1], device=self.rows.device)
        for columns in _pieces(self.rows):
            turned[:, columns] = (turn @ self.rows[:, columns].double()).float()
        self.rows = turned
        self.spread = torch.diag(leading)
        return float(leading.sum() / values.sum())

    @torch.no_grad()
    def project_(self, vector: Tensor) -> Tensor:
        """Remove from a vector, in place, its part that lies in the basis: v <- v - V^T V v.

        Args:
            vector: float32 `(size,)`.
        """
        return vector.sub_(self.rows.mT @ (self.rows @ vector)) if len(self.rows) else vector

    def state_dict(self) -> dict[str, Tensor]:
        """Return the rows and S."""
        return {"rows": self.rows, "spread": self.spread}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: The rows have another length, or do not fit S.
        """
        rows, spread = state["rows"], state["spread"]
        if rows.ndim != 2 or rows.shape[1] != self.rows.shape[1] or spread.shape != (len(rows), len(rows)):
            raise ValueError(
                f"the basis has shapes {tuple(rows.shape)} and {tuple(spread.shape)}, expected (k, "
                f"{self.rows.shape[1]}) and (k, k), so it is of another model."
            )
        # make a copy: the last bit of a matrix product depends on how the memory is aligned
        self.rows = rows.to(self.rows.device, torch.float32, copy=True)
        self.spread = spread.to("cpu", torch.float64, copy=True)


def _without(rows: Tensor, more: list[Tensor], vector: Tensor) -> tuple[Tensor, Tensor]:
    """Gram-Schmidt, twice: a float64 vector's part outside orthonormal rows, and its coordinates in them."""
    coordinates = torch.zeros(len(rows) + len(more), dtype=torch.float64)
    for _ in range(2):
        parts = torch.zeros(len(rows), dtype=torch.float64, device=vector.device)
        for columns in _pieces(rows):
            parts += rows[:, columns].double() @ vector[columns]
        for columns in _pieces(rows):
            vector[columns] -= rows[:, columns].double().mT @ parts
        found = [parts.cpu()]
        for row in more:
            wide = row.double()
            part = wide @ vector
            vector -= part * wide
            found.append(part.cpu()[None])
        coordinates += torch.cat(found)
    return vector, coordinates


def _pieces(rows: Tensor) -> Iterable[slice]:
    """Ranges of columns that are small enough to be converted at once; empty if there are no rows."""
    count, size = rows.shape
    if not count:
        return []
    width = max(1, _MOST // count)
    return [slice(start, start + width) for start in range(0, size, width)]
