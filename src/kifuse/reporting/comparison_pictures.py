"""The pictures of several runs: methods side by side, task by task, cost against quality."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kifuse.record.run_record import RunRecord
from kifuse.reporting.comparison_tables import all_tasks, final_score, learned_score, metric, reference
from kifuse.reporting.paired_differences import paired
from kifuse.reporting.plots import Cloud, CurvePanel, Curves, Heatmap, HeatmapPanel, Line, Mean, Plot, Strips
from kifuse.reporting.run_groups import Group, fusions
from kifuse.reporting.run_pictures import Missing
from kifuse.reporting.wording import count, listed

_TITLES = {
    "AP": "AP, average at the end (0 to 100)",
    "BWT": "BWT, change since learned (points)",
}


def methods(groups: Sequence[Group]) -> Plot | Missing:
    """Draw AP and BWT of every group, with their spread and the single runs."""
    name, title = "methods", "Quality and forgetting, method by method"
    panels = [(label, [group.mean(metric(key)) for group in groups]) for key, label in _TITLES.items()]
    panels = [(label, means) for label, means in panels if any(means)]
    if not panels:
        return Missing(name, title, "No run is finished, so there is nothing to compare yet.")
    several = any(len(group.runs) > 1 for group in groups)
    spread = " Bars are one standard deviation, small dots the single runs." if several else ""
    return Strips(
        name=name,
        title=title,
        meaning="In both, further right is better: a higher average at the end, and a smaller loss on the "
        f"earlier tasks.{spread}",
        rows=[group.label for group in groups],
        panels=panels,
    )


def task_differences(groups: Sequence[Group]) -> Plot | Missing:
    """Draw the score of each task at the end, as the difference from the reference group."""
    first, others = reference(groups)
    name, title = "task-differences", f"Difference from {first.label}"
    names, rows = all_tasks(groups), []
    for task in names:
        base = first.mean(lambda record, task=task: final_score(record, task))
        means = [g.mean(lambda record, task=task: final_score(record, task)) for g in others]
        rows.append([m.value - base.value if m and base else None for m in means])
    values = [abs(value) for row in rows for value in row if value is not None]
    if not others or not values:
        return Missing(name, title, "No two methods have finished runs with a common task.")
    end = max(values) or 1.0
    return Heatmap(
        name=name,
        title=title,
        meaning=f"Score of each task after the last one, minus that of {first.label}: blue is better, "
        "orange is worse.",
        rows=names,
        row_title="task",
        column_title="",
        unit=f"points above {first.label}",
        panels=[HeatmapPanel("", rows, [group.label for group in others])],
        low=-end,
        high=end,
        diverging=True,
        decimals=1,
    )


def learned_and_kept(groups: Sequence[Group]) -> Plot | Missing:
    """Draw the score of each task right after it was learned and at the end, for each group."""
    name, title = "learned-and-kept", "Every task when it was learned, and at the end"
    names, panels = all_tasks(groups), []
    for group in groups:
        moments = {"learned": learned_score, "at the end": final_score}
        if group.runs[0].record.method.data_class == "all data":
            moments = {"joint": final_score}
        rows = [[group.mean(partial(score, task=task)) for score in moments.values()] for task in names]
        if any(mean for row in rows for mean in row):
            values = [[mean.value if mean else None for mean in row] for row in rows]
            panels.append(HeatmapPanel(group.label, values, list(moments)))
    if not panels:
        return Missing(name, title, "No run is finished, so there is nothing to compare yet.")
    return Heatmap(
        name=name,
        title=title,
        meaning="A panel shows the score right after the task was learned on its left, and the score after "
        "the last task on its right. The fall between them was forgotten. Training on all tasks at "
        "once has only one score.",
        rows=names,
        row_title="task",
        column_title="",
        unit="score (0 to 100)",
        panels=panels,
        low=0.0,
        high=100.0,
        decimals=1,
    )


def cost_and_quality(groups: Sequence[Group]) -> Plot | Missing:
    """Draw AP against the training time."""
    name, title = "cost", "Cost against quality"
    points: list[tuple[int, str, Mean, Mean]] = []
    for place, group in enumerate(groups):
        time, score = group.mean(_minutes), group.mean(metric("AP"))
        if time is not None and score is not None:
            points.append((place, group.label, time, score))
    if len(points) < 2:
        return Missing(name, title, "Fewer than two methods have finished runs.")
    machines = {
        (run.record.machine.get("device_name"), run.record.machine.get("threads"))
        for group in groups
        for run in group.runs
    }
    caution = " The runs were made on different machines or thread counts." if len(machines) > 1 else ""
    return Cloud(
        name=name,
        title=title,
        meaning="Up and to the left is better: a higher average for less training time. Lines are one "
        f"standard deviation.{caution}",
        points=points,
        x_title="training time (minutes)",
        y_title="AP (0 to 100)",
    )


def number_of_fusions(groups: Sequence[Group]) -> Plot | Missing:
    """Draw AP and BWT against the number of fusions."""
    name, title = "fusion-count", "Quality against the number of fusions"
    panels = []
    finished = [r.record for group in groups for r in group.runs if fusions(r.record)]
    counts = sorted({fusions(record) for record in finished})
    if len(counts) < 2:
        reason = "All runs fused old and new weights equally often."
        return Missing(name, title, reason)
    everything: list[float] = []
    for key in _TITLES:
        points = []
        for fused in counts:
            values = [
                value
                for record in finished
                if fusions(record) == fused and (value := metric(key)(record)) is not None
            ]
            if values:
                points.append((float(fused), sum(values) / len(values)))
        everything += [y for _, y in points]
        if points:
            panels.append(CurvePanel(key, [Line(key, points)]))
    low, high = min([0.0, *everything]), max([0.0, *everything])
    return Curves(
        name=name,
        title=title,
        meaning="Mean of the runs with as many fusions; they may differ in other settings too.",
        panels=panels,
        x_title="fusions in the run",
        y_title="AP, BWT (points)",
        x_range=(0.0, float(counts[-1])),
        y_range=(low - 5 if low < 0 else 0.0, high + 5),
        whole=True,
    )


def model_size(groups: Sequence[Group]) -> Plot | Missing:
    """Draw AP, FWT and BWT against the size of the model, with a curve for each method."""
    name, title = "model-size", "Quality against the size of the model"
    finished = [run.record for group in groups for run in group.runs if run.record.status == "finished"]
    sizes = sorted({size for record in finished if isinstance(size := record.model.get("parameters"), int)})
    if len(sizes) < 2:
        return Missing(name, title, "The finished runs all have models of the same size.")
    panels, everything = [], [0.0]
    for key in ("AP", "FWT", "BWT"):
        lines = []
        for place, method in enumerate(dict.fromkeys(record.method.name for record in finished)):
            of = [record for record in finished if record.method.name == method]
            points = [(size / 1e6, mean) for size in sizes if (mean := _of_size(key, of, size)) is not None]
            if points:
                lines.append(Line(method, points, group=place))
                everything += [y for _, y in points]
        if lines:
            panels.append(CurvePanel(key, lines))
    if not panels:
        return Missing(name, title, "No finished run has AP, FWT or BWT.")
    low, high = min(everything), max(everything)
    return Curves(
        name=name,
        title=title,
        meaning="Mean of a method's runs with a model of that size; the models may differ in other ways too.",
        panels=panels,
        x_title="parameters of the model (millions)",
        y_title="AP, FWT, BWT (points)",
        x_range=(sizes[0] / 1e6, sizes[-1] / 1e6),
        y_range=(low - 5 if low < 0 else 0.0, high + 5),
        log=True,
    )


def _of_size(key: str, records: Sequence[RunRecord], size: int) -> float | None:
    """Return the mean of a metric over the runs with a model of this size; None if no run has the metric."""
    found = [metric(key)(record) for record in records if record.model.get("parameters") == size]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def sentence(groups: Sequence[Group]) -> str:
    """Sum up the comparison in plain words.

    Args:
        groups: The groups.

    Returns:
        One to three sentences.
    """
    scored = [(g, mean) for g in groups if (mean := g.mean(metric("AP"))) is not None]
    if len(groups) == 1 and scored:
        return f"{groups[0].label} reaches an average of {scored[0][1]} at the end."
    if len(scored) < 2:
        said = count(len(groups), "method")
        return f"{said}, of which {len(scored)} can be compared: the others are not finished."
    learning = [(g, m) for g, m in scored if g.runs[0].record.method.data_class != "all data"]
    ranked = sorted(learning or scored, key=lambda item: -item[1].value)
    (best, top), *others = ranked
    if others and round(others[0][1].value, 1) == round(top.value, 1):
        said = listed([f"{g.label} reaches {m}" for g, m in ranked]) + "."
        return " ".join([said, "The first two are level.", *_together(scored, learning)])
    said = f"{best.label} is best, with an average of {top} at the end"
    said += f"; {listed([f'{g.label} reaches {m}' for g, m in others])}." if others else "."
    caution = _caution(ranked[0], ranked[1]) if others else ""
    return " ".join([said + caution, *_together(scored, learning)])


def _caution(leader: tuple[Group, Mean], follower: tuple[Group, Mean]) -> str:
    """Say how far the spread puts a lead in doubt: that over shared pairs of runs, or over all runs."""
    (one, first), (other, second) = leader, follower
    if first.deviation is None and second.deviation is None:
        return " The first two were run once each, so the difference may be chance."
    shared = paired(one, other, metric("AP"))
    if shared.error is not None:
        many = count(len(shared.differences), "pair")
        doubt = f" {many} of runs do not tell the first two apart: more seeds are needed."
        return "" if shared.apart else doubt
    spread = max(first.deviation or 0.0, second.deviation or 0.0)
    if first.value - second.value < 2 * spread:
        return (
            " The first two differ by less than twice their spread, so more seeds are needed to tell them "
            "apart."
        )
    return ""


def _together(scored: list[tuple[Group, Mean]], learning: list[tuple[Group, Mean]]) -> list[str]:
    """Write a sentence for each group that was trained on all tasks at once."""
    if not learning:
        return []
    return [
        f"Training on all tasks at once ({group.label}) reaches {mean}."
        for group, mean in scored
        if group not in [other for other, _ in learning]
    ]


def progress(groups: Sequence[Group]) -> Plot | Missing:
    """Draw the mean score of the tasks learned so far, after each task, for runs that scored all of them."""
    name, title = "progress", "Average over the tasks learned so far"
    lines, longest = [], 0
    for place, group in enumerate(groups):
        tasks = max(len(run.record.tasks) for run in group.runs)
        means = [
            group.mean(lambda record, learned=learned: _average_so_far(record, learned))
            for learned in range(1, tasks + 1)
        ]
        points = [(float(i), mean.value) for i, mean in enumerate(means, start=1) if mean is not None]
        if tasks > 1 and len(points) == tasks:
            lines.append(Line(group.label, points, group=place))
            longest = max(longest, tasks)
    if len(lines) < 2:
        reason = (
            "Fewer than two methods were scored on all earlier tasks after each "
            "task(evaluation.full_matrix: true)."
        )
        return Missing(name, title, reason)
    return Curves(
        name=name,
        title=title,
        meaning="Mean score of the tasks learned so far, after each of them. A method with a flat curve "
        "learns without forgetting; one with a falling curve forgets as it learns.",
        panels=[CurvePanel("", lines)],
        x_title="tasks learned",
        y_title="mean score (0 to 100)",
        x_range=(1.0, float(longest)),
        y_range=(0.0, 100.0),
        whole=True,
        wide=True,
    )


def _minutes(record: RunRecord) -> float | None:
    seconds = record.train_seconds()
    return seconds / 60 if seconds else None


def _average_so_far(record: RunRecord, learned: int) -> float | None:
    if learned > len(record.tasks) or record.method.data_class == "all data":
        return None
    return record.matrix().average_performance(learned).value
