"""Finds the directions of a layer's inputs, which later gradients must not have (GPM).

R has one column for each token's input to a layer. M holds orthonormal directions of earlier inputs. What M
does not hold yet,

    R^ = R - M M^T R,                                                      (Eq. 8)

is decomposed into singular directions, of which the first k join M, with the smallest k so that

    ||M M^T R||_F^2 + ||R^_k||_F^2 >= eps ||R||_F^2.                       (Eq. 9; Eq. 5 where M is empty)

R R^T is summed over tokens in the place of R: its eigenvectors are the left singular vectors of R, and its
eigenvalues the squared singular values. So the memory does not grow with the number of tokens.

Paper: arXiv 2103.09762.
"""

from __future__ import annotations

import torch
from torch import Tensor


def products(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Compute R R^T of the tokens, `(in, in)`, for `Context.watch`."""
    rows = inputs.float()
    return rows.mT @ rows


@torch.no_grad()
def extended(basis: Tensor | None, products: Tensor, share: float) -> Tensor:
    """Add to a basis the fewest directions with which it holds a share of the inputs' squared length.

    Args:
        basis: Orthonormal columns M, `(in, directions)`; None for none.
        products: R R^T, `(in, in)`.
        share: eps, from 0 to 1.

    Returns:
        float32 `(in, directions)`; the columns of `basis` come first.
    """
    c = products.double()
    m = c.new_zeros((len(c), 0)) if basis is None else basis.double()
    beside = torch.eye(len(c), dtype=c.dtype, device=c.device) - m @ m.mT
    rest = beside @ c @ beside
    total, free = c.trace(), len(c) - m.shape[1]
    # the last term sorts the directions of M behind all others
    values, vectors = torch.linalg.eigh((rest + rest.mT) / 2 - total * (m @ m.mT))
    values, vectors = values.flip(0)[:free].clamp_min(0), vectors.flip(1)[:, :free]
    held = total - rest.trace() + torch.cat([values.new_zeros(1), values.cumsum(0)])
    # a rounding error must not ask for one more direction
    count = min(free, int((held < total * (share - 1e-12)).sum()))
    return torch.cat([m, vectors[:, :count]], dim=1).float()
