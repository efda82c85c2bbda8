"""The settings that were tried and scored on dev: which value is chosen, the table and the curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kifuse.reporting.comparison_tables import metric
from kifuse.reporting.plots import CurvePanel, Curves, Line, Mean, Plot, Strips
from kifuse.reporting.run_groups import Group, Run
from kifuse.reporting.run_pictures import Missing
from kifuse.reporting.tables import Cell, Table
from kifuse.reporting.wording import clean, count, listed, number

NAME, TITLE = "sweep", "Score on dev of the settings tried"


@dataclass(frozen=True)
class Tried:
    """One value of each key, with one method.

    Attributes:
        method: The label of the method.
        values: The values, by the keys of the sweep.
        runs: The runs that have a record.
        expected: How many runs there will be.
    """

    method: str
    values: tuple[Any, ...]
    runs: tuple[Run, ...]
    expected: int

    @property
    def on_dev(self) -> Mean | None:
        """AP on dev over seeds and orders; None until all runs are finished."""
        found = Group("", list(self.runs)).mean(metric("AP"))
        return found if found is not None and len(found.values) == self.expected else None


@dataclass(frozen=True)
class Sweep:
    """All values of all methods of a comparison.

    Attributes:
        keys: The keys of the configuration that were varied, dotted.
        tried: Method by method, in the order in which the values were given.
    """

    keys: tuple[str, ...]
    tried: tuple[Tried, ...]

    @property
    def methods(self) -> list[str]:
        """The labels of the methods."""
        return list(dict.fromkeys(each.method for each in self.tried))

    def of(self, method: str) -> list[Tried]:
        """Return everything that was tried with a method."""
        return [each for each in self.tried if each.method == method]

    def chosen(self, method: str) -> Tried | None:
        """Return the value with the highest mean AP on dev, the first if several are equal.

        None if no value is scored yet.
        """
        scored = [(mean.value, each) for each in self.of(method) if (mean := each.on_dev) is not None]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    def title(self, tried: Tried) -> str:
        """Return the title that people read: `kif, learning_rate 0.0001`."""
        return f"{clean(tried.method)}, {_title(self, tried.values, None)}"

    @property
    def names(self) -> list[str]:
        """The keys without their section, if they still differ without it."""
        short = [key.rpartition(".")[2] for key in self.keys]
        return short if len(set(short)) == len(short) else list(self.keys)


def sweep_table(sweep: Sweep) -> Table:
    """Make the table with a line for each value: its mean AP on dev and the spread."""
    table = Table(
        NAME, "Settings tried, scored on dev", ["method", *sweep.names, "runs", "AP on dev", "chosen"]
    )
    for method in sweep.methods:
        chosen = sweep.chosen(method)
        for each in sweep.of(method):
            mean = each.on_dev
            aside = None if mean is None or mean.deviation is None else number(mean.deviation)
            value = None if mean is None else mean.value
            done = sum(run.record.status == "finished" for run in each.runs)
            table.rows.append(
                [
                    Cell(clean(method)),
                    *(Cell(clean(v), float(v) if _is_number(v) else None) for v in each.values),
                    Cell(f"{done} of {each.expected}" if done < each.expected else str(done), float(done)),
                    Cell(number(value), value, aside),
                    Cell("chosen" if each is chosen else ""),
                ]
            )
    waiting = sum(each.on_dev is None for each in sweep.tried)
    if waiting:
        table.notes.append(f"{count(waiting, 'value')} without all runs, which cannot be chosen yet.")
    table.notes.append(
        "AP is over the dev examples of all tasks. The highest mean is chosen, and the first one of equal "
        "means. Test examples are scored with the chosen value only."
    )
    return table


def sweep_picture(sweep: Sweep) -> Plot | Missing:
    """Draw the mean AP on dev against the first key whose values are numbers, with a line for each method."""
    scored = [each for each in sweep.tried if each.on_dev is not None]
    if len(scored) < 2:
        return Missing(NAME, TITLE, "Fewer than two values are scored on dev so far.")
    axis = next(
        (i for i in range(len(sweep.keys)) if all(_is_number(each.values[i]) for each in sweep.tried)), None
    )
    best = [
        f"{_title(sweep, chosen.values, None)} for {clean(method)}"
        for method in sweep.methods
        if (chosen := sweep.chosen(method)) is not None
    ]
    meaning = f"Mean AP on the dev examples of all tasks, over seeds and orders. Chosen: {listed(best)}."
    if axis is None:
        rows = [sweep.title(each) for each in scored]
        return Strips(NAME, TITLE, meaning, rows, [("AP on dev (0 to 100)", [e.on_dev for e in scored])])
    lines = []
    for group, (method, rest) in enumerate(_families(sweep, axis)):
        family = [each for each in scored if (each.method, _without(each.values, axis)) == (method, rest)]
        found = sorted((float(e.values[axis]), e.on_dev.value) for e in family if e.on_dev is not None)
        title = ", ".join(filter(None, [clean(method), _title(sweep, rest, axis)]))
        if found:
            lines.append(Line(title, found, group=group))
    across = [x for line in lines for x, _ in line.points]
    up = [y for line in lines for _, y in line.points]
    room = max((max(up) - min(up)) * 0.1, 1.0)
    return Curves(
        name=NAME,
        title=TITLE,
        meaning=meaning,
        panels=[CurvePanel("", lines)],
        x_title=sweep.names[axis],
        y_title="AP on dev (0 to 100)",
        x_range=(min(across), max(across)),
        y_range=(max(min(up) - room, 0.0), min(max(up) + room, 100.0)),
        wide=True,
        log=min(across) > 0 and max(across) >= 5 * min(across),
    )


def _families(sweep: Sweep, axis: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the methods with the values of the other keys, each combination once."""
    found: list[tuple[str, tuple[Any, ...]]] = []
    for each in sweep.tried:
        family = each.method, _without(each.values, axis)
        if family not in found:
            found.append(family)
    return found


def _without(values: Sequence[Any], axis: int) -> tuple[Any, ...]:
    return tuple(value for place, value in enumerate(values) if place != axis)


def _title(sweep: Sweep, values: Sequence[Any], but: int | None) -> str:
    names = [name for place, name in enumerate(sweep.names) if place != but]
    return ", ".join(f"{name} {clean(value)}" for name, value in zip(names, values, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
