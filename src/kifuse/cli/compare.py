"""``kifuse compare``: several methods on the same stream, over orders and seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kifuse.cli.quiet import QUIET
from kifuse.cli.user_errors import print_error, refuse_twice, split_names

if TYPE_CHECKING:
    from rich.console import Console

    from kifuse.comparing.grid import Grid
    from kifuse.comparing.grid_runs import Outcome

FLAGS = {
    "data.benchmark": "--benchmark",
    "data.path": "--data",
    "model.name": "--model",
    "output": "--output",
}
"""The options that stand for a key of the configuration."""

FAILED = 1
"""Exit code if a run failed and the others went on."""


def compare(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A run's configuration; its section 'compare' may hold methods, orders and seeds.",
            metavar="CONFIG.yaml",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names of 'kifuse ls methods' or labels of the section 'compare', separated by commas."
        ),
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="A name of 'kifuse ls benchmarks'.")] = None,
    orders: Annotated[
        str | None, typer.Option(help="Numbers of the benchmark's task orders, separated by commas.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the data.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A name of 'kifuse ls models', a hub id, or a folder.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for all runs. Runs that are finished in it are not made again."),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=VALUE,VALUE",
            help="Values of any key to try. Repeat it to try all combinations.",
        ),
    ] = None,
    choose_on: Annotated[
        str | None,
        typer.Option(
            help=(
                "The examples that values are chosen on: dev. Test examples are scored with the chosen "
                "value only."
            )
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration; repeatable."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help=(
                "Where the runs are made: local, slurm (through submitit) or ray. Default: as in the file, "
                "or local."
            )
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at the same time. Default: 1 on this machine, 8 on slurm and ray."),
    ] = None,
    job: Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            metavar="KEY=VALUE",
            help=(
                "An option of each job, as submitit or Ray names it, such as slurm_partition=gpu; repeatable."
            ),
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say which runs there are and how much work they are, then stop."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=QUIET)] = False,
) -> None:
    """Run every method with every order and seed, and show them side by side. Continues where it stopped.

    With --vary every method is run with each value and scored on dev. Then only the best value's runs are
    scored on test. If a run fails, the command says so and goes on with the others. Give the same command
    to try the failed run again.
    With --on slurm or ray, or --jobs, the runs are jobs, and one table shows all of them.
    """
    from kifuse.comparing.grid import load_grid
    from kifuse.comparing.varied_settings import check_choice, parse_vary
    from kifuse.config import parse_overrides
    from kifuse.recipes import refuse_recipe_name

    refuse_recipe_name(config)
    overrides = parse_overrides(settings or [])
    given: dict[str, Any] = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in zip(FLAGS, [benchmark, data, model, output], strict=True)
        if value is not None
    }
    refuse_twice(FLAGS, given, overrides)
    grid = load_grid(
        config,
        {**overrides, **given},
        methods=None if methods is None else split_names(methods),
        orders=whole_numbers(orders, "--orders"),
        seeds=whole_numbers(seeds, "--seeds"),
        vary=parse_vary(vary) if vary else None,
        flags={key: flag for key, flag in FLAGS.items() if key not in overrides},
        check_files=True,
    )
    check_choice(choose_on, bool(grid.vary), "--choose-on")
    grid = replace(grid, placing=grid.placing.given(on, jobs, job or []))

    from kifuse.cli.quiet import quieten
    from kifuse.comparing.grid_runs import run_grid
    from kifuse.terminal.safe_console import SafeConsole

    quieten(everything=quiet)
    console = SafeConsole(quiet=quiet)
    if dry_run:
        show_plan(grid, console)
        return
    outcome = run_grid(grid, console)
    _show(grid, outcome, console)
    if outcome.failed:
        raise typer.Exit(FAILED)


def whole_numbers(text: str | None, option: str) -> list[int] | None:
    """Read a list of whole numbers that are separated by commas. Each must occur once."""
    from kifuse.errors import ConfigError

    if text is None:
        return None
    names = split_names(text)
    if not names or not all(name.isascii() and name.isdigit() and len(name) < 20 for name in names):
        raise ConfigError(
            f"{option}: found {text!r}, expected whole numbers separated by commas, such as 1,2,3."
        )
    found = [int(name) for name in names]
    if len(set(found)) < len(found):
        raise ConfigError(f"{option}: found {text!r}, expected each number once. Remove one.")
    return found


def show_plan(grid: Grid, console: Console) -> None:
    """Print the runs and how much work each of them is."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kifuse.comparing.grid_runs import is_finished, plans, size
    from kifuse.running.shared_by_runs import Shared

    work = plans(grid, Shared())
    table = Table("method", "runs", "finished", "passes a run", "answers a run", box=box.SIMPLE_HEAD)
    for variant in {planned.variant.label: planned.variant for planned in grid.runs}.values():
        own = [
            (planned, plan)
            for planned, plan in zip(grid.runs, work, strict=True)
            if planned.variant is variant
        ]
        steps, scored = (sorted({getattr(plan, name) for _, plan in own}) for name in ("steps", "scored"))
        done = sum(is_finished(planned) for planned, _ in own)
        runs = (variant.label, len(own), done, _range(steps), _range(scored))
        table.add_row(*(Text(str(each)) for each in runs))
    if grid.vary:
        _say(
            console,
            "These runs are scored on dev. Then each method's best value is scored on test, with no "
            "more training.",
        )
    left = [plan for planned, plan in zip(grid.runs, work, strict=True) if not is_finished(planned)]
    console.print(table)
    _say(console, f"{size(grid)}, in {grid.folder}")
    _say(
        console,
        f"To do: {len(left)} runs, at most {sum(plan.steps for plan in left):,} forward and backward passes "
        f"and {sum(plan.scored for plan in left):,} answers to score. A pass is one batch, forward and "
        "backward.",
    )


def _range(values: list[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _show(grid: Grid, outcome: Outcome, console: Console) -> None:
    """Print the methods side by side, the runs that failed, and the paths of page and tables."""
    from kifuse.comparing.compare_section import PAGE, TABLES
    from kifuse.reporting.paired_differences import differences_table
    from kifuse.reporting.run_groups import group_runs
    from kifuse.reporting.terminal_tables import plain_table, ranking_table, sweep_shown
    from kifuse.reporting.watched import watched_by_method
    from kifuse.reporting.wording import MINUS

    if outcome.sweep is not None:
        console.print(sweep_shown(outcome.sweep))
    if outcome.runs:
        groups = group_runs(outcome.runs)
        console.print(ranking_table(groups))
        watched = watched_by_method(groups)
        if watched is not None:
            console.print(plain_table(watched))
        apart = differences_table(groups)
        for note in apart.notes if apart else ():
            _say(console, note.replace(MINUS, "-"))
        for what, place in (("Page", grid.folder / PAGE), ("Tables", grid.folder / TABLES)):
            if place.exists():  # otherwise the reason was told when it could not be written
                _say(console, f"{what}: {place}")
    for planned, reason in outcome.failed:
        print_error(f"{planned.title} failed: {reason}")
    if outcome.failed:
        _say(console, "Give the same command to try the failed runs again.")


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
