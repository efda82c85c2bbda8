"""Findings about a run's data: made before it is trained on, put on record and said once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kifuse.errors import KifuseError
from kifuse.io.storage import read_json, write_json
from kifuse.record.run_record import RENDERED, RunRecord, TaskRecord
from kifuse.tasks.data_findings import Findings


def is_looked_through(record: RunRecord) -> bool:
    """Whether the findings about every task are on record; an earlier kifuse did not look for them."""
    return all(entry.repeated is not None for entry in record.tasks)


def put_on_record(record: RunRecord, findings: Findings, folder: Path | None) -> list[str]:
    """Fill the entries of tasks, and add to the warnings what is odd.

    Args:
        record: The run's record, which has an entry for each task.
        findings: Findings about tasks of the run.
        folder: The run's folder. A test example of each task is written there as it is rendered, in a file
            beside the record, so that the record holds no text of the data. None if this process writes no
            files.

    Returns:
        What is odd about these tasks: the readers' warnings and the notes of the findings.
    """
    entries = {entry.name: entry for entry in record.tasks}
    for found in findings.tasks:
        for key, value in found.facts().items():
            setattr(entries[found.task.name], key, value)
    record.overlaps = [overlap._asdict() for overlap in findings.overlaps]
    said = [*(warning for found in findings.tasks for warning in found.task.warnings), *findings.notes()]
    record.warnings += [each for each in dict.fromkeys(said) if each not in record.warnings]
    if folder is not None:
        shown = {f.task.name: f.rendered_test.state() for f in findings.tasks if f.rendered_test}
        write_json(folder / RENDERED, {**_rendered(folder), **shown})
    return said


def _rendered(folder: Path) -> dict[str, Any]:
    """Read the examples that are there already; a file that cannot be read is written again."""
    try:
        found = read_json(folder / RENDERED)
    except KifuseError:
        return {}
    return found if isinstance(found, dict) else {}


def tell(warnings: Sequence[str], entries: Sequence[TaskRecord], say: Callable[[str], None]) -> None:
    """Say what is odd in the data and what was passed over, each once."""
    passed_over = [f"Task '{entry.name}': {each}" for entry in entries for each in entry.passed_over]
    for each in dict.fromkeys([*warnings, *passed_over]):
        say(f"note: {each}")
