"""IncLoRA: y = W x + s sum_i B_i A_i x, written as one weight, one task at a time."""


def merged(weight, pairs, scale):
    """Compute W + s sum_i B_i A_i, rank by rank."""
    for a, b in pairs:
        for k in range(a.shape[0]):
            weight = weight + scale * b[:, k].unsqueeze(1) * a[k].unsqueeze(0)
    return weight


def penalty(layers):
    """Return 0: there is no penalty. `layers` has for each layer the (A, B) of all tasks so far."""
    return sum(0.0 * b.sum() for pairs in layers for _, b in pairs[-1:])
