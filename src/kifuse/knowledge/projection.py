"""Orthogonality of the skill units at rank level, so that they hold separate knowledge (KIF Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonality_penalty(a: Tensor, b: Tensor, *, squared: bool = True) -> Tensor:
    """Measure how far the rows of A and the columns of B are from orthonormal (KIF Eq. 5).

    Args:
        a: LoRA A, ``(..., r, in)``.
        b: LoRA B, ``(..., out, r)``, with the same leading dimensions.
        squared: Take ``||A A^T - I||_F^2 + ||B^T B - I||_F^2`` (the paper) or the norms themselves
            (the authors' published code).

    Returns:
        Penalty of each pair, in the shape of the leading dimensions (0-dim for one pair), at least float32.
    """
    residual_a, residual_b = _residual(_wide(a)), _residual(_wide(b).mT)
    if squared:
        return residual_a.square().sum((-2, -1)) + residual_b.square().sum((-2, -1))
    return torch.linalg.matrix_norm(residual_a) + torch.linalg.matrix_norm(residual_b)


@torch.no_grad()
def orthogonality_gradients(a: Tensor, b: Tensor, *, squared: bool = True) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `orthogonality_penalty` in closed form, without a graph.

    Args:
        a: LoRA A, ``(..., r, in)``.
        b: LoRA B, ``(..., out, r)``.
        squared: As in `orthogonality_penalty`.

    Returns:
        ``4 (A A^T - I) A`` and ``4 B (B^T B - I)``, in the shapes and dtypes of A and B. If not squared, each
        is divided by twice its norm, and is 0 where that norm is 0.
    """
    wide_a, wide_b = _wide(a), _wide(b)
    residual_a, residual_b = _residual(wide_a), _residual(wide_b.mT)
    grad_a = 4.0 * residual_a @ wide_a * _scale(residual_a, squared)
    grad_b = 4.0 * wide_b @ residual_b * _scale(residual_b, squared)
    return grad_a.to(a.dtype), grad_b.to(b.dtype)


def _wide(matrix: Tensor) -> Tensor:
    """Convert half precision to float32."""
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def _residual(rows: Tensor) -> Tensor:
    """Compute the Gram matrix of the rows minus the identity, ``(..., r, r)``."""
    gram = rows @ rows.mT
    return gram - torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)


def _scale(residual: Tensor, squared: bool) -> Tensor | float:
    """Return the factor that turns the squared norm's gradient into the wanted gradient."""
    if squared:
        return 1.0
    norm = torch.linalg.matrix_norm(residual, keepdim=True)
    return torch.where(norm > 0, 0.5 / norm, 0.0)
