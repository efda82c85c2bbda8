"""Makes runs as jobs, several at once. A lost job is sent again, and a live table shows all runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from rich.console import Console

from kifuse.comparing.grid import Grid, PlannedRun
from kifuse.comparing.job_runners import JobRunner, NoResultError
from kifuse.comparing.run_job import RunJob
from kifuse.comparing.run_table import JobState, RunTable
from kifuse.running.run_start import config_json, open_method
from kifuse.running.shared_by_runs import Shared
from kifuse.running.shared_first_task import may_share_first_task

TRIES = 3
"""How often a job is sent at most, until it ends with a result."""

_LOOK = 1.0
"""Seconds between two looks at the folders of the runs."""


@dataclass
class PlacedRun:
    """A run of a grid that is made as a job.

    Attributes:
        planned: The run.
        trained: The run whose states are only scored; None if this run is trained.
        state: The state that the table shows.
        first: A run with the same first task, which this run waits for; None if there is none.
    """

    planned: PlannedRun
    trained: PlannedRun | None
    state: JobState
    first: PlacedRun | None = None


def run_placed(
    grid: Grid,
    runs: Sequence[tuple[PlannedRun, PlannedRun | None]],
    runner: JobRunner,
    at_once: int,
    console: Console,
    settled: Callable[[PlannedRun, str | None], None],
) -> None:
    """Make runs as jobs.

    If two runs learn the same first task in the same way, the second waits until the first has learned it,
    and copies the result.

    Args:
        grid: The grid.
        runs: The runs. With each, the run whose states are only scored, or None if the run is trained.
        runner: Runs the jobs.
        at_once: How many jobs run at the same time.
        console: The console that shows the table.
        settled: Called with each run that is finished or failed, and with the reason for the failure.

    Raises:
        KeyboardInterrupt: The user stopped the command; all jobs are cancelled.
    """
    placed = [
        PlacedRun(planned, trained, JobState(planned.title, planned.folder)) for planned, trained in runs
    ]
    _wait_for_first_tasks(placed)
    table = RunTable(console, [run.state for run in placed])
    pool, under_way = ThreadPoolExecutor(at_once), dict[Future[str | None], PlacedRun]()
    held, over = list(placed), set[int]()
    try:
        with table.live():
            while held or under_way:
                for run in [c for c in held if _may_begin(c, over)]:
                    held.remove(run)
                    under_way[pool.submit(_result, runner, grid, run)] = run
                done, _ = wait(under_way, timeout=_LOOK, return_when=FIRST_COMPLETED)
                for future in done:
                    run = under_way.pop(future)
                    over.add(id(run))
                    failure = future.result()
                    run.state.settle(failure)
                    settled(run.planned, failure)
                table.look()
    except BaseException:
        runner.cancel()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(runner: JobRunner, grid: Grid, run: PlacedRun) -> str | None:
    """Run a job until it has a result: None, or the reason for the failure."""
    job, why = RunJob.of(run.planned, grid, run.trained).as_text(), ""
    for number in range(1, TRIES + 1):
        run.state.send(number)
        try:
            return runner.run(job)
        except NoResultError as error:
            why = str(error)
            run.state.lose(why)
        except Exception as error:  # an error of the job runner fails this run only
            return f"{type(error).__name__}: {error}"
    return f"its job ended {TRIES} times without a result: {why}"


def _may_begin(run: PlacedRun, over: set[int]) -> bool:
    first = run.first
    return first is None or id(first) in over or first.state.learned > 0


def _wait_for_first_tasks(runs: Sequence[PlacedRun]) -> None:
    """Let all runs with the same first task wait for the first of them."""
    shared, firsts = Shared(), dict[str, PlacedRun]()
    for run in runs:
        config = run.planned.config
        if run.trained is not None or not may_share_first_task(open_method(config), config):
            continue
        kept = {key: value for key, value in config_json(config).items() if key != "method"}
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "order"}
        name = shared.stream(config.data, config.training.seed).tasks[0].name
        run.first = firsts.setdefault(f"{name} {kept}", run)
        if run.first is run or run.state.learned:
            run.first = None
