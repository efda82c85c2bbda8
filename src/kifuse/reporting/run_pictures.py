"""The pictures that every run's record has the numbers for: scores, forgetting, loss, learning rate."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kifuse.record.run_record import RunRecord, TaskRecord
from kifuse.record.score_matrix import Metric
from kifuse.reporting.plots import CurvePanel, Curves, Heatmap, HeatmapPanel, Line, Plot, Timeline
from kifuse.reporting.wording import clean, listed, number
from kifuse.scoring.metrics import metric_titles

SCORE = "score (0 to 100)"
STEP = "optimizer step"

_FEW = 20
"""With at most this many tasks, each panel of the forgetting curves shows the other tasks in grey."""

_WIDE = 20
"""A curve gets a logarithmic axis if its largest value is at least this many times its smallest."""


@dataclass(frozen=True)
class Missing:
    """A picture that cannot be made from a record, and a plain sentence that says why."""

    name: str
    title: str
    reason: str


def task_names(record: RunRecord) -> list[str]:
    """Return the tasks in the order of learning, numbered unless they have numbers: `1 yelp`, `01-queue`."""
    return [numbered(i, task.name) for i, task in enumerate(record.tasks, start=1)]


def numbered(place: int, name: str) -> str:
    """Put a task's place in the stream before its name, unless the name already begins with it."""
    name = clean(name)
    own = re.match(r"0*(\d+)\D", name)
    return name if own and own[1] == str(place) else f"{place} {name}"


def score_matrix(record: RunRecord) -> Plot | Missing:
    """Draw the score of each task after each learned task.

    Args:
        record: The run.

    Returns:
        A heatmap with a row for each moment at which tasks were scored.
    """
    name, title = "score-matrix", "Score of every task after every task"
    if not record.tasks:
        return Missing(name, title, "No task has been learned yet.")
    names, matrix = task_names(record), record.matrix()
    count = len(names)
    grid = [[matrix.get(after, task) for task in range(count)] for after in range(count + 1)]
    moments = [after for after, row in enumerate(grid) if any(score is not None for score in row)]
    if not moments:
        return Missing(name, title, "Nothing has been scored yet.")
    joint = record.method.data_class == "all data"
    marks = frozenset((place, after - 1) for place, after in enumerate(moments) if after and not joint)
    meaning = (
        "All tasks were trained at once, so they are scored only once."
        if joint
        else "A row shows what the model could do at that moment; a column follows one task."
    )
    return Heatmap(
        name=name,
        title=title,
        meaning=meaning,
        rows=[_moment(after, names, joint) for after in moments],
        row_title="moment",
        column_title="score on",
        unit=SCORE,
        panels=[HeatmapPanel("", [grid[after] for after in moments], names)],
        low=0.0,
        high=100.0,
        decimals=1,
        marked=marks,
        marks="" if joint else "right after the task was learned",
    )


def forgetting_curves(record: RunRecord) -> Plot | Missing:
    """Draw each task's score after each learned task: a panel for each task, with the others behind it.

    Args:
        record: The run.

    Returns:
        Curves over the number of learned tasks.
    """
    name, title = "forgetting", "The score of each task as others were learned"
    if not record.tasks:
        return Missing(name, title, "No task has been learned yet.")
    names, matrix = task_names(record), record.matrix()
    count = len(names)
    if record.method.data_class == "all data":
        return Missing(name, title, "All tasks were trained at once, so no task came after another.")
    if count < 2:
        return Missing(name, title, "There is only one task, so none came after it.")
    found = [
        [(float(after), score) for after in range(count + 1) if (score := matrix.get(after, i)) is not None]
        for i in range(count)
    ]
    if not any(len(points) > 1 for points in found):
        return Missing(name, title, "No task has been scored twice yet.")
    lines = [Line(label, points) for label, points in zip(names, found, strict=True)]
    # with many tasks, showing all others in each panel would be too many curves: tasks times tasks
    behind = lines if count <= _FEW else []
    panels = [
        CurvePanel(
            names[i],
            [*(_since_learned(j, o) for j, o in enumerate(behind, start=1) if o is not line), line],
            _from_to(matrix.get(i + 1, i), matrix.get(count, i) if i + 1 < count else None),
        )
        for i, line in enumerate(lines)
        if line.points
    ]
    meaning = (
        "Each panel follows one task: its score before it was learned, right after, and after later tasks. "
        + ("The grey curves are the other tasks. " if behind else "")
        + _worst(record)
    )
    return Curves(
        name=name,
        title=title,
        meaning=meaning.strip(),
        panels=panels,
        x_title="tasks learned",
        y_title=SCORE,
        x_range=(0.0, float(count)),
        y_range=(0.0, 100.0),
        whole=True,
    )


def losses(record: RunRecord) -> Plot | Missing:
    """Draw the training loss over the steps of all tasks, with the fusions marked.

    Args:
        record: The run.

    Returns:
        A timeline.
    """
    points = [[(float(s), v) for s, v in task.loss if v is not None] for task in record.tasks]
    if not any(points):
        return Missing("loss", "Training loss", "The record holds no training losses yet.")
    marks, unknown = _fusion_steps(record)
    meaning = "Training loss of the tasks, one after another."
    if marks:
        meaning += " The ticks at the bottom are the steps after which old and new weights were fused."
    elif unknown:
        meaning += " The record does not say at which steps old and new weights were fused."
    missing = sum(value is None for task in record.tasks for _, value in task.loss)
    if missing:
        meaning += f" {missing} of the recorded losses were not finite and are left out."
    unit = "training loss (nats per token)"
    return _timeline(record, "loss", "Training loss", meaning, points, marks=marks, y_title=unit)


def learning_rates(record: RunRecord) -> Plot | Missing:
    """Draw the learning rate over the steps of all tasks, if it is on record.

    Args:
        record: The run.

    Returns:
        A timeline.
    """
    title = "Learning rate"
    points = [_rates(task) for task in record.tasks]
    if any(points):
        meaning = "Learning rate of each step; the schedule starts again with every task."
        return _timeline(record, "learning-rate", title, meaning, points, marks=[], y_title="learning rate")
    training = record.config.get("training")
    settings = training if isinstance(training, dict) else {}
    said = "The record does not have the learning rate of each step."
    if "learning_rate" in settings:
        warmup = settings.get("warmup_steps")
        said += f" It starts each task at {settings['learning_rate']}"
        if settings.get("scheduler"):
            said += f" and follows the {clean(settings['scheduler'])} schedule"
        said += f" after {warmup} steps of warm-up." if warmup else "."
    return Missing("learning-rate", title, said)


def metrics(record: RunRecord) -> dict[str, Metric]:
    """Return AP, FWT, BWT and forgetting as `RunRecord.summary` has them, also before the first task."""
    if not record.tasks:
        return dict.fromkeys(("AP", "FWT", "BWT", "forgetting"), Metric(None, "no task has been learned yet"))
    return record.summary()


def lost_by_task(record: RunRecord) -> list[tuple[str, float, float]]:
    """Return for each task (name, score right after it was learned, score at the end).

    Args:
        record: The run.

    Returns:
        All tasks but the last that have both scores; none for an unfinished run or for joint training.
    """
    if not record.tasks or record.method.data_class == "all data" or record.learned() < len(record.tasks):
        return []
    matrix, count = record.matrix(), len(record.tasks)
    found = []
    for i, task in enumerate(record.tasks[:-1]):
        learned, final = matrix.get(i + 1, i), matrix.get(count, i)
        if learned is not None and final is not None:
            found.append((clean(task.name), learned, final))
    return found


def _since_learned(place: int, line: Line) -> Line:
    """Make the faint curve of a task behind another task: its scores since it was learned."""
    return Line(line.label, [point for point in line.points if point[0] >= place], faint=True)


def _worst(record: RunRecord) -> str:
    changes = lost_by_task(record)
    if not changes:
        return ""
    name, learned, final = min(changes, key=lambda change: change[2] - change[1])
    if final >= learned:
        return "No task scores lower at the end than when it was learned."
    return f"{name} fell the most, from {number(learned)} to {number(final)}."


def _moment(after: int, names: list[str], joint: bool) -> str:
    if after == 0:
        return "before training"
    return "after all tasks" if joint else f"after {names[after - 1]}"


def _from_to(learned: float | None, final: float | None) -> str:
    if learned is None:
        return "not learned yet"
    return number(learned) + ("" if final is None else f" → {number(final)}")


def _timeline(
    record: RunRecord,
    name: str,
    title: str,
    meaning: str,
    points: list[list[tuple[float, float]]],
    *,
    marks: list[float],
    y_title: str,
) -> Timeline:
    starts = _starts(record)
    labels = task_names(record)
    values = [y for found in points for _, y in found if y > 0]
    shifted = [[(x + start, y) for x, y in found] for found, start in zip(points, starts, strict=True)]
    return Timeline(
        name=name,
        title=title,
        meaning=meaning,
        spans=[
            (label, start, start + _steps(task))
            for label, start, task in zip(labels, starts, record.tasks, strict=True)
            if _steps(task)
        ],
        lines=[Line(label, found) for label, found in zip(labels, shifted, strict=True) if found],
        marks=marks,
        mark="fusion",
        x_title=f"{STEP}, all tasks in turn",
        y_title=y_title,
        log=len(values) == sum(map(len, points)) and max(values) > _WIDE * min(values),
    )


def _steps(task: TaskRecord) -> float:
    return float(task.train_steps or max((step for step, _ in task.loss), default=0))


def _starts(record: RunRecord) -> list[float]:
    """Return the number of steps before each task."""
    starts = [0.0]
    for task in record.tasks[:-1]:
        starts.append(starts[-1] + _steps(task))
    return starts


def _fusion_steps(record: RunRecord) -> tuple[list[float], bool]:
    """Return the steps of all fusions, and whether the record lacks the steps of some."""
    starts = {task.name: start for task, start in zip(record.tasks, _starts(record), strict=True)}
    marks, unknown = [], False
    for task, event, _ in record.fusions():
        # an event that counts rounds was noted at the end of the task, not at the steps of the rounds
        known = event.get("steps", None if "rounds" in event else [event.get("step")])
        if isinstance(known, list):
            marks += [starts[task.name] + step for step in known if isinstance(step, int)]
        else:
            unknown = True
    return marks, unknown


def _rates(task: TaskRecord) -> list[tuple[float, float]]:
    found = getattr(task, "learning_rate", None) or []
    return [(float(step), float(rate)) for step, rate in found if rate is not None]


def unlike_metrics(record: RunRecord) -> str:
    """Say in a few words how the tasks are scored: `exact match`, `exact match and ROUGE-L`."""
    return listed([clean(title) for title in metric_titles([task.metric for task in record.tasks])])
