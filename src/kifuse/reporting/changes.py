"""Single examples that a run lost, kept or gained: whether each was right when learned, and at the end."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kifuse.errors import KifuseError
from kifuse.io.whole_folders import check_file
from kifuse.record.run_record import FILE, RunRecord

# From this score on (0 to 1) an answer counts as right; exact match gives 0 or 1 anyway.
_RIGHT = 0.5


@dataclass(frozen=True)
class Answer:
    """The two answers of one run to one example.

    Attributes:
        learned: The output right after the task was learned.
        final: The output after the last task.
        right_when_learned: Whether the first answer was right.
        right_at_end: Whether the second answer was right.
    """

    learned: str
    final: str
    right_when_learned: bool
    right_at_end: bool

    @property
    def lost(self) -> bool:
        """Whether the answer was right when learned and wrong at the end."""
        return self.right_when_learned and not self.right_at_end

    @property
    def kept(self) -> bool:
        """Whether both answers were right."""
        return self.right_when_learned and self.right_at_end

    @property
    def gained(self) -> bool:
        """Whether the answer was wrong when learned and right at the end."""
        return not self.right_when_learned and self.right_at_end


@dataclass(frozen=True)
class Change:
    """One example, and the answers of each run to it.

    Attributes:
        task: The name of its task.
        id: The example's id, if the data has one.
        input: The whole input.
        references: The accepted outputs.
        answers: One for each run folder, in the order given; None if that run has no answer to it.
    """

    task: str
    id: str | None
    input: str
    references: tuple[str, ...]
    answers: tuple[Answer | None, ...]


@dataclass
class Changes:
    """Examples that the first run lost, kept and gained.

    Attributes:
        lost: Lost by the first run; those that the other runs kept come first.
        kept: Kept by the first run; those that the other runs kept as well come first.
        gained: Gained by the first run; those that the other runs kept come first.
        lost_count: How many the first run lost in all.
        kept_count: How many it kept in all.
        gained_count: How many it gained in all.
        notes: The files that could not be read, and why.
    """

    lost: list[Change] = field(default_factory=list)
    kept: list[Change] = field(default_factory=list)
    gained: list[Change] = field(default_factory=list)
    lost_count: int = 0
    kept_count: int = 0
    gained_count: int = 0
    notes: list[str] = field(default_factory=list)


def changes(folders: Path | str | Sequence[Path | str], n: int = 5) -> Changes:
    """Pick examples that show what a run lost, what it kept and what it gained.

    The choice is the same every time. Examples that the other runs kept come first, then it takes the tasks
    in turn, and within a task an order that depends only on the text.

    Args:
        folders: A run folder, or several: first the run to look at, then those to compare it with.
        n: The largest number of examples of each kind.

    Returns:
        The examples. A file that is missing or damaged makes a note, never an error.
    """
    named = [folders] if isinstance(folders, (str, Path)) else list(folders)
    result = Changes()
    runs = [_read_run(Path(folder), result.notes) for folder in named]
    if not runs:
        result.notes.append("no run folder was given")
        return result
    found = [_change(task, key, runs) for task, rows in runs[0].items() for key in rows]
    for kind, chosen in (("lost", result.lost), ("kept", result.kept), ("gained", result.gained)):
        candidates = [change for change in found if getattr(change.answers[0], kind)]
        setattr(result, f"{kind}_count", len(candidates))
        chosen += _choose(candidates, n)
    return result


@dataclass(frozen=True)
class _Answered:
    id: str | None
    input: str
    references: tuple[str, ...]
    answer: Answer


# The answers of a run, by task name in the order of learning, then by what identifies an example.
_Key = tuple[str, int]
_Run = dict[str, dict[_Key, _Answered]]


def _change(task: str, key: _Key, runs: Sequence[_Run]) -> Change:
    rows = [run.get(task, {}).get(key) for run in runs]
    first = runs[0][task][key]
    return Change(
        task=task,
        id=first.id,
        input=first.input,
        references=first.references,
        answers=tuple(row.answer if row is not None else None for row in rows),
    )


def _choose(candidates: Sequence[Change], n: int) -> list[Change]:
    """Choose first the examples that more of the other runs kept, and among equals take the tasks in turn."""
    tasks = list(dict.fromkeys(change.task for change in candidates))
    turns: Counter[tuple[int, str]] = Counter()
    ranked = []
    for change in sorted(candidates, key=lambda change: _digest(change.input)):
        kept = sum(answer is not None and answer.kept for answer in change.answers[1:])
        ranked.append(((-kept, turns[kept, change.task], tasks.index(change.task)), change))
        turns[kept, change.task] += 1
    return [change for _, change in sorted(ranked, key=lambda item: item[0])[: max(n, 0)]]


def _read_run(folder: Path, notes: list[str]) -> _Run:
    """Join the predictions of each task but the last, right after it was learned and at the end."""
    try:
        record = RunRecord.load(folder)
    except KifuseError as error:
        notes.append(str(error))
        return {}
    last = len(record.tasks)
    if last < 2 or record.method.data_class == "all data":
        reason = "has one task" if last < 2 else "trained on all tasks at once"
        notes.append(f"{folder}: the run {reason}, so there is no earlier task to forget")
        return {}
    run: _Run = {}
    seals = {(cell.after, cell.task): cell.predictions for cell in record.scores}
    for number, task in enumerate(record.tasks[:-1], start=1):
        if task.sizes.get("test") == 0:  # has no test questions
            continue
        learned = _read_rows(folder, number, task.name, seals.get((number, number - 1)), notes)
        final = _read_rows(folder, last, task.name, seals.get((last, number - 1)), notes)
        if learned is None or final is None:
            continue
        common = [key for key in learned if key in final]
        if len(common) < max(len(learned), len(final)):
            notes.append(
                f"{folder}: {task.name}: the predictions after {number} and after {last} tasks share only "
                f"{len(common)} examples"
            )
        run[task.name] = {key: _join(learned[key], final[key]) for key in common}
    return run


def _read_rows(
    folder: Path, after: int, task: str, seal: str | None, notes: list[str]
) -> dict[_Key, dict[str, Any]] | None:
    file = folder / "predictions" / f"after-{after}" / f"{task}.jsonl"
    rows: dict[_Key, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    number = 1
    try:
        if seal is not None and file.is_file():
            check_file(file, seal, FILE)
        # Split only at line feeds: a JSON string may hold other line ends.
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):  # noqa: B007
            if line.strip():
                row = json.loads(line)
                _ = float(row["score"]), str(row["prediction"]), tuple(row["references"])
                name = _digest(f"{row.get('id')}\n{row['input']}")
                # An example may occur twice in a test set; the order of its copies tells them apart.
                rows[name, seen[name]] = row
                seen[name] += 1
    except FileNotFoundError:
        notes.append(f"{file}: no such file; the run has no predictions of {task} after {after} tasks")
        return None
    except KifuseError as error:
        notes.append(str(error))
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        notes.append(f"{file}:{number}: not readable as predictions: {error!r}")
        return None
    return rows


def _join(learned: dict[str, Any], final: dict[str, Any]) -> _Answered:
    return _Answered(
        id=learned.get("id"),
        input=learned["input"],
        references=tuple(learned["references"]),
        answer=Answer(
            learned=learned["prediction"],
            final=final["prediction"],
            right_when_learned=float(learned["score"]) >= _RIGHT,
            right_at_end=float(final["score"]) >= _RIGHT,
        ),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
