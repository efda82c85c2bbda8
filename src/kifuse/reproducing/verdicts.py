"""Whether the published ordering holds: each claim of the paper, and the rank correlation of all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kifuse.record.run_record import RunRecord
from kifuse.reporting.comparison_tables import metric
from kifuse.reporting.paired_differences import Paired, paired
from kifuse.reporting.run_groups import Group
from kifuse.reporting.wording import listed, number
from kifuse.reproducing.catalog import Claim

Verdict = Literal["holds", "direction only", "not", "not measured"]

Measure = Callable[[RunRecord], float | None]
"""Finds a figure in the record of one run."""

SAME = {"OP": "AP"}
"""Recurrent-KIF calls the average performance OP, overall performance."""


@dataclass(frozen=True)
class Judged:
    """A claim and its verdict.

    Attributes:
        claim: The claim.
        verdict: `holds` if every difference has the right sign and its 95% interval leaves out zero;
            `direction only` if every sign is right; `not` if one is wrong; `not measured` if a pair shares no
            order and seed.
        why: The differences, in words.
    """

    claim: Claim
    verdict: Verdict
    why: str


def judge(claim: Claim, groups: Mapping[str, Group], measures: Mapping[str, Measure] | None = None) -> Judged:
    """Judge a claim by what was measured.

    Args:
        claim: The claim.
        groups: The runs of each row, by the row's name.
        measures: The table's own measures, by their names in its claims.
    """
    measure = {"first task": _first_task, **(measures or {})}.get(claim.measure) or metric(claim.measure)
    absent = [name for name in (claim.above, *claim.below) if name not in groups]
    pairs = [paired(groups[claim.above], groups[name], measure) for name in claim.below] if not absent else []
    without = absent or [pair.against for pair in pairs if pair.mean is None]
    if without:
        return Judged(claim, "not measured", f"no finished run to compare with: {', '.join(without)}")
    wrong = [pair for pair in pairs if (pair.mean or 0.0) <= 0]
    if wrong:
        return Judged(claim, "not", _differences(wrong, claim))
    if all(pair.apart for pair in pairs):
        return Judged(claim, "holds", _differences(pairs, claim))
    return Judged(claim, "direction only", _differences([p for p in pairs if not p.apart], claim))


def rank_correlation(
    published: Mapping[str, float | None], groups: Mapping[str, Group], measure: Measure
) -> tuple[float, int] | None:
    """How similar the order of the rows is here and in the paper.

    Args:
        published: The published figure of each row that the rows are ordered by; None if there is none.
        groups: The runs of each row.
        measure: The same figure of one run.

    Returns:
        Spearman's rank correlation, from -1 to 1, and over how many rows; None for fewer than three, or if
        all scores of one side are equal.
    """
    from scipy.stats import spearmanr

    pairs = []
    for row, theirs in published.items():
        mean = groups[row].mean(measure) if row in groups else None
        if theirs is not None and mean is not None:
            pairs.append((theirs, mean.value))
    if len(pairs) < 3 or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    theirs, ours = zip(*pairs, strict=True)
    found: Any = spearmanr(theirs, ours)
    return float(found.statistic), len(pairs)


def _first_task(record: RunRecord) -> float | None:
    """The change of the first task's score from when it was learned to the end, in points."""
    matrix = record.matrix()
    learned, kept = matrix.get(1, 0), matrix.get(len(record.tasks), 0)
    return None if learned is None or kept is None else kept - learned


def _differences(pairs: Sequence[Paired], claim: Claim) -> str:
    """`3.1 above L2P (standard error 0.4), 0.2 below MIGU (one pair)`."""
    said = []
    for pair in pairs:
        mean = pair.mean or 0.0
        sure = "one pair" if pair.error is None else f"standard error {number(pair.error)}"
        size, side = number(abs(mean)), "above" if mean > 0 else "below"
        where = "level with" if size == number(0.0) else f"{size} {side}"
        said.append(f"{where} {pair.against} ({sure})")
    return f"{claim.above} is {listed(said)} in {claim.measure}"
