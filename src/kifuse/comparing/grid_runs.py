"""Runs a grid, one run after another. A run that fails is reported, and the others go on."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console

from kifuse.comparing.compare_section import TABLES
from kifuse.comparing.folder import finished_runs, open_folder, refuse_other_folder, write_results
from kifuse.comparing.grid import Grid, PlannedRun
from kifuse.comparing.job_runners import job_runner
from kifuse.comparing.placed_runs import run_placed
from kifuse.comparing.run_job import failure_line, reusable
from kifuse.comparing.tried_settings import open_sweep
from kifuse.comparing.varied_settings import NO_LONGER
from kifuse.errors import KifuseError, RunError
from kifuse.io.lock import exclusive
from kifuse.io.whole_folders import remove_temporaries
from kifuse.learning.folder import move_aside
from kifuse.models.bundled import BUNDLED, bundled_model
from kifuse.page_refresh import run
from kifuse.processes import process_count
from kifuse.record.run_record import RunRecord
from kifuse.reporting.run_groups import Run
from kifuse.reporting.sweeps import Sweep
from kifuse.reporting.wording import count
from kifuse.running.memory_source import sources
from kifuse.running.progress import Plan
from kifuse.running.run_start import config_json, differences, open_method
from kifuse.running.shared_by_runs import Shared
from kifuse.running.watched_tasks import answers_of, open_watched
from kifuse.running.work_ahead import plan_of
from kifuse.terminal.progress import ConsoleProgress, Pace


@dataclass
class Outcome:
    """The outcome of a grid.

    Attributes:
        runs: Every run of the folder that has a record.
        failed: The runs that failed, with the reason and the log of each.
        sweep: The settings that were tried; None if none are varied.
    """

    runs: list[Run]
    failed: list[tuple[PlannedRun, str]] = field(default_factory=list)
    sweep: Sweep | None = None


def is_finished(planned: PlannedRun) -> bool:
    """Whether a run's folder holds a finished run; its settings are compared when it is run."""
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

    def key_of(planned: PlannedRun) -> tuple[str, str, int | None]:
        return planned.variant.label, planned.point.name if planned.point else "", planned.order

    found: dict[tuple[str, str, int | None], Plan] = {}
    watched = [answers_of(task) for task in open_watched(grid.runs[0].config)] if grid.runs else []
    for planned in grid.runs:
        key = key_of(planned)
        if key not in found:  # another seed draws other examples, but equally many
            tasks = shared.stream(planned.config.data, planned.config.training.seed).tasks
            method = open_method(planned.config)
            writers = [method, *sources(method, planned.config.memory)]
            found[key] = plan_of(planned.config, writers, tasks, watched=watched)
    return [found[key_of(planned)] for planned in grid.runs]


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
            "compare: works in one process. Run each method with 'kifuse run' under your launcher, and "
            "compare them with 'kifuse report'."
        )
    shared = Shared()
    work = plans(grid, shared)
    refuse_other_folder(grid.folder)
    with exclusive(grid.folder), contextlib.ExitStack() as held:
        remove_temporaries(grid.folder, (TABLES,))
        everything, outcome = open_folder(grid), Outcome([])
        waiting = [planned for planned in grid.runs if not is_finished(planned)]
        done = len(grid.runs) - len(waiting)
        to_do = f"{size(grid)}{f', {done} of them finished' if done else ''}"

        def settled(planned: PlannedRun, failure: str | None) -> None:
            if failure is not None:
                outcome.failed.append((planned, failure))
                _say(console, f"failed: {planned.title}: {failure}")
            _write(everything, console)

        if grid.placing.here:
            _say(console, to_do)
            make = partial(_run_here, work=work, shared=shared, pace=Pace())
        else:
            runner = held.enter_context(job_runner(grid.placing, grid.folder))
            at_once = min(grid.placing.at_once, max(len(waiting), 1))
            _say(console, f"{to_do}; {count(at_once, 'job')} at once on {grid.placing.on}")
            fetch_model(grid.common.model.name, console)
            make = partial(run_placed, runner=runner, at_once=at_once)
        make(grid, [(planned, None) for planned in waiting], console=console, settled=settled)
        outcome.sweep = open_sweep(grid.folder) if grid.vary else None
        chosen = _chosen(grid, outcome.sweep, console) if outcome.sweep is not None else []
        tested = [(planned.tested(), planned) for planned in chosen if not is_finished(planned.tested())]
        make(grid, tested, console=console, settled=settled)
        if not waiting:
            _write(everything, console)  # page and tables may be from an older kifuse
        outcome.runs = finished_runs(everything, [])
        return outcome


def _run_here(
    grid: Grid,
    runs: Sequence[tuple[PlannedRun, PlannedRun | None]],
    *,
    work: list[Plan],
    shared: Shared,
    pace: Pace,
    console: Console,
    settled: Callable[[PlannedRun, str | None], None],
) -> None:
    """Make runs one after another in this process; the arguments are those of `run_placed`."""
    places = [grid.runs.index(planned) if trained is None else None for planned, trained in runs]
    for number, (place, (planned, trained)) in enumerate(zip(places, runs, strict=True), start=1):
        if place is None:
            progress = ConsoleProgress(
                console, title=f"{planned.title}, scored on test", label=planned.variant.label
            )
        else:
            progress = ConsoleProgress(
                console,
                title=f"{place + 1}/{len(grid.runs)} {planned.title}",
                label=f"{place + 1}/{len(grid.runs)} {planned.variant.label}",
                later=sum(work[other].work for other in places[number:] if other is not None),
                pace=pace,
            )
        settled(planned, _run_one(planned, grid, progress, shared, trained))


def _chosen(grid: Grid, sweep: Sweep, console: Console) -> list[PlannedRun]:
    """The runs on dev whose values are chosen; tested runs of other values are moved aside."""
    found = []
    for method in sweep.methods:
        best = sweep.chosen(method)
        own = [planned for planned in grid.runs if planned.variant.label == method]
        if best is None:
            if own:
                _say(console, f"{method}: for no value are all runs scored on dev, so none is chosen")
            continue
        chosen = [p for p in own if p.point and tuple(v for _, v in p.point.values) == best.values]
        if chosen and chosen[0].point:
            _say(console, f"{method}: {chosen[0].point.title} is chosen, with {best.on_dev} on dev")
        for planned in chosen:
            _move_others(planned.tested(), console)
        found += chosen
    return found


def _move_others(planned: PlannedRun, console: Console) -> None:
    """Move a tested run aside if it has another value, which an earlier call chose."""
    if not (planned.folder / "record.json").is_file():
        return
    changed = differences(RunRecord.load(planned.folder).config, config_json(planned.config))
    varied = [key for key, _ in planned.point.values] if planned.point else []
    if any(each.startswith(f"{key} ") for each in changed for key in varied):
        goal = planned.folder.parent / NO_LONGER / planned.folder.name
        move_aside(planned.folder, goal)
        _say(console, f"{planned.folder}: another value is chosen now, so this run was moved to {goal}")


def _write(grid: Grid, console: Console) -> None:
    problem = write_results(grid)
    if problem:
        _say(console, problem)


def _run_one(
    planned: PlannedRun, grid: Grid, progress: ConsoleProgress, shared: Shared, trained: PlannedRun | None
) -> str | None:
    """Run one run, which may be trained already; returns the reason if it fails."""
    others = reusable(planned, grid)
    try:
        folder = None if trained is None else trained.folder
        run(planned.config, progress=progress, reuse=others, shared=shared, trained=folder)
    except Exception as error:
        failure = failure_line(error, planned.title, planned.folder, grid.folder)
    else:
        return None
    finally:
        progress.stop()
    gc.collect()  # frees the failed run's model before another one is loaded
    return failure


def size(grid: Grid) -> str:
    """The size of a grid in words: `2 methods, 3 orders, 2 seeds: 12 runs`."""
    variants = len({planned.variant.label for planned in grid.runs})
    values = len({planned.point.name for planned in grid.runs if planned.point})
    parts = [count(variants, "method"), *([count(values, "value")] if values else [])]
    parts += [*([count(len(grid.orders), "order")] if grid.orders else [])]
    return f"{', '.join([*parts, count(len(grid.seeds), 'seed')])}: {count(len(grid.runs), 'run')}"


def fetch_model(name: str, console: Console) -> None:
    """Make a model that comes with a package once, before many jobs want it."""
    if name in BUNDLED:
        bundled_model(name, lambda text: _say(console, text))


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
