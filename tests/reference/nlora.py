"""The penalty of N-LoRA, computed for one row of the product at a time."""


def penalty(layers, strength, product):
    """Compute the penalty. `layers` has for each layer the (A, B) of all tasks; the last pair is trained."""
    total = 0.0
    for pairs in layers:
        a, b = pairs[-1]
        left, right = (b, a) if product == "BA" else (a, b)
        for row in left:
            out = sum(row[k] * right[k] for k in range(len(right)))
            total = total + strength * abs(out).sum()
    return total
