"""Selection of the most important scalars, by sorting all of them."""

import math


def threshold(tensors, fraction):
    if fraction == 0:
        return math.inf
    values = sorted((v for tensor in tensors for v in tensor.flatten().tolist()), reverse=True)
    k = math.floor(fraction * len(values) + 1e-9)
    return values[k] if k < len(values) else -math.inf


def selected(tensors, fraction):
    """Return nested booleans: is each scalar strictly above the threshold?"""
    limit = threshold(tensors, fraction)
    return [[v > limit for v in tensor.flatten().tolist()] for tensor in tensors]
