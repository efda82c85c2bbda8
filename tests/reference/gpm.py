"""GPM: singular vectors of the matrix of representations, and gradients without what lies in their span."""

import torch


def extend(basis, columns, share):
    """M with the fewest left singular vectors of R - M M^T R so that Eq. 9 holds.

    basis: a list of earlier directions, each (in,); columns: a list of tokens' inputs, each (in,).
    """
    r = torch.stack([x.double() for x in columns], dim=1)
    inside = torch.zeros_like(r)
    for m in basis:
        inside = inside + torch.outer(m, m @ r)
    u, s, _ = torch.linalg.svd(r - inside, full_matrices=False)
    wanted = share * float((r**2).sum())
    held, found = float((inside**2).sum()), list(basis)
    for place in range(len(s)):
        if held >= wanted * (1 - 1e-12) or len(found) == len(r):
            break
        held += float(s[place] ** 2)
        found.append(u[:, place])
    return found


def project(gradient, basis):
    """g - sum_m (g m) m^T, of a gradient (out, in)."""
    found = gradient.double()
    for m in basis:
        found = found - torch.outer(gradient.double() @ m, m)
    return found
