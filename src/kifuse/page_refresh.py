"""Keeps the page of a run up to date during the run: the page is drawn again whenever a task is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kifuse.config import RunConfig
from kifuse.processes import is_main_process
from kifuse.record.run_record import FILE as RECORD
from kifuse.record.run_record import RunRecord
from kifuse.reporting.page import FILE as PAGE
from kifuse.reporting.page import refresh_report
from kifuse.running import runner
from kifuse.running.progress import Progress
from kifuse.running.shared_by_runs import Shared


class PageRefresh(Progress):
    """Draws the page when the run's folder has changed, and passes every call on to another listener.

    Args:
        inner: The other listener.
    """

    def __init__(self, inner: Progress) -> None:
        self.inner = inner

    def saved(self, folder: Path) -> str | None:
        """Draw the page. If it cannot be drawn, the run continues and the problem is returned."""
        return refresh_report(folder) or self.inner.saved(folder)


def _passing_on(name: str) -> Any:
    def pass_on(self: PageRefresh, *arguments: Any) -> Any:
        return getattr(self.inner, name)(*arguments)

    return pass_on


for _name in vars(Progress):
    if not _name.startswith("_") and _name not in vars(PageRefresh):
        setattr(PageRefresh, _name, _passing_on(_name))


def run(
    config: RunConfig,
    *,
    progress: Progress | None = None,
    reuse: Path | Sequence[Path] | None = None,
    shared: Shared | None = None,
    trained: Path | None = None,
) -> RunRecord:
    """Start a configuration or continue it where it stopped, and draw its page after every task.

    Args:
        config: The configuration of the run.
        progress: The listener that is told about the run's progress.
        reuse: Folders of other runs. If one differs at most in its method and in the order of later tasks,
            and both methods train the first task plainly, its result for the first task is the same and is
            reused instead of being computed again.
        shared: The base model, the tasks and their tokens, which runs in this process share.
        trained: Folder of a finished run that differs at most in what it is scored on; its states are scored.

    Returns:
        The finished record, which is also in the run's folder.

    Raises:
        KifuseError: The configuration, the data, the model or the output folder is wrong, or another process
            is writing to the folder.
    """
    refresh, folder = PageRefresh(progress or Progress()), Path(config.output)
    record = runner.run(config, progress=refresh, reuse=reuse, shared=shared, trained=trained)
    if is_main_process() and page_is_older(folder):
        problem = refresh.saved(folder)
        if problem:
            refresh.say(problem)
    return record


def page_is_older(folder: Path) -> bool:
    """Whether a run's page is missing or older than its record, for example after a kill between the two."""
    page, record = folder / PAGE, folder / RECORD
    if not record.is_file():
        return False
    return not page.is_file() or page.stat().st_mtime_ns < record.stat().st_mtime_ns
