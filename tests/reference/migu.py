"""MIGU: the magnitude of each output unit, and which rows may move."""

import math

import torch


def magnitude(outputs):
    """Compute n_j, the sum over tokens of |y_j|; outputs is a list of tokens, each (units,)."""
    total = torch.zeros(outputs[0].shape, dtype=torch.float64)
    for y in outputs:
        total += y.double().abs()
    return total


def kept_rows(n, quantile):
    """Return the ceil((1 - q) n) units with the largest magnitudes, as a set."""
    values = n.tolist()
    count = math.ceil(round((1 - quantile) * len(values), 6))
    order = sorted(range(len(values)), key=lambda j: -values[j])
    return set(order[:count])
