"""OGD: Gram-Schmidt on the gradients of logits, and gradients without their part in that span."""

import torch


def gram_schmidt(vectors):
    """Return orthonormal directions that span all vectors, made one after another."""
    basis = []
    for vector in vectors:
        rest = vector.double() / vector.double().norm()
        for _ in range(2):
            for v in basis:
                rest = rest - (rest @ v) * v
        if rest.norm() > 1e-4:
            basis.append(rest / rest.norm())
    return basis


def project(gradient, basis):
    """Compute g~ = g - sum_v <g, v> v."""
    found = gradient.double()
    for v in basis:
        found = found - (gradient.double() @ v) * v
    return found


def best_subspace(vectors, cap):
    """Return the `cap` leading right singular vectors of the matrix of all unit vectors."""
    matrix = torch.stack([v.double() / v.double().norm() for v in vectors])
    return list(torch.linalg.svd(matrix, full_matrices=False).Vh[:cap])
