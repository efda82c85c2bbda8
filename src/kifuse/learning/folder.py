"""A learner's folder. Before it is used, everything that its record does not know is moved aside."""

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
from kifuse.processes import ALONE, Processes
from kifuse.record.lineage import event, learned_count, times_undone, was_undone
from kifuse.record.run_record import FILE, RunRecord
from kifuse.reporting.page import refresh_report
from kifuse.running.engine import Engine
from kifuse.running.mid_task_checkpoint import refuse_file_for_middle
from kifuse.running.run_start import now
from kifuse.tasks.learned_task import kept_task
from kifuse.tasks.task import Task

UNDONE = "rolled-back"
"""Folder for what rollbacks and refusals took out, with one subfolder for each of them."""

LEFT = "set-aside"
"""Folder for what interrupted trainings left behind, with one subfolder for each start that found some."""

PARTS = ("adapters", "state", "predictions")


class LearnerFolder:
    """The folder of a learner.

    Args:
        path: The path of the folder.
        say: Called with a line about what was found out of place.
        processes: Those that the learner runs in; the first one writes and moves files.
    """

    def __init__(self, path: Path, say: Callable[[str], None], processes: Processes = ALONE) -> None:
        self.path, self.say, self.processes = path, say, processes

    def kept_task(self, index: int) -> Path:
        """The file with the test examples of the task at an index from 0."""
        return self.path / "tasks" / f"{index + 1}.json"

    def kept_watched(self, index: int) -> Path:
        """The file with the test examples of the watched task at an index from 0."""
        return self.path / "watched" / f"{index + 1}.json"

    def watched(self, index: int, record: RunRecord) -> Task:
        """Read a watched task with the examples that were kept.

        Raises:
            RunError: The examples are not what was written.
        """
        entry = record.watched[index]
        check_file(self.kept_watched(index), entry.kept, FILE)
        return kept_task(self.kept_watched(index), entry.hash)

    def undone(self, number: int) -> Path:
        """The folder with what a rollback or refusal took out; `number` counts them from 1."""
        return self.path / UNDONE / str(number)

    def check_kept(self, index: int, record: RunRecord) -> None:
        """Make sure that the kept examples of a task are what was written.

        Raises:
            RunError: They are not.
        """
        if record.tasks[index].kept is not None:
            check_file(self.kept_task(index), record.tasks[index].kept, FILE)

    def tested(self, index: int, record: RunRecord) -> Task:
        """Read a learned task with the test examples that were kept.

        Raises:
            RunError: The examples are not what was written.
        """
        entry = record.tasks[index]
        if entry.forgotten is not None:
            raise RunError(
                f"{self.path}: the examples of {entry.name!r} were forgotten on {entry.forgotten}."
            )
        self.check_kept(index, record)
        return kept_task(self.kept_task(index), record.tasks[index].hashes["test"])

    def undone_adapter(self, number: int, k: int) -> Path:
        """The folder of the adapter after k tasks that a rollback or refusal took out."""
        return self.undone(number) / "adapters" / f"after-{k}"

    def back_to(self, engine: Engine, k: int, kind: str, **facts: Any) -> None:
        """Make the state after k tasks the current one; the record says so before any file moves.

        Call it while the folder is held. A rollback goes further back if that state is damaged.

        Args:
            engine: The engine; its record is changed in place.
            k: Number of tasks.
            kind: `rolled back` or `refused`.
            facts: Further facts for the history.

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
            self.processes.of_first(lambda: record.save(self.undone(times_undone(record) + 1)))
            record.tasks = record.tasks[:k]
            record.scores = [s for s in record.scores if s.after <= k and s.task < k]
            record.watch_scores = [s for s in record.watch_scores if s.after <= k]
            record.lineage.append(event(kind, now(), **facts))
            record.status, record.finished = "finished", now()
            engine.save()
        except BaseException:
            engine.cut_short()
            raise
        self.processes.of_first(lambda: self.tidy(record, tell=False))

    def _restore_newest(self, engine: Engine, k: int) -> int:
        """Restore the newest whole state after at most k tasks, and say which ones are passed over."""
        for j in range(k, 0, -1):
            try:
                engine.restore(j)
            except KifuseError as error:
                self.say(f"the state after {engine.record.tasks[j - 1].name!r} is not used: {error}")
            else:
                return j
        if k:
            raise RunError(f"{self.path}: no state after any of the first {k} tasks is complete; see above.")
        engine.restore(0)
        return 0

    @contextlib.contextmanager
    def alone(self, record: RunRecord, *, broken: Callable[[], None]) -> Iterator[None]:
        """Hold the folder while the block runs, after making sure that nobody else has changed it.

        If the block fails, the record in memory is set to the one on disk, so that this process can go on.

        Args:
            record: The record in memory; it is changed in place.
            broken: Called when the block fails and the two records differed.

        Raises:
            RunError: Another process holds the folder or has changed it, or a file cannot be moved aside.
        """
        with contextlib.ExitStack() as held:
            self.processes.of_first(lambda: self._take(held, record))
            try:
                yield
            except BaseException:
                with contextlib.suppress(KifuseError):
                    there = RunRecord.load(self.path)
                    if there != record:
                        vars(record).update(vars(there))
                        broken()
                raise

    def _take(self, held: contextlib.ExitStack, record: RunRecord) -> None:
        """Hold the folder until the end of `held`, as it was last seen."""
        held.enter_context(exclusive(self.path))
        if RunRecord.load(self.path) != record:
            raise RunError(
                f"{self.path}: another process changed this learner after it was loaded. Load it again: "
                "ContinualLearner.load(folder)."
            )
        self.tidy(record)

    def tidy(self, record: RunRecord, *, tell: bool = True) -> None:
        """Move aside everything that the record does not know, and remove temporary files that a crash left.

        Call it while the folder is held.

        Args:
            record: The record that is on disk.
            tell: Whether to say what was moved.

        Raises:
            RunError: A file cannot be moved, or the record is older than the files beside it.
        """
        refuse_file_for_middle(self.path)
        self._remove_temporaries()
        if forgetting.is_begun(self.path):
            forgetting.finish(self.path, record, self.say)
            refresh_report(self.path)
            forgetting.end(self.path)
            self.say("a task whose removal was interrupted is forgotten now")
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
            why = (
                "left over from an interrupted training"
                if goal == left
                else "an interrupted rollback is finished now"
            )
            self.say(f"{why}: {names} moved to {goal.relative_to(self.path).as_posix()}")

    def _goal(
        self, path: Path, record: RunRecord, before: RunRecord | None, undone: Path | None, left: Path
    ) -> Path:
        """Choose where a path unknown to the record goes: to the last undoing, or to what was cut short.

        Raises:
            RunError: It belongs to neither, so the record is older than the files beside it.
        """
        learned = learned_count(record)
        cut_short = len(record.tasks) > learned and path.name == f"after-{learned + 1}"
        manifest = self.path / "state" / path.name / "manifest.json"
        if path.suffix or not manifest.is_file():
            return left if cut_short or undone is None else undone
        known = before is not None and _number(path) <= learned_count(before)
        # if it had been learned after the rollback, the undone state would have been moved before that
        if known and undone is not None and not (undone / path.relative_to(self.path)).exists():
            return undone
        if not cut_short:
            raise _older(self.path, manifest.parent)
        return left

    def _beyond(self, record: RunRecord) -> list[Path]:
        """List what belongs to tasks unknown to the record, or to more tasks than it says were learned."""
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
        """Remove temporary files that a kill left; finish replacing an adapter if that was almost done."""
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
    """Move a file or folder. Nothing is overwritten, and after a kill the source or the target is whole.

    Args:
        source: What to move.
        target: The new place; if something is there, a number is added to the name.

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
    """Move to another file system: the copy gets its name when it is whole, then the source is removed."""
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
        f"{source}: cannot be moved to {target}: {error.strerror or error}. Nothing is lost. Correct this, "
        "and the next call continues from here."
    )


def _older(folder: Path, newer: Path) -> RunError:
    return RunError(
        f"{folder / 'record.json'}: does not list {newer.relative_to(folder).as_posix()}, so it is older "
        f"than the files next to it. Put the newest record.json back; {UNDONE}/ holds a copy of each "
        f"earlier one. To continue from this older record, move {newer.name} out of adapters and state."
    )


def _number(path: Path) -> int:
    """The number in `after-3` or `3.json`; 0 for a name without one."""
    number = path.name.removeprefix("after-").removesuffix(".json")
    return int(number) if number.isdecimal() and number.isascii() else 0
