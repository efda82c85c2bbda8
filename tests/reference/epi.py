"""A literal computation of how EPI tells tasks apart, one number at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_state(states: Tensor) -> list[float]:
    """Compute z(x): the mean of the last states of the tokens of x, `(tokens, d)`, without padding."""
    return [
        float(sum(states[t, i] for t in range(len(states))) / len(states)) for i in range(states.shape[1])
    ]


def means_of(features: list[list[float]], answers: list[str]) -> dict[str, list[float]]:
    """Compute mu_c of one task, by answer."""
    found = {}
    for answer in dict.fromkeys(answers):
        rows = [z for z, each in zip(features, answers, strict=True) if each == answer]
        found[answer] = [sum(z[i] for z in rows) / len(rows) for i in range(len(rows[0]))]
    return found


def spread_of(features: list[list[float]], answers: list[str]) -> list[list[float]]:
    """Compute Sigma_t: the mean over answers of the covariance around their means."""
    means, d = means_of(features, answers), len(features[0])
    total = [[0.0] * d for _ in range(d)]
    for answer, mean in means.items():
        rows = [z for z, each in zip(features, answers, strict=True) if each == answer]
        for z in rows:
            for i in range(d):
                for j in range(d):
                    total[i][j] += (z[i] - mean[i]) * (z[j] - mean[j]) / len(rows) / len(means)
    return total


def tasks_of(asked: list[list[float]], tasks: list[tuple[list[list[float]], list[str]]]) -> list[int]:
    """Compute t(x) = argmin_t min_c (z - mu)^T Sigma^+ (z - mu), from every task's features and answers."""
    spreads = [torch.tensor(spread_of(*task), dtype=torch.float64) for task in tasks]
    inverse = torch.linalg.pinv(sum(spreads) / len(tasks), rtol=1e-12, hermitian=True)
    found = []
    for z in asked:
        best = []
        for features, answers in tasks:
            distances = []
            for mean in means_of(features, answers).values():
                apart = torch.tensor(z, dtype=torch.float64) - torch.tensor(mean, dtype=torch.float64)
                distances.append(float(apart @ inverse @ apart))
            best.append(min(distances))
        found.append(best.index(min(best)))
    return found
