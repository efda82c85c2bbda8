"""The tables of several runs: methods side by side, task by task, run by run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kifuse.errors import RunError
from kifuse.record.run_record import RunRecord
from kifuse.record.score_matrix import Metric
from kifuse.reporting.plots import Mean
from kifuse.reporting.run_groups import Group, Run
from kifuse.reporting.run_pictures import metrics
from kifuse.reporting.tables import Cell, Table
from kifuse.reporting.wording import MINUS, NONE, clean, count, listed, number

METRICS = ("AP", "BWT", "FWT", "forgetting")

_IN_WORDS = {
    "AP": "AP, average at the end",
    "FWT": "FWT, before training",
    "BWT": "BWT, change since learned",
    "forgetting": "forgetting, from best",
}


def metric(name: str) -> Callable[[RunRecord], float | None]:
    """Return a metric as a function of a record. The function gives None if the record lacks the metric."""

    def measure(record: RunRecord) -> float | None:
        found: Metric = metrics(record)[name]
        return found.value

    return measure


def final_score(record: RunRecord, task: str) -> float | None:
    """Return the score of a task after the last task; None if the run lacks it."""
    for place, entry in enumerate(record.tasks):
        if clean(entry.name) == task:
            return record.matrix().get(len(record.tasks), place)
    return None


def learned_score(record: RunRecord, task: str) -> float | None:
    """Return the score of a task right after it was learned; None if the run lacks it."""
    for place, entry in enumerate(record.tasks):
        if clean(entry.name) == task:
            return record.matrix().get(place + 1, place)
    return None


def all_tasks(groups: Sequence[Group]) -> list[str]:
    """Return the names of the tasks of all runs, in the order in which they occur."""
    return list(dict.fromkeys(clean(t.name) for g in groups for run in g.runs for t in run.record.tasks))


def reference(groups: Sequence[Group]) -> tuple[Group, list[Group]]:
    """Return the group that the others are compared with, and the others.

    Args:
        groups: One or more; the reference is the first one that learned one task after another.
    """
    ordered = [g for g in groups if g.runs[0].record.method.data_class != "all data"]
    first = ordered[0] if ordered else groups[0]
    return first, [group for group in groups if group is not first]


def methods_table(groups: Sequence[Group], names: Sequence[str] = METRICS) -> Table:
    """Make the table of methods: for each group a line with metrics, their spread, and the cost.

    Args:
        groups: The groups.
        names: The metrics.

    Returns:
        A table whose notes give the reasons for missing values.
    """
    table = Table(
        "methods",
        "Methods side by side",
        [
            "method",
            "runs",
            *names,
            "valid outputs, %",
            "training, s",
            "peak memory, MiB",
            "replayed",
            "extra passes",
            "class",
        ],
    )
    for group in groups:
        means = [group.mean(metric(name)) for name in names]
        means.append(group.mean(RunRecord.valid_share))
        costs = [group.mean(RunRecord.train_seconds), group.mean(lambda record: record.peak_memory_mb)]
        counts = [
            group.mean(lambda record: float(record.replayed())),
            group.mean(lambda record: float(record.extra_passes())),
        ]
        table.rows.append(
            [
                Cell(group.label),
                Cell(str(len(group.runs)), float(len(group.runs)), note=group.made_of()),
                *(mean_cell(mean) for mean in means),
                *(mean_cell(mean, 0) for mean in costs),
                *(Cell(number(m.value if m else None, 0), m.value if m else None) for m in counts),
                Cell(", ".join(dict.fromkeys(run.record.method.data_class for run in group.runs))),
            ]
        )
    table.notes += _reasons(groups, names)
    if any(len(group.runs) > 1 for group in groups):
        table.notes.append("± is the sample standard deviation over the runs of a line.")
    table.notes += _cautions(groups)
    return table


def tasks_table(groups: Sequence[Group]) -> Table:
    """Make the table of every task's score at the end, for every group.

    Args:
        groups: The groups; see `reference`.

    Returns:
        A table with a line for each task, and the differences from the reference group.
    """
    names = all_tasks(groups)
    first, others = reference(groups)
    heads = ["task", first.label]
    for group in others:
        heads += [group.label, f"{group.label} {MINUS} {first.label}"]
    table = Table("tasks", "Score of every task after the last", heads)
    for name in names:
        base = first.mean(lambda record, name=name: final_score(record, name))
        row = [Cell(name), mean_cell(base)]
        for group in others:
            mean = group.mean(lambda record, name=name: final_score(record, name))
            gap = mean.value - base.value if mean and base else None
            row += [mean_cell(mean), Cell(number(gap, sign=True), gap)]
        table.rows.append(row)
    return table


def runs_table(runs: Sequence[Run], labels: dict[int, str]) -> Table:
    """Make the table of the single runs, with a line for each.

    Args:
        runs: The runs.
        labels: The label of each run's group, by `id(run)`.

    Returns:
        A table with everything that is useful in a spreadsheet.
    """
    table = Table(
        "runs",
        "Single runs",
        [
            "run",
            "method",
            "stream",
            "seed",
            *METRICS,
            "valid outputs, %",
            "training, s",
            "peak memory, MiB",
            "status",
        ],
    )
    for run in runs:
        record = run.record
        summary = [metrics(record)[name].value for name in METRICS]
        numbers = [*summary, record.valid_share()]
        seed = run.seed
        table.rows.append(
            [
                Cell(clean(run.name), link=run),
                Cell(labels[id(run)]),
                Cell(clean(record.stream)),
                Cell("" if seed is None else str(seed), None if seed is None else float(seed)),
                *(Cell(number(value), value) for value in numbers),
                Cell(number(record.train_seconds(), 0), record.train_seconds()),
                Cell(number(record.peak_memory_mb, 0), record.peak_memory_mb),
                Cell(record.status),
            ]
        )
    return table


def scores_table(record: RunRecord) -> Table:
    """Make the table of one run's score matrix.

    Args:
        record: The run.

    Returns:
        A table with a line for each moment that was scored.
    """
    names = [clean(task.name) for task in record.tasks]
    table = Table("scores", "Score of every task after every task", ["after", *names])
    if not names:
        return table
    matrix = record.matrix()
    for after in range(len(names) + 1):
        scores = [matrix.get(after, i) for i in range(len(names))]
        if any(score is not None for score in scores):
            moment = f"{after} {names[after - 1]}" if after else "before training"
            table.rows.append([Cell(moment), *(Cell(number(score), score) for score in scores)])
    return table


def side_by_side(records: Sequence[RunRecord], labels: Sequence[str] | None = None) -> Table:
    """Make the table with a column for each run: the tasks' scores at the end, metrics, costs.

    Args:
        records: The runs.
        labels: A name for each run; by default the name of its method.

    Returns:
        A table; the note of a final score is the score right after the task was learned.

    Raises:
        RunError: If there are no records, or not one label for each.
    """
    if not records:
        raise RunError("there is nothing to compare. Name at least one run.")
    heads = list(labels) if labels is not None else _heads(records)
    if len(heads) != len(records):
        raise RunError(f"found {len(heads)} labels for {len(records)} runs, expected one for each.")
    streams = ", ".join(dict.fromkeys(record.stream for record in records))
    title = f"{streams}: score after the last task (right after it was learned)"
    table = Table("side-by-side", title, ["", *heads])
    groups = [Group(head, [Run(record)]) for head, record in zip(heads, records, strict=True)]
    names = list(dict.fromkeys(task.name for record in records for task in record.tasks))
    tasks = [[Cell(name), *(_final(record, name) for record in records)] for name in names]
    measures = {title: metric(name) for name, title in _IN_WORDS.items()}
    measures["valid outputs, %"] = RunRecord.valid_share
    metric_rows = [
        [Cell(title), *(Cell(number(v := measure(record)), v) for record in records)]
        for title, measure in measures.items()
    ]
    table.rows = [
        *tasks,
        *metric_rows,
        [Cell("trained, seconds"), *(Cell(number(record.train_seconds())) for record in records)],
        [Cell("replayed examples"), *(Cell(str(record.replayed())) for record in records)],
        [Cell("kept numbers at the end"), *(Cell(_whole(record.kept_at_end())) for record in records)],
        [Cell("class"), *(Cell(record.method.data_class) for record in records)],
    ]
    table.sections = {len(tasks), len(tasks) + len(metric_rows)}
    table.notes = [*_cautions(groups), *_reasons(groups, list(_IN_WORDS), unfinished=True)]
    for head, record in zip(heads, records, strict=True):
        absent = [name for name in names if name not in {task.name for task in record.tasks}]
        if absent:
            table.notes.append(f"{head}: not in its stream: {', '.join(absent)}")
        if record.valid_share() is None:
            labelled = any(task.labels for task in record.tasks)
            why = "not scored after the last task" if labelled else "no task has labels"
            table.notes.append(f"{head}: no valid outputs: {why}.")
        table.notes += [f"{head}: {note}" for note in record.notes]
    return table


def _final(record: RunRecord, name: str) -> Cell:
    """Make the cell of a task's score at the end, with a note of the score right after it was learned."""
    order, matrix = [task.name for task in record.tasks], record.matrix()
    if name not in order:
        return Cell(NONE)
    place = order.index(name)
    was = matrix.get(place + 1, place) if place + 1 < len(order) else None
    final = matrix.get(len(order), place)
    return Cell(number(final), final, note="" if was is None else f"(was {number(was)})")


def _whole(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _heads(records: Sequence[RunRecord]) -> list[str]:
    """Return the names of the methods; if one occurs twice, with its seed or a number."""
    names = [record.method.name for record in records]
    chosen = [
        f"{name} seed {record.seeds.get('training', '?')}" if names.count(name) > 1 else name
        for name, record in zip(names, records, strict=True)
    ]
    before = [chosen[:place].count(name) for place, name in enumerate(chosen)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(chosen, before, strict=True)]


def mean_cell(mean: Mean | None, decimals: int = 1, *, sign: bool = False) -> Cell:
    """Make the cell of a mean with its standard deviation; a dash if there is no mean."""
    if mean is None:
        return Cell(NONE)
    aside = None if mean.deviation is None else number(mean.deviation, decimals)
    return Cell(number(mean.value, decimals, sign=sign), mean.value, aside)


def _reasons(groups: Sequence[Group], names: Sequence[str], *, unfinished: bool = False) -> list[str]:
    """Say why metrics are missing, each reason once, and how many runs have not finished.

    Args:
        groups: The groups.
        names: The metrics.
        unfinished: Whether the table also shows runs that are not finished, and does not leave them out.
    """
    lacks: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        for reason, missing in _missing(group, names, unfinished).items():
            lacks.setdefault((", ".join(missing), reason), []).append(group.label)
    said = [f"{listed(labels)}: no {missing}: {reason}." for (missing, reason), labels in lacks.items()]
    for group in groups:
        waiting = sum(run.record.status != "finished" for run in group.runs)
        if waiting and not unfinished:
            said.append(f"{group.label}: {count(waiting, 'run')} not finished yet, left out of the means.")
    return said


def _missing(group: Group, names: Sequence[str], unfinished: bool) -> dict[str, list[str]]:
    """Return the metrics that runs of a group lack, by the reason."""
    lacks: dict[str, list[str]] = {}
    for run in group.runs:
        found = metrics(run.record) if unfinished or run.record.status == "finished" else {}
        for name in names:
            reason = None if name not in found or found[name].value is not None else found[name].reason
            if reason is not None and name not in lacks.setdefault(reason, []):
                lacks[reason].append(name)
    return lacks


def _cautions(groups: Sequence[Group]) -> list[str]:
    """Say why the runs may not be comparable."""
    records = [run.record for group in groups for run in group.runs]
    said = []
    if len({frozenset(task.name for task in record.tasks) for record in records}) > 1:
        said.append("The runs learned different tasks, so their averages are not over the same tasks.")
    elif len({tuple(task.name for task in record.tasks) for record in records}) > 1:
        said.append("The runs learned the tasks in different orders.")
    unlike = []
    for name in dict.fromkeys(task.name for record in records for task in record.tasks):
        tests = {t.hashes.get("test") for record in records for t in record.tasks if t.name == name}
        if len(tests - {None}) > 1:
            unlike.append(clean(name))
    if unlike:
        said.append(f"The runs were scored on different test examples of {listed(unlike)}.")
    if len({clean(record.model.get("name")) for record in records}) > 1:
        said.append("The runs have different base models.")
    return said
