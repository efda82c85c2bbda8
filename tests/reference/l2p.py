"""A literal computation of what L2P puts before an input, one row and one key at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def picked(
    embedded: list[Tensor], prompts: Tensor, keys: Tensor, count: int
) -> tuple[list[list[int]], list[Tensor], list[float]]:
    """Return for each row which prompts it picks, what is put before it, and the sum of the cosines.

    Args:
        embedded: For each row the embeddings of its own tokens, `(tokens, d)`, without padding.
        prompts: `(M, L, d)`.
        keys: `(M, d)`.
        count: N.
    """
    chosen, before, alike = [], [], []
    for row in embedded:
        query = sum(row[t] for t in range(len(row))) / len(row)
        cosines = [float(query @ key / (query.norm() * key.norm())) for key in keys]
        order = sorted(range(len(keys)), key=lambda m: -cosines[m])[:count]
        chosen.append(order)
        before.append(torch.cat([prompts[m] for m in order]))
        alike.append(sum(cosines[m] for m in order))
    return chosen, before, alike
