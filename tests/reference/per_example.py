"""Fisher information of single examples: one backward pass for each (KIF Eq. 9, F = sum_j g_j^2)."""

import torch


def sum_of_squares(params, shares):
    """Return sum_j g_j^2 for each parameter, and sum_j g_j.

    Args:
        params: Parameters, which require gradients.
        shares: Functions without arguments. The j-th one returns the share of example j in the step's loss,
            from a forward pass of only that example.
    """
    squares = [torch.zeros(p.shape, dtype=torch.float64) for p in params]
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in params]
    for share in shares:
        grads = torch.autograd.grad(share(), params, allow_unused=True)
        for i, grad in enumerate(grads):
            if grad is not None:
                squares[i] += grad.double() ** 2
                total[i] += grad.double()
    return squares, total


def clipped(squares, total, limit):
    """Return the squares after the step's gradient was clipped to a norm of at most `limit`."""
    norm = float(torch.cat([g.flatten() for g in total]).norm())
    factor = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
    return [factor**2 * square for square in squares]
