"""VR-MCL on a small problem: one task (k >= 2) in one plain loop, with autograd for all derivatives."""

import torch

from tests.reference.recurrent import Optimizer


def at_most(tensors, limit):
    """Scale the tensors to a norm of at most `limit`."""
    norm = sum((t**2).sum() for t in tensors) ** 0.5
    if limit is None or norm.item() <= limit:
        return tensors
    return [t * limit / norm for t in tensors]


def meta_gradient(theta, alpha, loss, parts, outer, *, clip, second):
    """Compute d/dtheta and d/dalpha of sum_k L(phi_k; outer), with phi_k the weights after k inner steps.

    theta: values by name; alpha: rate by name; parts: the minibatches; outer: a function of values.
    """
    theta = {n: w.clone().requires_grad_() for n, w in theta.items()}
    alpha = {n: torch.tensor(float(a), dtype=theta[n].dtype, requires_grad=True) for n, a in alpha.items()}
    phi, total = theta, 0.0
    for part in parts:
        grads = torch.autograd.grad(loss(phi, part), list(phi.values()), create_graph=True)
        if not second:
            grads = [g.detach() for g in grads]
        if clip is not None:
            grads = [torch.where(g > clip, clip, torch.where(g < -clip, -clip, g)) for g in grads]
        grads = dict(zip(phi, grads, strict=True))
        phi = {n: phi[n] - alpha[n] * grads[n] for n in phi}
        total = total + outer(phi)
    found = torch.autograd.grad(total, [*theta.values(), *alpha.values()])
    count = len(theta)
    g, h = at_most(found[:count], clip), at_most(found[count:], clip)
    return dict(zip(theta, g, strict=True)), dict(zip(alpha, h, strict=True))


def vr_mcl(theta, loss, steps, memory, *, rate, inner, c, start, alpha_lr, clip, limit, second, outer=None):
    """Return the values, m and alpha after each step.

    inner: a function that cuts a batch into minibatches; limit: the norm to which the optimizer's gradient is
    clipped, or None; outer: the loss of two batches together, or None for the mean of both.
    """
    optimizer = Optimizer("adamw")
    outer = outer or (lambda values, one, two: (loss(values, one) + loss(values, two)) / 2)
    alpha = dict.fromkeys(theta, start)
    m = before = None
    found = []
    for batch, old in zip(steps, memory, strict=False):

        def both(values, batch=batch, old=old):
            return outer(values, batch, old)

        def meta(at, batch=batch, both=both, alpha=alpha):
            return meta_gradient(at, alpha, loss, inner(batch), both, clip=clip, second=second)

        g, h = meta(theta)
        if m is not None and c:
            g_before, _ = meta(before)
            g = {n: g[n] + c * (m[n] - g_before[n]) for n in g}
        m, before = g, theta
        alpha = {n: max(0.0, alpha[n] - alpha_lr * float(h[n])) for n in alpha}
        given = dict(zip(g, at_most(list(g.values()), limit), strict=True))
        theta = optimizer.step(theta, given, rate)
        found.append((theta, m, alpha))
    return found
