"""The headline of a run: its most important numbers, and plain sentences that say what they mean."""

from __future__ import annotations

from dataclasses import dataclass

from kifuse.record.run_record import RunRecord
from kifuse.record.score_matrix import Metric
from kifuse.reporting.run_pictures import lost_by_task, metrics, unlike_metrics
from kifuse.reporting.wording import NONE, clean, clock, count, duration, megabytes, number

_METRICS = {
    "AP": "average score of all tasks at the end",
    "BWT": "change of earlier tasks since they were learned",
    "forgetting": "fall of earlier tasks from their best score",
    "FWT": "score on a task just before it is trained on",
}
_LITTLE = 5.0
"""Below this score a task cannot be said to have been learned."""

_FEW_VALID = 80.0
"""Below this share of valid outputs, in percent, the headline says so."""

_FEW = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True)
class Figure:
    """One number of the headline.

    Attributes:
        name: The name of the number.
        value: The text that is shown; a dash if there is no value.
        unit: The unit, in smaller letters behind the value.
        note: What the number means, or why there is none.
    """

    name: str
    value: str
    unit: str
    note: str


def figures(record: RunRecord) -> list[Figure]:
    """Return the headline's numbers of a run, each with a note.

    Args:
        record: The run.

    Returns:
        AP, BWT, forgetting, FWT, valid outputs, time and memory.
    """
    found = []
    for name, metric in metrics(record).items():
        signed = name == "BWT"
        note = _METRICS[name] if metric.value is not None else f"none: {metric.reason}"
        found.append(Figure(name, number(metric.value, sign=signed), "", note))
    found.sort(key=lambda figure: list(_METRICS).index(figure.name))
    share = record.valid_share()
    if share is None:
        labelled = any(task.labels for task in record.tasks)
        why = "not scored at the end yet" if labelled else "no task has labels"
        found.append(Figure("valid outputs", NONE, "", f"none: {why}"))
    else:
        found.append(Figure("valid outputs", number(share), "%", "answers at the end that are a label"))
    scoring = sum(cell.seconds for cell in record.scores)
    found.append(
        Figure("training time", *clock(record.train_seconds()), f"and {duration(scoring)} of scoring")
    )
    kept = record.memory.get("examples")
    buffer = f"; {count(kept, 'old example')} remembered" if isinstance(kept, int) and kept else ""
    peak, _, unit = megabytes(record.peak_memory_mb).partition(" ")
    found.append(Figure("peak memory", peak, unit, f"on {_device(record)}{buffer}"))
    return found


def sentence(record: RunRecord) -> str:
    """Sum up a run.

    Args:
        record: The run.

    Returns:
        One to three plain sentences.
    """
    tasks, learned = len(record.tasks), record.learned()
    if not tasks:
        return "No task has been learned yet."
    if record.status == "running" and learned < tasks:
        return f"The run is not finished: it has learned {spelled(learned)} of {spelled(tasks)} tasks."
    summary = metrics(record)
    average = summary["AP"].value
    if average is None:
        return f"The run is complete but not all of it is scored: {_reason(summary['AP'])}."
    if record.method.data_class == "all data":
        return (
            f"Trained on all {spelled(tasks)} tasks at once, the model scores {number(average)} on average. "
            "It cannot forget, so methods that learn one task after another are compared with it."
        )
    if tasks == 1:
        return f"The one task was learned to a score of {number(average)}."
    return " ".join(filter(None, (_kept(record, summary), _worst(record), _invalid(record))))


def how_scored(record: RunRecord) -> str:
    """Say what a score means in this run."""
    named = f" ({unlike_metrics(record)})" if record.tasks else ""
    said = f"Scores run from 0 to 100{named}."
    data = record.config.get("data")
    if isinstance(data, dict) and data.get("scored_on") == "dev":
        said += " They are on dev examples; no test example was used."
    precision = record.machine.get("precision")
    if precision in ("bf16", "fp16"):
        said += (
            f" Answers were generated in {precision}. If two tokens are almost equally likely, another "
            "precision, batch or machine may choose the other one."
        )
    return said


def spelled(value: int) -> str:
    """Write a small number as a word."""
    return _FEW[value - 1] if 1 <= value <= len(_FEW) else ("none" if value == 0 else str(value))


def _kept(record: RunRecord, summary: dict[str, Metric]) -> str:
    average, change = summary["AP"].value, summary["BWT"].value
    start = f"After {spelled(len(record.tasks))} tasks the model scores {number(average)} on average."
    changes = lost_by_task(record)
    if change is None or not changes:
        return f"{start} The scores of the earlier tasks are not known: {_reason(summary['BWT'])}."
    was = sum(learned for _, learned, _ in changes) / len(changes)
    now = sum(final for _, _, final in changes) / len(changes)
    moved = f"from {number(was)} when learned to {number(now)} at the end"
    if was < _LITTLE and now < _LITTLE:
        return f"{start} There was little to forget: the earlier tasks went {moved}."
    share = -change / was if was > 0 else 0.0
    if change > 1.0:
        return f"{start} It got better at the earlier tasks, {moved}."
    if share < 0.03:
        return f"{start} It kept what it had learned: the earlier tasks went {moved}."
    if share < 0.15:
        return f"{start} It lost a little of what it had learned: the earlier tasks fell {moved}."
    if share < 0.5:
        return f"{start} It lost a good part of what it had learned: the earlier tasks fell {moved}."
    return f"{start} It lost most of what it had learned: the earlier tasks fell {moved}."


def _invalid(record: RunRecord) -> str:
    share = record.valid_share()
    if share is None or share >= _FEW_VALID:
        return ""
    return f"Only {number(share)}% of its answers at the end are a label of their task."


def _worst(record: RunRecord) -> str:
    changes = lost_by_task(record)
    if len(changes) < 2:
        return ""
    worst = min(changes, key=lambda change: change[2] - change[1])
    if worst[2] >= worst[1]:
        return "No task scores lower than when it was learned."
    return f"{worst[0]} lost the most ({number(worst[1])} to {number(worst[2])})."


def _reason(metric: Metric) -> str:
    return metric.reason or "the scores are missing"


def _device(record: RunRecord) -> str:
    device = record.machine.get("device_name") or record.machine.get("device") or "an unknown device"
    return clean(device)
