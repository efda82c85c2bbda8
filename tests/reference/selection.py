"""Select the most important scalars by sorting all of them."""

import math
from fractions import Fraction


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


def carriers(tensors, share):
    """Return nested booleans: is each score among the fewest that carry the share? Ties go together.

    Sums are exact fractions. A sum that lacks a millionth of a millionth of the total still counts as enough.
    """
    scores = [Fraction(v) for tensor in tensors for v in tensor.flatten().tolist()]
    needed = (Fraction(share) - Fraction(1, 10**12)) * sum(scores)
    if share == 0 or sum(scores) == 0:
        return [[False] * tensor.numel() for tensor in tensors]
    if share == 1:
        return [[v > 0 for v in tensor.flatten().tolist()] for tensor in tensors]
    carried = Fraction(0)
    for score in sorted(scores, reverse=True):
        edge = score
        carried += score
        if carried >= needed:
            break
    return [[Fraction(v) >= edge for v in tensor.flatten().tolist()] for tensor in tensors]
