"""The page's account of a run: its settings, data, versions and machine, its history, and warnings."""

from __future__ import annotations

from typing import Any

from kifuse.record.run_record import RunRecord, TaskRecord
from kifuse.reporting.run_pictures import numbered
from kifuse.reporting.tables import Cell, Table
from kifuse.reporting.wording import NONE, clean, compact, count, duration, number, plain

_EVENTS = 40
"""The largest number of entries that are shown of each task."""

_PARTS = {"train": "training", "dev": "validation", "test": "test"}


def heading(record: RunRecord) -> str:
    """Return method and stream: `recurrent-kif on standard-cl order 1`."""
    return f"{clean(record.method.name)} on {clean(record.stream)}"


def meta(record: RunRecord) -> list[str]:
    """Return the parts of the line below the title: model, adapter, seed, date, status."""
    said = [_model(record)]
    adapter = (
        record.config.get("model", {}).get("adapter")
        if isinstance(record.config.get("model"), dict)
        else None
    )
    if isinstance(adapter, dict):
        kind = clean(adapter.get("kind", "lora"))
        ranked = kind not in ("ia3", "full", "osf") and "rank" in adapter
        said.append(f"{kind}, rank {plain(adapter['rank'])}" if ranked else kind)
    said += [f"{clean(name)} seed {seed}" for name, seed in record.seeds.items()]
    said.append(record.method.data_class)
    said.append(clean(record.finished or record.created)[:10])
    return said


def settings(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the configuration, section by section; the method's section has its defaults filled in.

    Args:
        record: The run.

    Returns:
        A list of (section, [(key, value)]).
    """
    method = {"name": record.method.name, **record.method.settings}
    sections: dict[str, Any] = {"method": method}
    sections.update({key: value for key, value in record.config.items() if key != "method"})
    found, loose = [], []
    for name, values in sections.items():
        if isinstance(values, dict):
            found.append((clean(name), _flat(values)))
        else:
            loose.append((clean(name), plain(values)))
    limits = {"max_forgetting": record.max_forgetting, "min_score": record.min_score}
    limits["repair"] = record.repair or None
    loose += [(name, plain(limit)) for name, limit in limits.items() if limit is not None]
    return found + ([("run", loose)] if loose else [])


def facts(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return model, machine, versions, memory and times of the run, each as (title, [(key, value)])."""
    times = {
        "started": record.created,
        "finished": record.finished or "not yet",
        "training": duration(record.train_seconds()),
        "scoring": duration(sum(cell.seconds for cell in record.scores)),
        "status": record.status,
    }
    memory = {
        "examples": record.memory.get("examples", 0),
        "of tasks": record.memory.get("tasks", []),
        "replayed": record.replayed(),
    }
    parts = {
        "model": record.model,
        "machine": record.machine,
        "versions": {**record.versions, "kifuse": record.versions.get("kifuse", record.kifuse_version)},
        "memory buffer": memory,
        "time": times,
    }
    return [(name, _flat(values)) for name, values in parts.items() if values]


def cost_table(record: RunRecord) -> Table:
    """Make the table of what the training of each task cost.

    Args:
        record: The run.

    Returns:
        A table with a line for each task and one for all.
    """
    heads = ["task", "steps", "examples", "replayed", "extra passes", "seconds", "inputs cut", "kept"]
    table = Table("costs", "What each task took", heads)
    columns = ["train_steps", "examples_seen", "replayed_examples", "extra_forward_backward", "seconds_train"]
    for i, task in enumerate(record.tasks, start=1):
        values = [getattr(task, column) for column in columns] + [task.cut_inputs, task.kept_parameters]
        table.rows.append([Cell(numbered(i, task.name)), *(_amount(value) for value in values)])
    totals = []
    for column in range(1, len(heads) - 1):
        known = [value for row in table.rows if (value := row[column].value) is not None]
        totals.append(_amount(sum(known) if known else None))
    totals.append(_amount(record.kept_at_end()))
    if len(table.rows) > 1:
        table.total = [Cell("all"), *totals]
    table.notes.append(
        "Extra passes are forward and backward passes beyond one for each step. Inputs cut are training "
        "inputs that lost their middle because they were too long. Kept are the numbers in the adapter and "
        "the method's state after the task."
    )
    return table


def events_table(record: RunRecord) -> Table | None:
    """Make the table of what the method and the training noted about each task.

    Args:
        record: The run.

    Returns:
        A table with a line for each event; None if there are no events.
    """
    table = Table("events", "Events in training", ["task", "step", "what", "details"])
    for i, task in enumerate(record.tasks, start=1):
        for event in task.events[:_EVENTS]:
            details = {key: value for key, value in event.items() if key not in ("kind", "step")}
            step = event.get("step")
            table.rows.append(
                [
                    Cell(numbered(i, task.name)),
                    _amount(step if isinstance(step, int) else None),
                    Cell(clean(event.get("kind", NONE))),
                    Cell("; ".join(f"{clean(key)} {_detail(value)}" for key, value in details.items())),
                ]
            )
        if len(task.events) > _EVENTS:
            more = count(len(task.events) - _EVENTS, "more entry", "more entries")
            table.notes.append(f"{numbered(i, task.name)}: {more} in the record.")
    return table if table.rows else None


def _detail(value: object) -> str:
    if isinstance(value, float):
        return compact(value)
    if isinstance(value, list) and len(value) > 12:
        return f"{plain(value[:5])}, … {plain(value[-1])} ({len(value)} in all)"
    return plain(value)


def data_table(record: RunRecord) -> Table:
    """Make the table of each task's data: sizes, metric, labels, and the hash of each part.

    Args:
        record: The run.

    Returns:
        A table with a line for each part of each task.
    """
    table = Table("data", "Data", ["task", "part", "examples", "metric", "labels", "SHA-256"])
    for i, task in enumerate(record.tasks, start=1):
        for part in dict.fromkeys([*task.sizes, *task.hashes]):
            size = task.sizes.get(part)
            table.rows.append(
                [
                    Cell(numbered(i, task.name)),
                    Cell(_PARTS.get(part, clean(part))),
                    Cell(NONE if size is None else f"{size:,}", None if size is None else float(size)),
                    Cell(clean(task.metric)),
                    Cell(str(len(task.labels)) if task.labels else "free text", note=_labels(task.labels)),
                    Cell(clean(task.hashes.get(part, NONE))),
                ]
            )
    return table


def history_table(record: RunRecord) -> Table | None:
    """Make the table of what was learned, refused or rolled back in a learner's folder, oldest first.

    Args:
        record: The run.

    Returns:
        A table with a line for each event; None for a run that has no such history.
    """
    if not record.lineage:
        return None
    table = Table("history", "History", ["when", "what", "task", "score", "worst change of another", "why"])
    for entry in record.lineage:
        task = entry.get("task")
        before, after = _scores(entry.get("before")), _scores(entry.get("after"))
        changes = {
            name: score - before[name] for name, score in after.items() if name in before and name != task
        }
        worst = min(changes, key=lambda name: changes[name], default=None)
        own = after.get(str(task))
        table.rows.append(
            [
                Cell(clean(entry.get("when", NONE))),
                Cell(clean(entry.get("event", NONE))),
                Cell(NONE if task is None else clean(task)),
                Cell(number(own), own),
                Cell(NONE if worst is None else f"{clean(worst)} {number(changes[worst], sign=True)}"),
                Cell(clean(entry.get("reason") or "")),
            ]
        )
    return table


def _scores(found: object) -> dict[str, float]:
    if not isinstance(found, dict):
        return {}
    return {str(name): float(score) for name, score in found.items() if isinstance(score, int | float)}


def notices(record: RunRecord) -> list[str]:
    """Return everything that a reader should be careful about.

    Args:
        record: The run.

    Returns:
        Warnings, overlaps of the data, losses that were not finite, and notes.
    """
    said = [clean(warning) for warning in record.warnings]
    looked = any(task.repeated is not None for task in record.tasks)  # then the warnings say it
    for overlap in [] if looked else record.overlaps:
        sides = [f"{clean(overlap.get(f'task_{s}'))} ({_side(overlap, s)})" for s in ("a", "b")]
        number_of = overlap.get("count")
        shared = count(number_of, "input") if isinstance(number_of, int) else "some inputs"
        said.append(f"{shared} of {sides[0]} also in {sides[1]}")
    for task in record.tasks:
        broken = sum(loss is None for _, loss in task.loss)
        if broken:
            said.append(f"{clean(task.name)}: {count(broken, 'recorded loss', 'recorded losses')} not finite")
        if task.cut_test_inputs and not looked:
            cut = count(task.cut_test_inputs, "test input")
            said.append(f"{clean(task.name)}: {cut} lost their middle because they were too long")
        said += _skipped(task)
        said += [f"{clean(task.name)}: {clean(note)}" for note in task.notes]
        if task.forgotten is not None:
            said.append(
                f"{clean(task.name)}: its examples were forgotten on request, {clean(task.forgotten)}"
            )
        if task.repaired is not None:
            steps, pull = task.repaired.get("steps"), task.repaired.get("pull")
            said.append(
                f"{clean(task.name)}: repaired: the weights were pulled back {plain(steps)} times, by "
                f"{plain(pull)} of the way to those before it"
            )
    return said + [clean(note) for note in record.notes]


def _skipped(task: TaskRecord) -> list[str]:
    """Report the steps that moved nothing."""
    name = clean(task.name)
    bad = [event for event in task.events if event.get("kind") == "bad step"]
    said = (
        [
            (
                f"{name}: {count(len(bad), 'step')} whose loss or gradient was not finite did not change the "
                "weights"
            )
        ]
        if bad
        else []
    )
    for event in task.events:
        skipped = event.get("skipped_steps")
        if event.get("kind") == "fp16 overflows" and isinstance(skipped, int) and skipped:
            said.append(f"{name}: {count(skipped, 'step')} skipped by an fp16 overflow")
    return said


def _side(overlap: dict[str, Any], side: str) -> str:
    part = str(overlap.get(f"split_{side}"))
    return _PARTS.get(part, clean(part))


def _model(record: RunRecord) -> str:
    name = clean(record.model.get("name", "unknown model"))
    size = record.model.get("parameters")
    if not isinstance(size, int):
        return name
    return (
        f"{name} ({number(size / 1e6)} million parameters)"
        if size >= 1e5
        else f"{name} ({size:,} parameters)"
    )


def _labels(labels: list[str] | None) -> str:
    return ", ".join(clean(label) for label in labels or [])


def _amount(value: float | None) -> Cell:
    if value is None:
        return Cell(NONE)
    return Cell(f"{value:,.0f}" if value == int(value) else f"{value:,.1f}", float(value))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{clean(key)}", f"{value:,}" if _large(value) else plain(value)))
    return found


def _large(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 100_000
