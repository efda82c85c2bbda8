"""Compare methods on the pairs that they share: paired differences, and whether the methods differ clearly.

A pair is one order of the tasks with one seed. In a pair two methods have the same data, memory examples and
order of batches. So the spread between pairs, which is often larger than that between methods, cancels in
the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from kifuse.record.run_record import RunRecord
from kifuse.reporting.comparison_tables import metric
from kifuse.reporting.run_groups import Group
from kifuse.reporting.tables import Cell, Table
from kifuse.reporting.wording import NONE, count, number

CONFIDENCE = 0.95
_MOST_PAIRS = 60
_FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Paired:
    """One method compared with another one on the pairs that both have.

    Attributes:
        label: The method.
        against: The other method.
        differences: The method's measure minus the other's, in points, one for each pair of runs.
        elsewhere: In how many pairs the two runs were made on different machines or with different versions.
    """

    label: str
    against: str
    differences: list[float]
    elsewhere: int = 0

    @property
    def mean(self) -> float | None:
        """The mean difference; None without a pair of runs."""
        return fmean(self.differences) if self.differences else None

    @property
    def error(self) -> float | None:
        """The standard error of the mean, sd / sqrt(n); None for fewer than two pairs."""
        n = len(self.differences)
        return stdev(self.differences) / math.sqrt(n) if n > 1 else None

    @property
    def reach(self) -> float | None:
        """Half the width of the mean's 95% interval, from Student's t with n - 1 degrees of freedom.

        None for fewer than three pairs: by chance two differences may be almost the same, and the interval
        would promise too much.
        """
        n = len(self.differences)
        return None if self.error is None or n < _FEWEST_PAIRS else _student(n) * self.error

    @property
    def apart(self) -> bool:
        """Whether the interval does not contain zero."""
        return self.mean is not None and self.reach is not None and abs(self.mean) > self.reach

    def pairs_needed(self) -> int | None:
        """How many pairs would show that a difference of this size is not zero, if the spread stays as it is.

        Returns:
            The smallest n above the present number of pairs with t(n - 1) sd / sqrt(n) < |mean|; None if it
            is more than 60, or if the spread is not known.
        """
        if self.mean is None or self.reach is None or self.apart:
            return None
        spread = stdev(self.differences)
        pairs = range(len(self.differences) + 1, _MOST_PAIRS + 1)
        return next((n for n in pairs if _student(n) * spread / math.sqrt(n) < abs(self.mean)), None)

    def sentence(self, unit: str = "AP") -> str:
        """Say in a sentence what the differences mean."""
        if self.mean is None:
            return (
                f"{self.label} and {self.against} have no order and seed in common, so they are not compared."
            )
        over = f"over {count(len(self.differences), 'pair')} of runs"
        size = number(abs(self.mean))
        if self.error is None or self.reach is None:
            side = "above" if self.mean > 0 else "below"
            how = "level with" if size == number(0.0) else f"{size} points of {unit} {side}"
            pairs = "in one pair of runs" if self.error is None else over
            return (
                f"{self.label} is {how} {self.against} {pairs}; more seeds would show whether that is noise."
            )
        within = f"standard error {number(self.error)}, 95% interval {_interval(self)}"
        if self.apart:
            side = "above" if self.mean > 0 else "below"
            return f"{self.label} is {size} points of {unit} {side} {self.against} {over} ({within})."
        needed = self.pairs_needed()
        more = (
            f"about {needed} pairs would show a difference of this size"
            if needed
            else f"more than {_MOST_PAIRS} pairs would be needed to tell"
        )
        return (
            f"{self.label} and {self.against} cannot be told apart {over}: {number(self.mean, sign=True)} "
            f"points of {unit} ({within}); {more}."
        )


def paired(group: Group, against: Group, measure: Callable[[RunRecord], float | None]) -> Paired:
    """Compute the differences of a measure over the pairs in which both groups have a finished run.

    Args:
        group: The method.
        against: The method that it is compared with.
        measure: Finds the quantity in the record of one run.
    """
    own, other = _by_pair(group, measure), _by_pair(against, measure)
    shared = [pair for pair in own if pair in other]
    elsewhere = sum(_made_on(own[pair][1]) != _made_on(other[pair][1]) for pair in shared)
    return Paired(group.label, against.label, [own[pair][0] - other[pair][0] for pair in shared], elsewhere)


def differences_table(groups: Sequence[Group], name: str = "AP") -> Table | None:
    """Make the table that compares every method with the best one that learns task after task.

    Args:
        groups: The methods.
        name: The measure.

    Returns:
        A table whose notes are a sentence for each method, or None if there are no two methods to compare.
    """
    measure = metric(name)
    means = {id(group): group.mean(measure) for group in groups}
    known = [group for group in groups if means[id(group)] is not None]
    in_turn = [group for group in known if group.runs[0].record.method.data_class != "all data"]
    if len(known) < 2 or not in_turn:
        return None
    value = {id(group): mean.value for group in known if (mean := means[id(group)]) is not None}
    best = max(in_turn, key=lambda group: value[id(group)])
    table = Table(
        "differences",
        f"Paired differences of {name} from {best.label}",
        ["method", "pairs", "difference", "standard error", "95% interval", "apart"],
    )
    others = sorted((g for g in known if g is not best), key=lambda g: -value[id(g)])
    elsewhere = 0
    for found in (paired(group, best, measure) for group in others):
        pairs = float(len(found.differences))
        table.rows.append(
            [
                Cell(found.label),
                Cell(number(pairs, 0), pairs),
                Cell(number(found.mean, sign=True), found.mean),
                Cell(number(found.error), found.error),
                Cell(_interval(found)),
                Cell("yes" if found.apart else "no"),
            ]
        )
        table.notes.append(found.sentence(name))
        elsewhere += found.elsewhere
    if elsewhere:
        table.notes.append(
            f"In {count(elsewhere, 'pair')} the two runs were made on different machines or with different "
            "versions of the libraries, which can change a score by itself."
        )
    if len(others) > 1:
        table.notes.append(
            "Each interval is for one comparison only: of many comparisons, some differ by chance."
        )
    return table


def _by_pair(
    group: Group, measure: Callable[[RunRecord], float | None]
) -> dict[tuple[object, ...], tuple[float, RunRecord]]:
    """Return the measure of each finished run by order, seed and test examples; a pair's last run counts."""
    found = {}
    for run in group.runs:
        value = measure(run.record) if run.record.status == "finished" else None
        if value is not None:
            tests = frozenset((task.name, task.hashes.get("test")) for task in run.record.tasks)
            found[run.record.stream, run.seed, tests] = value, run.record
    return found


def _made_on(record: RunRecord) -> tuple[object, object]:
    """Return the machine and the versions that a run was made with."""
    return record.machine.get("device_name"), record.versions


def _interval(found: Paired) -> str:
    if found.mean is None or found.reach is None:
        return NONE
    low, high = found.mean - found.reach, found.mean + found.reach
    return f"{number(low, sign=True)} to {number(high, sign=True)}"


def _student(pairs: int) -> float:
    """Return the quantile of Student's t for the 95% interval of a mean over this many pairs."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, pairs - 1))
