"""The pictures of what a method measured for each trainable tensor: importance, its drift, masks, movement.

Nothing here knows which method ran. The pictures are made from the series in the record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from kifuse.methods.shown import Event, Series
from kifuse.record.run_record import RunRecord, TaskRecord
from kifuse.reporting.plots import CurvePanel, Curves, Heatmap, HeatmapPanel, Line, Plot, Shares
from kifuse.reporting.run_pictures import Missing, task_names
from kifuse.reporting.svg import round_up
from kifuse.reporting.tensors import by_layer
from kifuse.reporting.wording import clean, number

PROBED = re.compile(r"probed importance of (?P<task>.+), (?P<moment>end|step \d+)")
"""The names of the series that `kifuse.running.importance_probe` writes."""

_Shares = tuple[list[float], str]
"""The percentages of `PARTS`, and what they are percentages of."""

_Cells = dict[str, dict[str, float]]
"""Values by group of tensors, then by layer."""

RELATIVE = "share of the largest in its row"
_OWN = "Each row is scaled by its largest value, as the size of importance changes with the loss."
_PAIR = "A cell is the mean over the tensors of a module (for LoRA its matrices A and B)."


def views(record: RunRecord) -> list[Plot | Missing]:
    """Draw heatmaps of tasks by layers, with a panel for each stack and projection.

    Args:
        record: The run.

    Returns:
        A heatmap for each series on record, with the drift of historical importance right after that
        importance, or the one reason why there are none.
    """
    names = task_names(record)
    found: list[Plot | Missing] = []
    for series in record.shown().series:
        rows = _series(record, series.name)
        if series.title and any(rows):
            low_high = (0.0, _upper_end(rows) if series.unit else 1.0)
            shown = rows if series.unit else [_scaled(cells) for cells in rows]
            meaning = f"{series.meaning} {_PAIR if series.unit else f'{_OWN} {_PAIR}'}"
            unit = series.unit or RELATIVE
            found.append(_heatmap(_file_name(series), series.title, meaning, names, shown, unit, low_high))
        if series.drift_from:
            found += _drift(record, series, names)
    return found or [Missing("importance", "Importance of skill units", _why_not(record))]


def probed(record: RunRecord) -> list[Plot | Missing]:
    """Draw heatmaps of one task's importance with a row for each later moment; none if none was asked for.

    Args:
        record: The run.
    """
    found: dict[str, list[tuple[str, _Cells]]] = {}
    for label, task in zip(task_names(record), record.tasks, strict=True):
        names, series = task.per_tensor.get("names"), task.per_tensor.get("series")
        for key in series if isinstance(series, dict) else ():
            match, values = PROBED.fullmatch(key), _values(task, key)
            if match and isinstance(names, list) and values is not None and len(names) == len(values):
                moment = f"after {label}" if match["moment"] == "end" else f"{label}, {match['moment']}"
                cells = _scaled(by_layer([clean(n) for n in names], values))
                found.setdefault(clean(match["task"]), []).append((moment, cells))
    return [
        _heatmap(
            f"probed-importance-{place}",
            f"Importance of {task} over the stream",
            f"Where the loss of {task} is sensitive, measured again at each moment on the same examples. "
            f"{_OWN} {_PAIR}",
            [moment for moment, _ in rows],
            [cells for _, cells in rows],
            RELATIVE,
            (0.0, 1.0),
        )
        for place, (task, rows) in enumerate(found.items(), 1)
    ]


def moved_beside_importance(record: RunRecord) -> Plot | Missing:
    """Draw the size of the task vector against importance: a panel for each task, a dot for each module.

    Args:
        record: The run.

    Returns:
        Panels with the rank correlation beside their titles.
    """
    name, title = "moved-importance", "Did the most important modules move most?"
    panels = []
    pairs = [(_series(record, s.name), _series(record, s.beside)) for s in record.shown().series if s.beside]
    importances, movements = next(((one, other) for one, other in pairs if any(one)), ([], []))
    if not any(movements):
        return Missing(name, title, _why_not(record))
    rows = zip(task_names(record), importances, movements, strict=True)
    for label, importance, moved in rows:
        across, up = _scaled(importance), _scaled(moved)
        lines = [
            Line(group, [(x, up[group][k]) for k, x in cells.items() if k in up.get(group, {})], group=place)
            for place, (group, cells) in enumerate(across.items())
        ]
        points = [point for line in lines for point in line.points]
        if points:
            agreement = rank_correlation(points)
            remark = "" if agreement is None else f"rank correlation {number(agreement, 2)}"
            panels.append(CurvePanel(label, [line for line in lines if line.points], remark))
    if not panels:
        return Missing(name, title, "The record of no task has both importance and movement.")
    return Curves(
        name=name,
        title=title,
        meaning="Each dot is one adapted module: how important it was to the task, and how far the task "
        "moved it, both as a share of the task's largest. A rank correlation of 1 means that the "
        "order by importance and by movement is the same.",
        panels=panels,
        x_title="importance (share of largest)",
        y_title="moved (share of largest)",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        dots=True,
    )


PARTS = ("kept from before", "shared", "overwritten by the task", "neither")


def fused_units(record: RunRecord) -> Plot | Missing:
    """Draw what happened to the skill units at each task's fusions.

    Args:
        record: The run.

    Returns:
        A bar for each task with the shares of units that are important to earlier tasks only, to both
        sides, to the new task only, and to neither.
    """
    name, title = "fused-units", "What the fusions did with the skill units"
    rows, values, of = [], [], set()
    fusions = record.fusions()
    masks = {series.fused: series.name for series in record.shown().series if series.fused}
    for label, task in zip(task_names(record), record.tasks, strict=True):
        shares = _from_event(task, fusions) or _from_masks(task, masks)
        if shares is not None:
            rows.append(label)
            values.append(shares[0])
            of.add(shares[1])
    if not rows:
        return Missing(name, title, _why_no_fusion(record))
    return Shares(
        name=name,
        title=title,
        meaning="Kept: important to the earlier tasks only. Shared: important to both. Overwritten: "
        "important to the new task only. Neither: important to neither.",
        rows=rows,
        parts=PARTS,
        values=values,
        unit=f"share of the {' and '.join(sorted(of))} (%)",
    )


def rank_correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Compute Spearman's rank correlation; equal values get their mean rank.

    Args:
        points: (x, y) pairs.

    Returns:
        A number from -1 to 1; None for fewer than three points, or if all x or all y are equal.
    """
    if len(points) < 3:
        return None
    xs, ys = (_ranks([point[side] for point in points]) for side in (0, 1))
    mean = (len(points) + 1) / 2
    both = sum((x - mean) * (y - mean) for x, y in zip(xs, ys, strict=True))
    spread = (sum((x - mean) ** 2 for x in xs) * sum((y - mean) ** 2 for y in ys)) ** 0.5
    return both / spread if spread else None


def _ranks(values: list[float]) -> list[float]:
    order = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(order, start=1)))}
    counts = {value: order.count(value) for value in first}
    return [first[value] + (counts[value] - 1) / 2 for value in values]


def _series(record: RunRecord, name: str) -> list[_Cells]:
    """Return one series by group and layer, for each task; empty for a task that lacks it."""
    rows: list[_Cells] = []
    for task in record.tasks:
        names, values = task.per_tensor.get("names"), _values(task, name)
        fits = isinstance(names, list) and values is not None and len(names) == len(values)
        rows.append(by_layer([clean(n) for n in names or []], values or []) if fits else {})
    return [cells if any(cells.values()) else {} for cells in rows]


def _values(task: TaskRecord, name: str) -> list[float | None] | None:
    series: Any = task.per_tensor.get("series")
    values = series.get(name) if isinstance(series, dict) else None
    if not isinstance(values, list):
        return None
    return [float(v) if isinstance(v, int | float) else None for v in values]


def _scaled(cells: _Cells) -> _Cells:
    """Divide the values by the largest one, so that rows of different size can be compared."""
    largest = max((abs(v) for layers in cells.values() for v in layers.values()), default=0.0)
    return {g: {k: v / largest if largest else 0.0 for k, v in c.items()} for g, c in cells.items()}


def _upper_end(rows: list[_Cells]) -> float:
    """Choose the upper end of the scale: 1 for shares near 1, otherwise the next round number."""
    largest = max(v for cells in rows for layers in cells.values() for v in layers.values())
    return 1.0 if largest > 0.5 else round_up(largest)


def _heatmap(
    name: str,
    title: str,
    meaning: str,
    names: list[str],
    rows: list[_Cells],
    unit: str,
    ends: tuple[float, float],
) -> Heatmap:
    # a task without the series, such as the first one, has no row
    names = [name for name, cells in zip(names, rows, strict=True) if cells]
    rows = [cells for cells in rows if cells]
    groups = list(dict.fromkeys(group for cells in rows for group in cells))
    panels = []
    for group in groups:
        layers = list(dict.fromkeys(layer for cells in rows for layer in cells.get(group, {})))
        layers.sort(key=lambda layer: int(layer) if layer.isdecimal() else -1)
        panels.append(HeatmapPanel(group, [[c.get(group, {}).get(k) for k in layers] for c in rows], layers))
    return Heatmap(
        name=name,
        title=title,
        meaning=meaning,
        rows=names,
        row_title="task",
        column_title="layer",
        unit=unit,
        panels=panels,
        low=ends[0],
        high=ends[1],
        diverging=ends[0] < 0,
    )


def _file_name(series: Series) -> str:
    return series.name.replace("_", "-")


def _drift(record: RunRecord, later: Series, names: list[str]) -> list[Plot | Missing]:
    """Draw how importance has changed since the series that it is compared with, or since the task before."""
    own = later.drift_from == later.name
    after = _series(record, later.name)
    before = [{}, *after][: len(after)] if own else _series(record, later.drift_from)
    rows = [
        _combined(_scaled(old), _scaled(new), lambda a, b: b - a) if old and new else {}
        for old, new in zip(before, after, strict=True)
    ]
    if not any(rows):
        return []
    since = "from the task before" if own else "from before the row's task to after it"
    largest = max(abs(v) for cells in rows for layers in cells.values() for v in layers.values())
    end = max(largest, 1e-9)
    meaning = (
        f"Change of the importance to earlier tasks {since}: blue gained, orange lost. Both values are "
        f"shares of the largest value in their row. {_PAIR}"
    )
    unit = "change of the share"
    return [_heatmap(f"{_file_name(later)}-drift", "Drift", meaning, names, rows, unit, (-end, end))]


def _combined(one: _Cells, other: _Cells, join: Callable[[float, float], float]) -> _Cells:
    return {
        group: {k: join(v, other[group][k]) for k, v in cells.items() if k in other.get(group, {})}
        for group, cells in one.items()
    }


def _from_event(task: TaskRecord, fusions: list[tuple[TaskRecord, dict[str, Any], Event]]) -> _Shares | None:
    """Compute the shares of units at the end of a task from the counts that the method noted."""
    for of_task, event, declared in fusions:
        counts = [event.get(key) for key in ("kept", "shared", "overwritten", "neither")]
        if of_task is task and all(isinstance(count, int | float) for count in counts):
            total = sum(float(count) for count in counts if count is not None)
            if total > 0:
                return [100.0 * float(c) / total for c in counts if c is not None], declared.fusion_of
    return None


def _from_masks(task: TaskRecord, names: dict[str, str]) -> _Shares | None:
    """Compute the shares of parameters in the masks of old and new, averaged over the fusions."""
    new, old, both = (_values(task, names.get(part, "")) for part in ("new", "old", "both"))
    if not new or not old or not both or None in [*new, *old, *both]:
        return None
    sizes = task.per_tensor.get("sizes")
    weights = sizes if isinstance(sizes, list) and len(sizes) == len(both) else [1] * len(both)
    total = sum(weights)

    def share(values: list[float | None]) -> float:
        return 100.0 * sum(w * (v or 0.0) for w, v in zip(weights, values, strict=True)) / total

    shared = share(both)
    kept, taken = share(old) - shared, share(new) - shared
    return [kept, shared, taken, 100.0 - kept - shared - taken], "parameters"


def _why_not(record: RunRecord) -> str:
    if not record.learned():
        return "No task has been learned yet."
    return f"The record has no importance of skill units: {record.method.name} measured none in this run."


def _why_no_fusion(record: RunRecord) -> str:
    if record.fusions():
        return (
            "The record says how many fusions there were, but not which units they kept, shared or overwrote."
        )
    return f"Old and new weights were not fused: {record.method.name} did no fusion in this run."
