"""Knowledge identification, one scalar at a time (KIF Eq. 8-13)."""

import math

import torch


def sensitivity(weight, grad, order="first", fisher=None):
    out = torch.zeros(weight.shape, dtype=torch.float64)
    for index in _indices(weight):
        w, g = float(weight[index]), float(grad[index])
        f = g**2 if fisher is None else float(fisher[index])
        out[index] = {
            "first": abs(w * g),
            "second": abs(w * g - 0.5 * f * w**2),
            "gradient": abs(g),
            "magnitude": abs(w),
        }[order]
    return out


def smoothed(sensitivities, alpha1, alpha2):
    """Return (Ibar, Ubar) after the given list of sensitivities of one parameter (Eq. 10-11)."""
    ibar = torch.zeros_like(sensitivities[0])
    ubar = torch.zeros_like(sensitivities[0])
    for latest in sensitivities:
        for index in _indices(latest):
            ibar[index] = alpha1 * ibar[index] + (1 - alpha1) * latest[index]
            ubar[index] = alpha2 * ubar[index] + (1 - alpha2) * abs(latest[index] - ibar[index])
    return ibar, ubar


def run(steps, order="first", alpha1=0.85, alpha2=0.85, smoothing=True, uncertainty=True, fishers=None):
    """Return the scores after [(weights, grads), ...]; a step with a non-finite gradient is left out."""
    scores = []
    for p in range(len(steps[0][0])):
        history = []
        for t, (weights, grads) in enumerate(steps):
            if any(not math.isfinite(v) for g in grads if g is not None for v in g.flatten().tolist()):
                continue
            grad = torch.zeros_like(weights[p]) if grads[p] is None else grads[p]
            history.append(sensitivity(weights[p], grad, order, None if fishers is None else fishers[t][p]))
        if not smoothing:
            scores.append(history[-1])
            continue
        ibar, ubar = smoothed(history, alpha1, alpha2)
        scores.append(ibar * ubar if uncertainty else ibar)
    return scores


def min_max(values):
    low, high = min(values), max(values)
    return [0.0 if high == low else (v - low) / (high - low) for v in values]


def cumulative(previous, current, beta):
    if previous is None:
        return list(current)
    return [beta * p + (1 - beta) * c for p, c in zip(min_max(previous), min_max(current), strict=True)]


def _indices(tensor):
    return [tuple(index) for index in torch.ones(tensor.shape).nonzero().tolist()]
