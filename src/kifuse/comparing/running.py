"""Runs a grid, one run after another; one that fails is told, and the others go on."""

from __future__ import annotations

import contextlib
import gc
import traceback
from dataclasses import dataclass, field

from rich.console import Console

from kifuse.comparing.folder import finished_runs, open_folder, write_results
from kifuse.comparing.grid import Cell, Grid
from kifuse.comparing.progress import CellProgress, Pace
from kifuse.comparing.section import LOG
from kifuse.errors import KifuseError, RunError
from kifuse.page_refresh import run
from kifuse.reporting.record import RunRecord
from kifuse.reporting.run_groups import Run
from kifuse.reporting.wording import count, shorten
from kifuse.training.environment import process_count
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
    failed: list[tuple[Cell, str]] = field(default_factory=list)


def is_finished(cell: Cell) -> bool:
    """Whether a run is in its folder, finished; its settings are compared when it is run."""
    try:
        return RunRecord.load(cell.folder).status == "finished"
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
    for cell in grid.cells:
        key = (cell.row.label, cell.order)
        if key not in found:  # another seed draws other examples, but as many
            tasks = shared.stream(cell.config.data, cell.config.training.seed).tasks
            found[key] = plan_of(cell.config, open_method(cell.config), tasks)
    return [found[cell.row.label, cell.order] for cell in grid.cells]


def run_grid(grid: Grid, console: Console) -> Outcome:
    """Run every run of a grid that is not finished, and write page and tables after each.

    Args:
        grid: The grid.
        console: Where to.

    Returns:
        The runs, and which of them failed and why.

    Raises:
        KifuseError: The folder or the data cannot be used; nothing has been run.
        KeyboardInterrupt: The user wants to stop; what is done is kept, and the same call goes on.
    """
    if process_count() > 1:
        raise RunError(
            "compare: works in one process; run each method with 'kifuse run' under your launcher, and "
            "compare them with 'kifuse report'."
        )
    shared = Shared()
    work = plans(grid, shared)
    everything = open_folder(grid)
    waiting = [place for place, cell in enumerate(grid.cells) if not is_finished(cell)]
    done = len(grid.cells) - len(waiting)
    _say(console, f"{size(grid)}{f', {done} of them finished' if done else ''}")
    pace, outcome = Pace(), Outcome([])
    for number, place in enumerate(waiting):
        cell = grid.cells[place]
        progress = CellProgress(
            console,
            place=f"{place + 1}/{len(grid.cells)}",
            title=cell.title,
            label=cell.row.label,
            later=sum(work[other].work for other in waiting[number + 1 :]),
            pace=pace,
        )
        failure = _run_cell(cell, grid, progress, shared)
        if failure is not None:
            outcome.failed.append((cell, failure))
            _say(console, f"failed: {cell.title}: {failure}")
        problem = write_results(everything)
        if problem:
            _say(console, problem)
    if not waiting:
        write_results(everything)  # they may be of an older kifuse
    outcome.runs = finished_runs(everything)
    return outcome


def _run_cell(cell: Cell, grid: Grid, progress: CellProgress, shared: Shared) -> str | None:
    """Run one cell; the reason if it failed."""
    others = [other.folder for other in grid.cells if other is not cell and other.seed == cell.seed]
    try:
        run(cell.config, progress=progress, reuse=others, shared=shared)
    except Exception as error:
        failure = _told(error, cell, grid)
    else:
        return None
    finally:
        progress.stop()
    gc.collect()  # the failed run's model, before another is loaded
    return failure


def _told(error: Exception, cell: Cell, grid: Grid) -> str:
    """A failure in one line, with the file that says more."""
    reason = shorten(" ".join(str(error).split()) or "no reason given", 300)
    if not isinstance(error, KifuseError):
        reason = f"{type(error).__name__}: {reason}"
    log = cell.folder / LOG
    if not log.is_file():
        log = grid.folder / LOG
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError), (grid.folder / LOG).open("ab") as stream:
        stream.write(f"{now()}  {cell.title}: failed\n{text}\n".encode("utf-8", "backslashreplace"))
    return f"{reason} (log: {log})"


def size(grid: Grid) -> str:
    """`2 methods, 3 orders, 2 seeds: 12 runs`."""
    rows = len({cell.row.label for cell in grid.cells})
    parts = [count(rows, "method"), *([count(len(grid.orders), "order")] if grid.orders else [])]
    return f"{', '.join([*parts, count(len(grid.seeds), 'seed')])}: {count(len(grid.cells), 'run')}"


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
