"""How a learner learns one task: records it, trains, scores all tasks, accepts it or takes it back."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from kifuse.errors import DataError, RunError
from kifuse.learning.open_learner import OpenLearner
from kifuse.learning.repair import probe_of, repair
from kifuse.learning.watched_tasks import answers_to_watch, refuse_watched, score_watched_now, tell_shared
from kifuse.record.lineage import (
    LearnReport,
    event,
    is_settled,
    last_event,
    put_next,
    refused_before,
    times_undone,
)
from kifuse.running.data_on_record import put_on_record, tell
from kifuse.running.progress import Plan
from kifuse.running.run_start import now, task_record
from kifuse.scoring.own_function import refuse_unnamed
from kifuse.tasks.learned_task import keep_task, kept_inputs
from kifuse.tasks.task import Task, check_different


@dataclass(frozen=True)
class Gates:
    """The limits for a task: if it costs too much or scores too low, it is rolled back.

    Attributes:
        max_forgetting: Most points (of 100) that an earlier or watched task may lose; None for no limit.
        min_score: Least score (0 to 100) of the task itself; None for no limit.
        repair: Whether, if a task costs too much, the weights are pulled back towards those before it, before
            the task is taken back.
    """

    max_forgetting: float | None = None
    min_score: float | None = None
    repair: bool = False


def learn_task(opened: OpenLearner, task: Task, gates: Gates) -> LearnReport:
    """Learn one task, score all tasks, and keep the outcome, as `ContinualLearner.learn` says.

    Args:
        opened: The learner.
        task: The task, with all data that it will use.
        gates: The limits for the task.

    Raises:
        DataError: The data is wrong, or another task of this name was learned.
        RunError: The folder is in use, or has been changed by another process.
    """
    if gates.min_score is not None and not task.test:
        raise DataError(f"Task {task.name!r}: it has no test examples, so min_score cannot be checked.")
    with opened.alone(), opened.engine.tracked():
        interrupted = settle(opened, gates)
        if interrupted is not None and last_event(opened.record) == (task.name, task.split_hash("train")):
            return interrupted
        tasks, folder = opened.tasks, opened.place.path
        refuse_watched(opened, task.name)
        check_different(list(dict.fromkeys([*tasks, task.name])), f"{folder}: the learner")
        if task.name in tasks:
            return _again(opened, task)
        refused = _refused_before(opened, task, gates)
        if refused is not None:
            return refused
        _begin(opened, task, gates)
        opened.engine.learn(opened.learned + 1, task, earlier=[])
        report = settle(opened, gates)
    if report is None:
        raise RunError(f"{folder}: task {task.name!r} was trained, but it is not in the record.")
    return report


def settle(opened: OpenLearner, gates: Gates) -> LearnReport | None:
    """Score all tasks, and accept the last one or take it back; finishes what a crash cut short.

    Call it while the folder is held.

    Returns:
        What the last task gained and cost; None if there is no task, or the last one was settled before.
    """
    record, k, engine, place = opened.record, opened.learned, opened.engine, opened.place
    if not k or is_settled(record, record.tasks[k - 1].name):
        return None
    report = _scored(opened)
    limit = gates.max_forgetting
    if gates.repair and limit is not None and report.over(limit) and not report.repaired and repair(opened):
        report = _scored(opened)
    facts = {"task": report.task, "data": record.tasks[k - 1].hashes["train"], "seconds": report.seconds}
    facts |= {"before": report.before, "after": report.after}
    if report.watched_after:
        facts["watched"] = {"before": report.watched_before, "after": report.watched_after}
    if gates.repair:
        facts |= {"repair": report.repaired or True, "max_forgetting": limit}
    aside = place.undone_adapter(times_undone(record) + 1, k)
    report = report.judged(gates.max_forgetting, gates.min_score, aside)
    if not report.accepted:
        place.back_to(engine, k - 1, "refused", **facts, reason=report.reason)
        engine.progress.say(report.reason)
    else:
        record.lineage.append(event("learned", now(), **facts))
        record.status, record.finished = "finished", now()
        engine.save()
    if engine.writes:
        shutil.rmtree(place.path / "checkpoint", ignore_errors=True)
    engine.tell_saved()
    engine.progress.finish()
    return report


def _scored(opened: OpenLearner) -> LearnReport:
    """Score all tasks after the last one, unless that was done; return what the last one gained and cost."""
    record, k, engine, place = opened.record, opened.learned, opened.engine, opened.place
    tested = [i for i in range(k) if record.tasks[i].sizes["test"]]
    if any([engine.score(k, i, place.tested(i, record)) is not None for i in tested]):
        engine.tell_row(k, range(k))
    score_watched_now(opened)
    return LearnReport.of(record, k - 1, engine.snapshots.adapter(k))


def _again(opened: OpenLearner, task: Task) -> LearnReport:
    """The report of a task that was learned before."""
    index = opened.tasks.index(task.name)
    for split in ("train", "test"):
        if opened.record.tasks[index].hashes[split] != task.split_hash(split):
            raise DataError(
                f"Task {task.name!r}: a task of this name was learned with other {split} examples. Give "
                "this task another name."
            )
    opened.engine.progress.say(f"{task.name} was already learned; nothing to do")
    return LearnReport.of(opened.record, index, opened.engine.snapshots.adapter(index + 1))


def _refused_before(opened: OpenLearner, task: Task, gates: Gates) -> LearnReport | None:
    """The report of a task that was refused and would be refused again; None if it may be tried."""
    k, place = opened.learned + 1, opened.place
    report = refused_before(
        opened.record,
        task.name,
        task.split_hash("train"),
        gates.max_forgetting,
        gates.min_score,
        lambda number: place.undone_adapter(number, k),
        gates.repair,
    )
    if report is not None:
        opened.engine.progress.say(f"{report.reason} Nothing has changed, so it is not trained again.")
    return report


def _begin(opened: OpenLearner, task: Task, gates: Gates) -> None:
    """Put a task on record, keep its test examples and its probe, and score it before it is learned."""
    record, k, engine, place = opened.record, opened.learned, opened.engine, opened.place
    for i, learned in enumerate(record.tasks[:k]):
        place.check_kept(i, record)
        if learned.sizes["test"]:
            refuse_unnamed(learned.metric, f"{place.path}: task {learned.name!r}")
    earlier = {name: kept_inputs(place.kept_task(i)) for i, name in enumerate(opened.tasks)}
    findings = engine.look_through([task], earlier)
    put_next(record, k, task_record(task))
    probe = probe_of(task, engine.config.training.seed) if gates.repair else ()
    record.tasks[k].kept = engine.processes.of_first(lambda: keep_task(place.kept_task(k), task, probe))
    tell_shared(opened, task)
    said = put_on_record(record, findings, place.path if engine.writes else None)
    tell(said, record.tasks[k:], engine.progress.say)
    record.status, record.finished = "running", None
    engine.save()
    sizes = [entry.sizes["test"] for entry in record.tasks]
    engine.progress.stream([entry.name for entry in record.tasks], k)
    watched = answers_to_watch(opened) + sum(entry.n for entry in record.watched if not entry.forgotten)
    plan = Plan(engine.passes(k, task), sum(sizes) + sizes[-1] + watched)
    engine.progress.begin(f"{engine.config.method.name}: task {k + 1}", plan, Plan(0, 0))
    if task.test and engine.score(k, k, task) is not None:
        engine.tell_row(k, [k])
    score_watched_now(opened)
