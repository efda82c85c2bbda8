"""SLAO on one pair, row by row: Gram-Schmidt by hand, and merging as a sum with weights in closed form."""

import math


def orthonormal_rows(a):
    """Make the rows of A orthonormal in their order, and find how the old rows are composed of them.

    Returns q with orthogonal unit rows, and r (lower triangle, positive diagonal) with A = r q.
    """
    q, r = [], [[0.0] * len(a) for _ in a]
    for i, row in enumerate(a):
        left = [float(x) for x in row]
        # twice, so that rounding errors leave the rows orthogonal
        for _ in range(2):
            for j, unit in enumerate(q):
                along = sum(x * y for x, y in zip(left, unit, strict=True))
                r[i][j] += along
                left = [x - along * y for x, y in zip(left, unit, strict=True)]
        length = math.sqrt(sum(x * x for x in left))
        r[i][i] = length
        q.append([x / length for x in left])
    return q, r


def times(first, second):
    """Multiply two matrices that are lists."""
    return [
        [sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*second, strict=True)]
        for row in first
    ]


def merged(tuned):
    """Merge the tasks' fine-tuned B: each has the weight lambda_j prod_{k>j} (1 - lambda_k)."""
    total = [[0.0] * len(tuned[0][0]) for _ in tuned[0]]
    for j in range(1, len(tuned) + 1):
        weight = 1 / math.sqrt(j)
        for k in range(j + 1, len(tuned) + 1):
            weight *= 1 - 1 / math.sqrt(k)
        for y, row in enumerate(tuned[j - 1]):
            for x, value in enumerate(row):
                total[y][x] += weight * value
    return total
