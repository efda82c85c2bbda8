"""A learner's folder before anything is done in it: nothing lies there that its record does not know."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kifuse.errors import KifuseError, RunError
from kifuse.io.lock import exclusive
from kifuse.io.whole_folders import check_file, remove_temporaries
from kifuse.learning import erased_texts as forgetting
from kifuse.record.lineage import event, learned_count, times_undone, was_undone
from kifuse.record.run_record import FILE, RunRecord
from kifuse.reporting.page import refresh_report
from kifuse.running.engine import Engine
from kifuse.running.mid_task_checkpoint import refuse_file_for_middle
from kifuse.running.run_start import now
from kifuse.tasks.learned_task import kept_task
from kifuse.tasks.task import Task

UNDONE = "rolled-back"
"""Folder of what a rollback or a refusal took out, in one folder for each."""

LEFT = "set-aside"
"""Folder of what a training that was cut short left behind, in one folder for each start that found some."""

PARTS = ("adapters", "state", "predictions")


class LearnerFolder:
    """The folder of a learner.

    Args:
        path: Where it is.
        say: Told in one line what was found out of place.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say

    def kept_task(self, index: int) -> Path:
        """The file with the test examples of the task at an index from 0."""
        return self.path / "tasks" / f"{index + 1}.json"

    def kept_watched(self, index: int) -> Path:
        """The file with the test examples of the watched task at an index from 0."""
        return self.path / "watched" / f"{index + 1}.json"

    def watched(self, index: int, record: RunRecord) -> Task:
        """A watched task with its examples as they were kept.

        Raises:
            RunError: They are not as they were written.
        """
        entry = record.watched[index]
        check_file(self.kept_watched(index), entry.kept, FILE)
        return kept_task(self.kept_watched(index), entry.hash)

    def undone(self, number: int) -> Path:
        """The folder of what the rollback or refusal of a number, from 1, took out."""
        return self.path / UNDONE / str(number)

    def check_kept(self, index: int, record: RunRecord) -> None:
        """Make sure that what was kept of a task is as it was written.

        Raises:
            RunError: It is not.
        """
        if record.tasks[index].kept is not None:
            check_file(self.kept_task(index), record.tasks[index].kept, FILE)

    def tested(self, index: int, record: RunRecord) -> Task:
        """A learned task with the test examples that were kept.

        Raises:
            RunError: They are not as they were written.
        """
        entry = record.tasks[index]
        if entry.forgotten is not None:
            raise RunError(
                f"{self.path}: the examples of {entry.name!r} were forgotten on {entry.forgotten}."
            )
        self.check_kept(index, record)
        return kept_task(self.kept_task(index), record.tasks[index].hashes["test"])

    def undone_adapter(self, number: int, k: int) -> Path:
        """Where the adapter after k tasks is that the rollback or refusal of a number took out."""
        return self.undone(number) / "adapters" / f"after-{k}"

    def back_to(self, engine: Engine, k: int, kind: str, **facts: Any) -> None:
        """Make the state after k tasks the present one; the record says so before any file moves.

        Call it while the folder is held. A rollback goes further back where that state is damaged.

        Args:
            engine: With the record, which is changed in place.
            k: Number of tasks.
            kind: `rolled back` or `refused`.
            facts: What else the history says of it.

        Raises:
            RunError: No state is whole, or a file cannot be written or moved.
        """
        record = engine.record
        learned, names = learned_count(record), [task.name for task in record.tasks]
        if kind == "rolled back":
            k = self._restore_newest(engine, k)
            facts = {"to": k, "tasks": names[k:learned]}
            if k == learned == len(names):
                return
        else:
            engine.restore(k)
        try:
            record.save(self.undone(times_undone(record) + 1))
            record.tasks = record.tasks[:k]
            record.scores = [s for s in record.scores if s.after <= k and s.task < k]
            record.watch_scores = [s for s in record.watch_scores if s.after <= k]
            record.lineage.append(event(kind, now(), **facts))
            record.status, record.finished = "finished", now()
            engine.save()
        except BaseException:
            engine.cut_short()
            raise
        self.tidy(record, tell=False)

    def _restore_newest(self, engine: Engine, k: int) -> int:
        """Restore the newest whole state after at most k tasks, and tell which ones are left aside."""
        for j in range(k, 0, -1):
            try:
                engine.restore(j)
            except KifuseError as error:
                self.say(f"the state after {engine.record.tasks[j - 1].name!r} is left aside: {error}")
            else:
                return j
        if k:
            raise RunError(f"{self.path}: no state after any of the first {k} tasks is whole; see above.")
        engine.restore(0)
        return 0

    @contextlib.contextmanager
    def alone(self, record: RunRecord, *, broken: Callable[[], None]) -> Iterator[None]:
        """Hold the folder for as long as the block runs, after making sure that it is as it was last seen.

        A block that fails leaves the record in memory as it is on disk, so that the same process goes on.

        Args:
            record: The record in memory; it is changed in place.
            broken: Called when the block fails and the two records differed.

        Raises:
            RunError: Another process holds the folder or has changed it, or a file cannot be moved aside.
        """
        with exclusive(self.path):
            if RunRecord.load(self.path) != record:
                raise RunError(
                    f"{self.path}: another process has changed it since this learner was loaded; "
                    "load it again: ContinualLearner.load(folder)."
                )
            self.tidy(record)
            try:
                yield
            except BaseException:
                with contextlib.suppress(KifuseError):
                    there = RunRecord.load(self.path)
                    if there != record:
                        vars(record).update(vars(there))
                        broken()
                raise

    def tidy(self, record: RunRecord, *, tell: bool = True) -> None:
        """Move everything aside that is beyond the record, and remove what a crash left of a single write.

        Call it while the folder is held.

        Args:
            record: What is on disk.
            tell: Whether to say what was moved.

        Raises:
            RunError: A file cannot be moved, or the record is older than what lies beside it.
        """
        refuse_file_for_middle(self.path)
        self._remove_temporaries()
        if forgetting.is_begun(self.path):
            forgetting.finish(self.path, record, self.say)
            refresh_report(self.path)
            forgetting.end(self.path)
            self.say("a task that was being forgotten is forgotten now")
        beyond = self._beyond(record)
        if not beyond:
            return
        undone = self.undone(times_undone(record)) if was_undone(record) else None
        before = _record_in(undone)
        taken = [p.name for p in (self.path / LEFT).glob("*") if p.name.isdecimal()]
        left = self.path / LEFT / str(max(map(int, taken), default=0) + 1)
        goals = [(path, self._goal(path, record, before, undone, left)) for path in beyond]
        for path, goal in goals:
            move_aside(path, goal / path.relative_to(self.path))
        for goal in dict.fromkeys(goal for _, goal in goals) if tell else ():
            names = ", ".join(p.relative_to(self.path).as_posix() for p, g in goals if g == goal)
            why = "left of a training that was cut short" if goal == left else "a rollback is finished"
            self.say(f"{why}: {names} moved to {goal.relative_to(self.path).as_posix()}")

    def _goal(
        self, path: Path, record: RunRecord, before: RunRecord | None, undone: Path | None, left: Path
    ) -> Path:
        """Where something beyond the record belongs: to what was undone last, or to what was cut short.

        Raises:
            RunError: To neither, so that the record is older than what lies beside it.
        """
        learned = learned_count(record)
        cut_short = len(record.tasks) > learned and path.name == f"after-{learned + 1}"
        manifest = self.path / "state" / path.name / "manifest.json"
        if path.suffix or not manifest.is_file():
            return left if cut_short or undone is None else undone
        known = before is not None and _number(path) <= learned_count(before)
        # had it been learned since the rollback, what was undone would have been moved by then
        if known and undone is not None and not (undone / path.relative_to(self.path)).exists():
            return undone
        if not cut_short:
            raise _older(self.path, manifest.parent)
        return left

    def _beyond(self, record: RunRecord) -> list[Path]:
        """What lies in the folder of tasks that are not on record, or of a time that is not."""
        learned = learned_count(record)
        names = {entry.name for entry in (*record.tasks, *record.watched)}
        found = []
        for part in PARTS:
            for folder in sorted((self.path / part).glob("after-*"), key=_number):
                if _number(folder) > learned:
                    found.append(folder)
                elif part == "predictions":
                    found += sorted(f for f in folder.glob("*.jsonl") if f.stem not in names)
        kept = sorted((self.path / "tasks").glob("*.json"), key=_number)
        return found + [file for file in kept if _number(file) > len(record.tasks)]

    def _remove_temporaries(self) -> None:
        """Remove what a kill left of a write that never took its place; finish one that almost did."""
        remove_temporaries(self.path, (*PARTS, "tasks", "watched"))
        for partial in (self.path / "adapters").glob(".after-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        for old in (self.path / "adapters").glob(".after-*.old"):
            place = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            if place.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                _rename(old, place)


def move_aside(source: Path, target: Path) -> None:
    """Move a file or folder; nothing is written over, and a kill at any moment leaves one of the two whole.

    Args:
        source: What to move.
        target: Where to; if something is there, a number is put behind the name.

    Raises:
        RunError: It cannot be moved.
    """
    place, number = target, 1
    while os.path.lexists(place):
        number += 1
        place = target.with_name(f"{target.name} ({number})")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot(source, place, error) from error
    _rename(source, place)


def _rename(source: Path, target: Path) -> None:
    try:
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(source, target)
    except OSError as error:
        raise _cannot(source, target, error) from error


def _copy(source: Path, target: Path) -> None:
    """Move to another file system: the copy appears under its name when it is whole, then the source goes."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, partial)
        os.rename(partial, target)
        shutil.rmtree(source)
    else:
        shutil.copy2(source, partial)
        os.rename(partial, target)
        source.unlink()


def _record_in(folder: Path | None) -> RunRecord | None:
    return RunRecord.load(folder) if folder is not None and (folder / "record.json").is_file() else None


def _cannot(source: Path, target: Path, error: OSError) -> RunError:
    return RunError(
        f"{source}: cannot be moved aside to {target}: {error.strerror or error}. Nothing is lost; put that "
        "right, and the next call goes on from here."
    )


def _older(folder: Path, newer: Path) -> RunError:
    return RunError(
        f"{folder / 'record.json'}: does not know {newer.relative_to(folder).as_posix()}: it is older "
        "than what lies beside it. Put the newest record.json back; a copy of each earlier one lies in "
        f"{UNDONE}/. To go on from this older record, move {newer.name} of adapters and state elsewhere."
    )


def _number(path: Path) -> int:
    """The number in `after-3` or `3.json`; 0 for what has none."""
    number = path.name.removeprefix("after-").removesuffix(".json")
    return int(number) if number.isdecimal() and number.isascii() else 0
