"""The penalty of ELLA, computed for one row of the update at a time."""


def penalty(layers, strength, normalise):
    """Compute the penalty. `layers` has for each layer the (A, B) of all tasks; the last pair is trained."""
    total = 0.0
    for pairs in layers:
        *earlier, (a, b) = pairs
        if not earlier:
            continue
        rows = range(len(b))
        past = [
            sum(old_b[i, k] * old_a[k] for old_a, old_b in earlier for k in range(len(old_a))) for i in rows
        ]
        size = 1.0
        if normalise:
            count = len(past) * len(past[0])
            size = (sum(float((row * row).sum()) for row in past) / count) ** 0.5 or 1.0
        for i in rows:
            update = sum(b[i, k] * a[k] for k in range(len(a)))
            entries = update * past[i] / size
            total = total + strength * (entries * entries).sum()
    return total
