"""One record for all processes of a run: what the first one has on record holds for the others."""

from __future__ import annotations

from collections.abc import Callable

from kifuse.processes import Processes
from kifuse.record.run_record import RunRecord


def changed_by_first(processes: Processes, record: RunRecord, work: Callable[[], None]) -> None:
    """Let the first process do something, and make every process's record what the first one's is then.

    Args:
        processes: All of them call this.
        record: Of the run; changed in place.
        work: Is called on the first process alone; it may change the record, or write it.

    Raises:
        Exception: What the work raises; the other processes raise `ToldByFirst` for it.
    """

    def done() -> RunRecord:
        work()
        return record

    found = processes.of_first(done)
    if found is not record:
        vars(record).update(vars(found))
