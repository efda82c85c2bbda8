"""Skill units as explicit lists of scalars: unit -> [(parameter name, index), ...] (KIF Eq. 3-6)."""

import torch


def matrix_units(shapes):
    return [[(name, index) for index in _indices(shape)] for name, shape in shapes.items()]


def rank_units(a_name, a_shape, b_name, b_shape):
    """Unit i is row i of A with column i of B."""
    units = []
    for i in range(a_shape[0]):
        row = [(a_name, (i, j)) for j in range(a_shape[1])]
        column = [(b_name, (j, i)) for j in range(b_shape[0])]
        units.append(row + column)
    return units


def joined(shapes, groups):
    """Return units that each hold all scalars of a group of parameters."""
    return [[(name, index) for name in group for index in _indices(shapes[name])] for group in groups]


def mean_importance(scores, units):
    return [sum(float(scores[name][index]) for name, index in unit) / len(unit) for unit in units]


def outer_importance(a_scores, b_scores):
    """Return the mean of the outer product of the scores of B's column i and A's row i, for each i."""
    values = []
    for i in range(a_scores.shape[0]):
        total, count = 0.0, 0
        for b in b_scores[:, i].tolist():
            for a in a_scores[i, :].tolist():
                total, count = total + a * b, count + 1
        values.append(total / count)
    return values


def _indices(shape):
    return [tuple(index) for index in torch.ones(shape).nonzero().tolist()]
