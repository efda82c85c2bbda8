"""Runs cells as jobs, some at once: a lost job is sent again, and one live table shows all cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from rich.console import Console

from kifuse.comparing.cell_job import CellJob
from kifuse.comparing.cell_table import CellTable, Shown
from kifuse.comparing.grid import Grid, PlannedRun
from kifuse.comparing.job_runners import JobRunner, NoResultError
from kifuse.running.run_start import config_json, open_method
from kifuse.running.shared_by_runs import Shared
from kifuse.running.shared_first_task import may_share_first_task

TRIES = 3
"""How often a cell's job is sent until it ends with a result."""

_LOOK = 1.0
"""Seconds between two looks at the cells' folders."""


@dataclass
class Cell:
    """A run of a grid on its way.

    Attributes:
        planned: The run.
        trained: The run whose states it scores; None: it is trained.
        shown: What the table says of it.
        first: The cell whose first task is its own as well, and is waited for; None where there is none.
    """

    planned: PlannedRun
    trained: PlannedRun | None
    shown: Shown
    first: Cell | None = None


def run_cells(
    grid: Grid,
    cells: Sequence[tuple[PlannedRun, PlannedRun | None]],
    runner: JobRunner,
    at_once: int,
    console: Console,
    settled: Callable[[PlannedRun, str | None], None],
) -> None:
    """Run cells as jobs.

    A cell whose first task comes out as another's does waits until that one has learned it, and takes it
    over.

    Args:
        grid: The grid.
        cells: Each run, with the one whose states it scores where it is not trained.
        runner: Runs the jobs.
        at_once: How many at once.
        console: Where the table is shown.
        settled: Called with each run that is done, and why it failed if it has.

    Raises:
        KeyboardInterrupt: The user wants to stop; all jobs are cancelled.
    """
    mine = [Cell(planned, trained, Shown(planned.title, planned.folder)) for planned, trained in cells]
    _wait_for_first_tasks(mine)
    table = CellTable(console, [cell.shown for cell in mine])
    pool, under_way = ThreadPoolExecutor(at_once), dict[Future[str | None], Cell]()
    held, over = list(mine), set[int]()
    try:
        with table.live():
            while held or under_way:
                for cell in [c for c in held if _may_begin(c, over)]:
                    held.remove(cell)
                    under_way[pool.submit(_result, runner, grid, cell)] = cell
                done, _ = wait(under_way, timeout=_LOOK, return_when=FIRST_COMPLETED)
                for future in done:
                    cell = under_way.pop(future)
                    over.add(id(cell))
                    failure = future.result()
                    cell.shown.settle(failure)
                    settled(cell.planned, failure)
                table.look()
    except BaseException:
        runner.cancel()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(runner: JobRunner, grid: Grid, cell: Cell) -> str | None:
    """Run a cell to its end; None, or why it failed."""
    job, why = CellJob.of(cell.planned, grid, cell.trained).as_text(), ""
    for number in range(1, TRIES + 1):
        cell.shown.send(number)
        try:
            return runner.run(job)
        except NoResultError as error:
            why = str(error)
            cell.shown.lose(why)
        except Exception as error:  # of what runs the jobs; one cell's failure stops no other
            return f"{type(error).__name__}: {error}"
    return f"its job ended {TRIES} times without a result: {why}"


def _may_begin(cell: Cell, over: set[int]) -> bool:
    first = cell.first
    return first is None or id(first) in over or first.shown.learned > 0


def _wait_for_first_tasks(cells: Sequence[Cell]) -> None:
    """Let one cell of each first task go ahead, and the others of the same one wait for it."""
    shared, firsts = Shared(), dict[str, Cell]()
    for cell in cells:
        config = cell.planned.config
        if cell.trained is not None or not may_share_first_task(open_method(config), config):
            continue
        kept = {key: value for key, value in config_json(config).items() if key != "method"}
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "order"}
        name = shared.stream(config.data, config.training.seed).tasks[0].name
        cell.first = firsts.setdefault(f"{name} {kept}", cell)
        if cell.first is cell or cell.shown.learned:
            cell.first = None
