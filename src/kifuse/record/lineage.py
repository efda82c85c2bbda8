"""What learning a task gained and cost, and the entries of a learner's history. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kifuse.errors import RunError, did_you_mean
from kifuse.record.run_record import RunRecord, TaskRecord

UNDOING = ("rolled back", "refused")
"""The kinds of history entries that undo the learning of a task."""


@dataclass(frozen=True)
class LearnReport:
    """What learning one task gained and cost.

    Attributes:
        task: Name of the task.
        accepted: Whether it was kept; False if it was rolled back.
        before: Score (0 to 100) of each task by name, before this task was learned; this task's own is the
            zero-shot score.
        after: The same scores after this task was learned.
        seconds: Training time in seconds.
        adapter: Folder of the standard PEFT adapter after this task.
        reason: Why it was not accepted; empty if it was.
        watched_before: Score of each watched task by name, before this task was learned.
        watched_after: The same scores after this task was learned.
        repaired: How the weights were pulled back towards those before this task; None if they were not.
    """

    task: str
    accepted: bool
    before: dict[str, float]
    after: dict[str, float]
    seconds: float
    adapter: Path
    reason: str = ""
    watched_before: dict[str, float] = field(default_factory=dict)
    watched_after: dict[str, float] = field(default_factory=dict)
    repaired: dict[str, Any] | None = None

    @classmethod
    def of(cls, record: RunRecord, index: int, adapter: Path) -> LearnReport:
        """Read the report of a task from a record; `index` counts the tasks from 0."""
        names = [entry.name for entry in record.tasks]

        def row(after: int) -> dict[str, float]:
            return {names[s.task]: s.score for s in record.scores if s.after == after and s.task <= index}

        entry = record.tasks[index]
        return cls(
            entry.name,
            True,
            row(index),
            row(index + 1),
            entry.seconds_train or 0.0,
            adapter,
            watched_before=record.watch_row(index),
            watched_after=record.watch_row(index + 1),
            repaired=entry.repaired,
        )

    def judged(self, max_forgetting: float | None, min_score: float | None, aside: Path) -> LearnReport:
        """Return the report, as not accepted if the task cost another one too much or scored too low itself.

        Args:
            max_forgetting: Most points that a task may cost an earlier or watched one; None for no limit.
            min_score: Least score that a task must reach itself; None for no limit.
            aside: The folder of the adapter if the task is not accepted.
        """
        own, reasons = self.after.get(self.task), []
        if max_forgetting is not None and self.over(max_forgetting):
            name, lost = max(self.over(max_forgetting).items(), key=lambda each: each[1])
            before, after = {**self.before, **self.watched_before}, {**self.after, **self.watched_after}
            reasons.append(
                f"it cost {name} {lost:.1f} points ({before[name]:.1f} to {after[name]:.1f}), and "
                f"{max_forgetting:g} are allowed"
            )
        if min_score is not None and own is not None and own < min_score:
            reasons.append(f"it reached {own:.1f} points, and {min_score:g} are asked for")
        if not reasons:
            return self
        reason = f"{self.task} was rolled back: {'; '.join(reasons)}."
        return replace(self, accepted=False, reason=reason, adapter=aside)

    @property
    def gained(self) -> float | None:
        """Points that the task itself gained; None without test examples."""
        if self.task not in self.after:
            return None
        return self.after[self.task] - self.before.get(self.task, 0.0)

    @property
    def lost(self) -> dict[str, float]:
        """Points that earlier tasks lost, by name; those that lost none are left out."""
        return {n: self.before[n] - s for n, s in self.after.items() if n != self.task and s < self.before[n]}

    @property
    def watched_lost(self) -> dict[str, float]:
        """Points that watched tasks lost, by name; those that lost none are left out."""
        before, after = self.watched_before, self.watched_after
        return {n: before[n] - s for n, s in after.items() if n in before and s < before[n]}

    def over(self, max_forgetting: float) -> dict[str, float]:
        """Points lost by those earlier and watched tasks that lost more than is allowed, by name."""
        return {n: p for n, p in {**self.lost, **self.watched_lost}.items() if p > max_forgetting}

    @property
    def worst(self) -> tuple[str, float] | None:
        """The earlier task that lost most, and its points; None if none lost any."""
        return max(self.lost.items(), key=lambda each: each[1], default=None)

    def facts(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "task": self.task,
            "accepted": self.accepted,
            "reason": self.reason,
            "before": self.before,
            "after": self.after,
            "gained": self.gained,
            "lost": self.lost,
            "repaired": self.repaired,
            "watched": {"before": self.watched_before, "after": self.watched_after},
            "seconds": self.seconds,
            "adapter": str(self.adapter),
        }

    def __str__(self) -> str:
        lines = [f"{self.task}: {'learned' if self.accepted else 'not accepted'} in {self.seconds:.0f} s"]
        lines += [
            f"  {name}: {self.before[name]:.1f} -> {score:.1f} ({score - self.before[name]:+.1f})"
            for name, score in self.after.items()
        ]
        before = self.watched_before
        lines += [
            f"  watched {name}: {before[name]:.1f} -> {score:.1f} ({score - before[name]:+.1f})"
            for name, score in self.watched_after.items()
            if name in before
        ]
        if self.repaired:
            steps, pull = self.repaired["steps"], self.repaired["pull"]
            lines.append(
                f"  repaired: its weights were pulled back {steps} times by {pull:.0%} towards those before "
                "it"
            )
        return "\n".join([*lines, *([self.reason] if self.reason else [])])


def event(kind: str, when: str, **facts: Any) -> dict[str, Any]:
    """Make an entry of the history."""
    return {"event": kind, "when": when, **facts}


def is_settled(record: RunRecord, name: str) -> bool:
    """Whether the history says that a task was accepted, and not taken back later."""
    told = [e for e in record.lineage if e["event"] in ("learned", *UNDOING)]
    about = [e for e in told if name == e.get("task") or name in e.get("tasks", ())]
    return bool(about) and about[-1]["event"] == "learned"


def last_event(record: RunRecord) -> tuple[Any, Any]:
    """The task of the history's last entry, and the hash of its training examples; None where absent."""
    last = record.lineage[-1] if record.lineage else {}
    return last.get("task"), last.get("data")


def put_next(record: RunRecord, k: int, entry: TaskRecord) -> None:
    """Put a task on record as the next one, unless it waits there already.

    Args:
        record: The record to change. What a crash left in it of another, never learned task is removed.
        k: Number of tasks learned.
        entry: The entry of the task.
    """
    waiting = record.tasks[k:]
    if not waiting or (waiting[0].name, waiting[0].hashes) != (entry.name, entry.hashes):
        record.scores = [s for s in record.scores if s.task < k]
        record.tasks = [*record.tasks[:k], entry]


def learned_count(record: RunRecord) -> int:
    """Number of tasks that a learner's record says were learned; one that is being learned does not count."""
    return sum(entry.train_steps is not None for entry in record.tasks)


def times_undone(record: RunRecord) -> int:
    """How often tasks were taken out again: rollbacks and refusals."""
    return sum(e["event"] in UNDOING for e in record.lineage)


def was_undone(record: RunRecord) -> bool:
    """Whether the last thing that happened was a rollback or a refusal."""
    told = [e["event"] for e in record.lineage if e["event"] in ("learned", *UNDOING)]
    return bool(told) and told[-1] in UNDOING


def refused_before(
    record: RunRecord,
    name: str,
    data: str,
    max_forgetting: float | None,
    min_score: float | None,
    adapter: Callable[[int], Path],
    repair: bool = False,
) -> LearnReport | None:
    """The report of a task that was refused and would be refused again, since nothing has changed.

    Args:
        record: The record of the learner.
        name: The task's name.
        data: Hash of its training examples.
        max_forgetting: Most points that a task may cost now.
        min_score: Least score that it must reach now.
        adapter: Gives the folder of an undone task's adapter, for the number of the rollback or refusal,
            counted from 1.
        repair: Whether the weights would be pulled back now; the last time they may not have been.

    Returns:
        The report; None where the task may be tried.
    """
    number = times_undone(record)
    now = {task.name for task in record.watched if task.forgotten is None}
    for entry in reversed(record.lineage):
        if entry["event"] == "forgotten":
            continue
        if entry["event"] != "refused":
            return None
        if (entry.get("task"), entry.get("data")) == (name, data):
            repaired = entry.get("repair", False)
            # a repair changes the scores, and another limit changes the repair
            other_limit = bool(repaired) and entry.get("max_forgetting") != max_forgetting
            if other_limit or (repair and not repaired) or (isinstance(repaired, dict) and not repair):
                return None
            before, after, seconds = (entry.get(key, {}) for key in ("before", "after", "seconds"))
            watched: dict[str, Any] = {
                f"watched_{key}": {n: score for n, score in row.items() if n in now}
                for key, row in entry.get("watched", {}).items()
            }
            done = repaired if isinstance(repaired, dict) else None
            report = LearnReport(name, True, before, after, seconds or 0.0, Path(), repaired=done, **watched)
            judged = report.judged(max_forgetting, min_score, adapter(number))
            return None if judged.accepted else judged
        number -= 1
    return None


def count_up_to(to: int | str, names: list[str], what: str) -> int:
    """Count the learned tasks up to and including a given one.

    Args:
        to: Their number, or the name of the last one.
        names: Names of the learned tasks, in order.
        what: Name of the argument, for the message.

    Raises:
        RunError: There is no such task.
    """
    if isinstance(to, str):
        if to not in names:
            raise RunError(
                f"{what}: no task {to!r} was learned, expected one of {', '.join(names) or 'none yet'}."
                f"{did_you_mean(to, names)}"
            )
        return names.index(to) + 1
    if not isinstance(to, int) or not 0 <= to <= len(names):
        raise RunError(f"{what}: found {to!r}, expected a number of tasks from 0 to {len(names)}.")
    return to
