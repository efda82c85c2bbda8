"""EWC as in its papers: one Fisher diagonal and one anchor for each task, all of which are kept."""

import torch


def fisher(params, log_likelihoods):
    """Compute F, the mean over examples j of (d log p(y_j | x_j) / d theta)^2, with a backward pass for each.

    Args:
        params: Parameters, which require gradients.
        log_likelihoods: Functions without arguments. The j-th one returns log p of the whole target of
            example j, from a forward pass of only that example.
    """
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in params]
    for log_likelihood in log_likelihoods:
        grads = torch.autograd.grad(log_likelihood(), params, allow_unused=True)
        for i, grad in enumerate(grads):
            if grad is not None:
                total[i] += grad.double() ** 2
    return [t / len(log_likelihoods) for t in total]


def penalty(theta, fishers, anchors, weight):
    """Compute lambda/2 sum_k sum_i F_ki (theta_i - theta*_ki)^2, for one tensor theta."""
    total = torch.zeros((), dtype=torch.float64)
    for f, anchor in zip(fishers, anchors, strict=True):
        total = total + (f.double() * (theta.double() - anchor.double()) ** 2).sum()
    return weight / 2 * total


def running(fishers, gamma):
    """Compute Fbar_k = gamma Fbar_(k-1) + F_k after the last of the tasks."""
    found = torch.zeros_like(fishers[0])
    for f in fishers:
        found = gamma * found + f
    return found


def pull(theta, fishers, anchors, weight):
    """Compute the gradient of the penalty at theta, by automatic differentiation."""
    leaf = theta.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(penalty(leaf, fishers, anchors, weight), leaf)
    return grad
