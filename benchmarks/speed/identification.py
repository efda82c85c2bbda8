"""Time importance, masks and unit scores at the size of T5-large's adapter, against the published code."""

from __future__ import annotations

import torch
from benchmarks.speed.pairs import Ratio, in_turn, ratio
from torch import Tensor

from kifuse.knowledge import ImportanceTracker, SkillUnits, top_fraction_threshold

RANK, WIDTH, PAIRS = 8, 1024, 144


def adapter() -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Make names, weights and gradients: 288 tensors with 2.36 M scalars."""
    draw = torch.Generator().manual_seed(0)
    names, shapes = [], []
    for pair in range(PAIRS):
        kind = "q" if pair % 2 == 0 else "v"
        stem = f"encoder.block.{pair // 2}.layer.0.SelfAttention.{kind}"
        names += [f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight"]
        shapes += [(RANK, WIDTH), (WIDTH, RANK)]
    weights = [torch.randn(shape, generator=draw) for shape in shapes]
    return names, weights, [torch.randn(shape, generator=draw) for shape in shapes]


class ByParameter:
    """Smoothed sensitivity and its variation, parameter by parameter in dictionaries, as published."""

    def __init__(self) -> None:
        self.ipt: dict[str, Tensor] = {}
        self.exp_avg_ipt: dict[str, Tensor] = {}
        self.exp_avg_unc: dict[str, Tensor] = {}

    def update(self, names: list[str], weights: list[Tensor], grads: list[Tensor]) -> None:
        """Take in one step (Eq. 8, 10, 11)."""
        for name, weight, grad in zip(names, weights, grads, strict=True):
            if name not in self.ipt:
                for table in (self.ipt, self.exp_avg_ipt, self.exp_avg_unc):
                    table[name] = torch.zeros_like(weight)
            self.ipt[name] = (weight * grad).abs().detach()
            self.exp_avg_ipt[name] = 0.85 * self.exp_avg_ipt[name] + 0.15 * self.ipt[name]
            change = (self.ipt[name] - self.exp_avg_ipt[name]).abs()
            self.exp_avg_unc[name] = 0.85 * self.exp_avg_unc[name] + 0.15 * change

    def scores(self) -> list[Tensor]:
        """Return the scores (Eq. 12)."""
        return [self.exp_avg_ipt[name] * self.exp_avg_unc[name] for name in self.exp_avg_ipt]


def masks_by_sorting(scores: list[Tensor]) -> list[Tensor]:
    """Make the masks as published: put all scores in one row, sort it for its quantile, mask each tensor."""
    row = torch.cat([score.reshape(-1) for score in scores])
    kept = int(0.2 * row.numel())
    threshold = row.sort(descending=True).values[kept]
    return [(score > threshold).float() for score in scores]


def rank_scores_by_outer_products(scores: list[Tensor]) -> Tensor:
    """Compute the published score of a rank: the mean of the outer product of B's column and A's row."""
    found = []
    for a, b in zip(scores[::2], scores[1::2], strict=True):
        found += [torch.outer(b[:, k], a[k]).mean() for k in range(RANK)]
    return torch.stack(found)


def compare(quick: bool) -> list[Ratio]:
    """Time kifuse's way and the published way."""
    rounds = 3 if quick else 30
    names, weights, grads = adapter()
    tracker, literal = ImportanceTracker(weights), ByParameter()
    size = f"{sum(w.numel() for w in weights) / 1e6:.2f} M scalars in {len(weights)} tensors"
    results = [
        ratio(
            "importance of a step",
            "ImportanceTracker.update",
            "a loop over parameters, as published",
            in_turn(
                lambda: tracker.update(weights, grads),
                lambda: literal.update(names, weights, grads),
                rounds,
            ),
            size,
        ),
        _against_bandwidth(tracker, weights, grads, rounds),
    ]
    scores = literal.scores()

    def select() -> list[Tensor]:
        threshold = top_fraction_threshold(scores, 0.2)
        return [score > threshold for score in scores]

    assert all(torch.equal(m, n.bool()) for m, n in zip(select(), masks_by_sorting(scores), strict=True))
    results.append(
        ratio(
            "mask of the top 20%",
            "counting bit patterns",
            "sorting all scores",
            in_turn(select, lambda: masks_by_sorting(scores), max(3, rounds // 3)),
            size + "; the same masks",
        )
    )
    units = SkillUnits.build(names, [tuple(w.shape) for w in weights], "rank")
    torch.testing.assert_close(units.reduce(scores, "outer"), rank_scores_by_outer_products(scores))
    results.append(
        ratio(
            "scores of rank units",
            "product of two means",
            "mean of outer products, as published",
            in_turn(
                lambda: units.reduce(scores, "outer"),
                lambda: rank_scores_by_outer_products(scores),
                max(3, rounds // 3),
            ),
            f"{units.count} units; the same scores",
        )
    )
    return results


def _against_bandwidth(
    tracker: ImportanceTracker, weights: list[Tensor], grads: list[Tensor], rounds: int
) -> Ratio:
    """Time an update against copying: it reads w and g, and reads and writes two averages: six rows."""
    total = sum(w.numel() for w in weights)
    source, target = torch.randn(3 * total), torch.empty(3 * total)
    return ratio(
        "importance of a step, against memory",
        "ImportanceTracker.update",
        "copying as many bytes (three rows read, three written)",
        in_turn(lambda: tracker.update(weights, grads), lambda: target.copy_(source), rounds),
        "the copy is the bound that memory sets",
    )
