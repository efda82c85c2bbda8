"""The penalties of O-LoRA, computed for one pair of rows at a time."""


def penalty(layers, lambda1, lambda2, squares):
    """Compute the penalty. `layers` has for each layer the (A, B) of all tasks; the last pair is trained."""
    total = 0.0
    for pairs in layers:
        *earlier, (new_a, new_b) = pairs
        if not earlier:
            continue
        for old_a, _ in earlier:
            for old_row in old_a:
                for new_row in new_a:
                    entry = (old_row * new_row).sum()
                    total = total + lambda1 * (entry * entry if squares else abs(entry))
        for factor in (new_a, new_b):
            if lambda2 and factor.any():
                total = total + lambda2 * (factor * factor).sum() ** 0.5
    return total
