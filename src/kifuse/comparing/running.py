"""Runs a grid, one run after another. A run that fails is reported, and the others go on."""

from __future__ import annotations

import contextlib
import gc
import traceback
from dataclasses import dataclass, field

from rich.console import Console

from kifuse.comparing.folder import finished_runs, open_folder, refuse_other_folder, write_results
from kifuse.comparing.grid import Grid, PlannedRun
from kifuse.comparing.section import LOG, TABLES
from kifuse.errors import KifuseError, RunError
from kifuse.folders import remove_temporaries
from kifuse.page_refresh import run
from kifuse.reporting.record import RunRecord
from kifuse.reporting.run_groups import Run
from kifuse.reporting.wording import count, shorten
from kifuse.terminal_progress import ConsoleProgress, Pace
from kifuse.training.environment import process_count
from kifuse.training.lock import exclusive
from kifuse.training.opening import now, open_method
from kifuse.training.progress import Plan
from kifuse.training.shared import Shared
from kifuse.training.work import plan_of


@dataclass
class Outcome:
    """What came of a grid.

    Attributes:
        runs: Every run of the folder that has a record.
        failed: The runs that failed, with the reason and the log of each.
    """

    runs: list[Run]
    failed: list[tuple[PlannedRun, str]] = field(default_factory=list)


def is_finished(planned: PlannedRun) -> bool:
    """Whether a run is in its folder, finished; its settings are compared when it is run."""
    try:
        return RunRecord.load(planned.folder).status == "finished"
    except KifuseError:
        return False


def plans(grid: Grid, shared: Shared) -> list[Plan]:
    """The work of every run, done or not.

    Args:
        grid: The grid.
        shared: Holds the tasks that were read last.

    Raises:
        KifuseError: The data or a method's settings are wrong.
    """
    found: dict[tuple[str, int | None], Plan] = {}
    for planned in grid.runs:
        key = (planned.variant.label, planned.order)
        if key not in found:  # another seed draws other examples, but as many
            tasks = shared.stream(planned.config.data, planned.config.training.seed).tasks
            found[key] = plan_of(planned.config, open_method(planned.config), tasks)
    return [found[planned.variant.label, planned.order] for planned in grid.runs]


def run_grid(grid: Grid, console: Console) -> Outcome:
    """Run every run of a grid that is not finished, and write page and tables after each.

    Args:
        grid: The grid.
        console: The console to print to.

    Returns:
        The runs, and which of them failed and why.

    Raises:
        KifuseError: The folder or the data cannot be used, or another process compares in the folder; nothing
            has been run.
        KeyboardInterrupt: The user wants to stop; what is done is kept, and the same call goes on.
    """
    if process_count() > 1:
        raise RunError(
            "compare: works in one process; run each method with 'kifuse run' under your launcher, and "
            "compare them with 'kifuse report'."
        )
    shared = Shared()
    work = plans(grid, shared)
    refuse_other_folder(grid.folder)
    with exclusive(grid.folder):
        remove_temporaries(grid.folder, (TABLES,))
        return _run_all(grid, work, shared, console)


def _run_all(grid: Grid, work: list[Plan], shared: Shared, console: Console) -> Outcome:
    """Run what is not finished, in a folder that nobody else writes to."""
    everything = open_folder(grid)
    waiting = [place for place, planned in enumerate(grid.runs) if not is_finished(planned)]
    done = len(grid.runs) - len(waiting)
    _say(console, f"{size(grid)}{f', {done} of them finished' if done else ''}")
    pace, outcome = Pace(), Outcome([])
    for number, place in enumerate(waiting):
        planned = grid.runs[place]
        progress = ConsoleProgress(
            console,
            title=f"{place + 1}/{len(grid.runs)} {planned.title}",
            label=f"{place + 1}/{len(grid.runs)} {planned.variant.label}",
            later=sum(work[other].work for other in waiting[number + 1 :]),
            pace=pace,
        )
        failure = _run_one(planned, grid, progress, shared)
        if failure is not None:
            outcome.failed.append((planned, failure))
            _say(console, f"failed: {planned.title}: {failure}")
        problem = write_results(everything)
        if problem:
            _say(console, problem)
    if not waiting:
        write_results(everything)  # they may be of an older kifuse
    outcome.runs = finished_runs(everything)
    return outcome


def _run_one(planned: PlannedRun, grid: Grid, progress: ConsoleProgress, shared: Shared) -> str | None:
    """Run one; the reason if it failed."""
    others = [other.folder for other in grid.runs if other is not planned and other.seed == planned.seed]
    try:
        run(planned.config, progress=progress, reuse=others, shared=shared)
    except Exception as error:
        failure = _told(error, planned, grid)
    else:
        return None
    finally:
        progress.stop()
    gc.collect()  # the failed run's model, before another is loaded
    return failure


def _told(error: Exception, planned: PlannedRun, grid: Grid) -> str:
    """A failure in one line, with the file that says more."""
    reason = shorten(" ".join(str(error).split()) or "no reason given", 300)
    if not isinstance(error, KifuseError):
        reason = f"{type(error).__name__}: {reason}"
    log = planned.folder / LOG
    if not log.is_file():
        log = grid.folder / LOG
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError), (grid.folder / LOG).open("ab") as stream:
        stream.write(f"{now()}  {planned.title}: failed\n{text}\n".encode("utf-8", "backslashreplace"))
    return f"{reason} (log: {log})"


def size(grid: Grid) -> str:
    """`2 methods, 3 orders, 2 seeds: 12 runs`."""
    variants = len({planned.variant.label for planned in grid.runs})
    parts = [count(variants, "method"), *([count(len(grid.orders), "order")] if grid.orders else [])]
    return f"{', '.join([*parts, count(len(grid.seeds), 'seed')])}: {count(len(grid.runs), 'run')}"


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
