"""Forgets a learner's task on request: removes its texts, and says what remains of it in the weights."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kifuse.driving.method_loss import key_of
from kifuse.errors import DataError, KifuseError, RunError, did_you_mean
from kifuse.io.storage import read_json
from kifuse.learning import erased_texts as forgetting
from kifuse.learning.learn_task import Gates, learn_task
from kifuse.learning.open_learner import OpenLearner
from kifuse.record.lineage import LearnReport
from kifuse.record.run_record import RunRecord
from kifuse.running.run_start import now
from kifuse.streams import chosen_part
from kifuse.tasks.any_task import as_task
from kifuse.tasks.memory import MemoryBuffer
from kifuse.tasks.task import Example, Task


@dataclass(frozen=True)
class ForgetReport:
    """What forgetting a task removed, and what remains of the task.

    Attributes:
        task: Name of the task.
        removed: Files that were removed or written anew, relative to the learner's folder.
        remains: What still holds a trace of the task, and cannot be undone by removing files.
        later: Names of the tasks that were learned after it; their training began from its weights.
        commands: Shell commands that make a learner which never saw the task; none if this learner already is
            one.
        retrained: Reports of the later tasks, if they were learned again.
    """

    task: str
    removed: tuple[str, ...]
    remains: tuple[str, ...]
    later: tuple[str, ...]
    commands: tuple[str, ...]
    retrained: tuple[LearnReport, ...] = ()

    def __str__(self) -> str:
        lines = [
            (
                f"{self.task}: its examples are forgotten; {len(self.removed)} files were removed or "
                "written again"
            )
        ]
        lines += [f"  still there: {each}" for each in self.remains]
        if self.retrained:
            return "\n".join([*lines, *map(str, self.retrained)])
        if self.commands:
            lines += ["  to get a learner that never saw it:", *(f"    {each}" for each in self.commands)]
        else:
            lines.append("  the learner as it is now has not learned from it")
        return "\n".join(lines)


def forget(opened: OpenLearner, name: str, retrain: Sequence[Any] | None, gates: Gates) -> ForgetReport:
    """Forget a task, as `ContinualLearner.forget` says.

    Raises:
        RunError: No such task is known, a state is damaged, or the folder cannot be written to.
        DataError: `retrain` is not the data of the later tasks.
    """
    record, engine, place = opened.record, opened.engine, opened.place
    if not engine.writes:
        raise RunError(
            f"{place.path}: cannot be written to, so nothing can be forgotten. Check the folder's rights."
        )
    known = dict.fromkeys(
        [*(entry.name for entry in (*record.tasks, *record.watched)), *_in_history(record.lineage)]
    )
    if name not in known:
        raise RunError(
            f"{place.path}: forget: no task {name!r} was learned, refused, rolled back or watched, expected "
            f"one of {', '.join(known) or 'none yet'}.{did_you_mean(name, known)}"
        )
    tasks = opened.tasks
    index = tasks.index(name) if name in tasks else None
    later = tasks[index + 1 :] if index is not None else []
    again = None if retrain is None else _later_tasks(opened, later, retrain)
    with opened.alone():
        engine.settle(opened.learned)
        for k in range(1, opened.learned + 1):
            engine.snapshots.check(k, record.tasks[k - 1].seal)
        forgetting.begin(place.path, name, now(), _stored_with(opened, name))
        removed = forgetting.finish(place.path, record, engine.progress.say)
        if opened.learned:
            engine.restore(opened.learned)
        engine.tell_saved()
        forgetting.end(place.path)
        if again is not None and index is not None:
            place.back_to(engine, index, "rolled back")
            engine.tell_saved()
    reports = [learn_task(opened, task, gates) for task in again or ()]
    if again is not None:
        index = None  # no state that is there now has learned from it
    folder = shlex.quote(str(place.path))
    return ForgetReport(
        name,
        tuple(removed),
        _remains(opened, name, index, later),
        tuple(later),
        _commands(folder, name, tasks[index - 1] if index else "0", later) if index is not None else (),
        tuple(reports),
    )


def _in_history(lineage: Sequence[dict[str, Any]]) -> list[str]:
    names = [name for entry in lineage for name in (entry.get("task"), *entry.get("tasks", ()))]
    return [name for name in names if isinstance(name, str)]


def _later_tasks(opened: OpenLearner, later: Sequence[str], given: Sequence[Any]) -> list[Task]:
    """Build the tasks to learn again: training examples from the given data, the rest as on record.

    Raises:
        DataError: The given data is not that of these tasks.
    """
    if len(given) != len(later):
        raise DataError(
            f"forget: found data of {len(given)} tasks to retrain on, expected that of {len(later)}, in "
            f"this order: {', '.join(later) or 'none was learned later'}. Use 'kifuse learn' for other data."
        )
    data, seed = opened.engine.config.data, opened.engine.config.training.seed
    tasks = []
    for name, each in zip(later, given, strict=True):
        place = opened.tasks.index(name)
        entry = opened.record.tasks[place]
        if entry.forgotten is not None:
            raise DataError(
                f"forget: {name!r} was forgotten too. Roll back, and learn the other tasks again with "
                "'kifuse learn'."
            )
        found = each if isinstance(each, Task) else as_task(each, name=name, seed=seed)
        task = chosen_part(replace(found, name=name), data, seed)
        if task.split_hash("train") != entry.hashes["train"]:
            raise DataError(
                f"forget: the training examples are not those that {name!r} was learned with. Give the same "
                "data, or roll back and use 'kifuse learn' with its options, such as --instruction."
            )
        if entry.sizes["test"]:
            kept = opened.place.tested(place, opened.record)
            task = replace(task, test=kept.test, labels=kept.labels, metric=kept.metric)
        tasks.append(task)
    return tasks


def _stored_with(opened: OpenLearner, name: str) -> set[str]:
    """The keys under which a method has stored something with examples of the task, in any state."""
    engine, path = opened.engine, opened.place.path
    if "kept" not in engine.method.needs:
        return set()
    examples: list[Example] = []
    for root in (path, *path.glob("rolled-back/*"), *path.glob("set-aside/*")):
        for file in root.glob("state/after-*/memory.json"):
            try:
                memory = MemoryBuffer.from_state(read_json(file), where=file)
            except KifuseError:  # the damaged file is removed later, with a message
                continue
            if name in memory.tasks:
                examples += memory.examples(name)
    encoder_decoder = engine.backbone.encoder_decoder
    return {key_of(each, encoder_decoder=encoder_decoder) for each in engine.encoder.encode_pieces(examples)}


def _remains(opened: OpenLearner, name: str, index: int | None, later: Sequence[str]) -> tuple[str, ...]:
    said = []
    if index is not None:
        states = [f"after-{k}" for k in range(index + 1, index + len(later) + 2)]
        said.append(f"the weights of {', '.join(states)} learned from it and may repeat parts of it")
        said.append("numbers that the method measured on it, such as importances, in the same states")
    aside = _aside_with(opened.place.path, name)
    if aside:
        said.append(f"weights in {', '.join(aside)} that learned from it, or may have; remove them")
    said.append("its name, sizes, scores and hashes in the record")
    said.append("copies elsewhere: the data itself, backups, exported or published adapters, trackers")
    return tuple(said)


def _aside_with(folder: Path, name: str) -> list[str]:
    """List the folders moved aside whose weights learned from a task, or may have."""
    found = []
    for adapters in (*folder.glob("rolled-back/*/adapters"), *folder.glob("set-aside/*/adapters")):
        root = adapters.parent
        try:
            learned = {entry.name for entry in RunRecord.load(root).tasks}
        except KifuseError:  # what was cut short has no record, so nobody can tell what it learned from
            learned = {name}
        if name in learned:
            found.append(f"{root.relative_to(folder).as_posix()}/")
    return sorted(found)


def _commands(folder: str, name: str, before: str, later: Sequence[str]) -> tuple[str, ...]:
    quoted = shlex.quote(name)
    if not later:
        return (f"kifuse rollback {folder} --to {shlex.quote(before)}",)
    data = " ".join(f"--retrain DATA_OF_{shlex.quote(each)}" for each in later)
    return (f"kifuse forget {folder} {quoted} {data}",)
