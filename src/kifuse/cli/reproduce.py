"""``kifuse reproduce``: run a table or figure of the papers, and show the results beside theirs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kifuse.cli.compare import FAILED
from kifuse.cli.quiet import QUIET
from kifuse.cli.user_errors import print_error, split_names

if TYPE_CHECKING:
    from rich.console import Console

    from kifuse.reproducing.catalog import PaperTable
    from kifuse.reproducing.results import Result

LIST = "list"


def reproduce(
    name: Annotated[
        str,
        typer.Argument(help="'list', or a name from that list, such as rkif-table-2.", metavar="list|NAME"),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="The benchmark's data. For two benchmarks, the folder that holds long_sequence and superni."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model of the papers, such as llama-2-7b, a name of 'kifuse ls models', a hub id, or a "
            "folder. Several, separated by commas, for a figure that compares models."
        ),
    ] = None,
    watch: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of tasks that are scored and never trained on; repeatable. kif-table-3 needs one."
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="paper: the authors' settings, for a GPU; bench: for two CPU cores; smoke: takes minutes."
        ),
    ] = "bench",
    benchmark: Annotated[
        str | None, typer.Option(help="Benchmarks of the table, separated by commas. Default: all.")
    ] = None,
    orders: Annotated[str | None, typer.Option(help="Numbers of task orders, separated by commas.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas.")] = None,
    rows: Annotated[
        str | None, typer.Option(help="Names of rows, separated by commas. Default: all.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any key of the configuration, for all rows. The page names it. Repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for everything. Runs that are finished in it are not made again."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much work it is, then stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=QUIET)] = False,
) -> None:
    """Run a table or figure of the papers, and show the results beside the published ones.

    'kifuse reproduce list' names them all. The same command goes on where it stopped. After each benchmark
    it writes the page, tables and pictures of what is finished.
    """
    from kifuse.config import parse_overrides
    from kifuse.errors import ConfigError
    from kifuse.reproducing.budgets import budget_of
    from kifuse.reproducing.catalog import paper_table

    if name == LIST:
        _list()
        return
    table, cost = paper_table(name), budget_of(budget)
    folder = output or Path("runs") / f"{name}-{budget}"
    if table.properties is not None:
        from kifuse.reproducing.results import write_properties
        from kifuse.terminal.safe_console import SafeConsole

        _show(write_properties(table, folder), SafeConsole(quiet=quiet))
        return
    if data is None:
        raise ConfigError(
            f"--data: found nothing, expected the folder with the data of {_benchmarks(table)}. For two "
            "benchmarks, name the folder that holds long_sequence and superni."
        )

    from kifuse.cli.compare import show_plan, whole_numbers
    from kifuse.cli.quiet import quieten
    from kifuse.comparing.grid_runs import run_grid
    from kifuse.reproducing.grids import Wanted, grids
    from kifuse.reproducing.results import write_result
    from kifuse.terminal.safe_console import SafeConsole

    wanted = Wanted.of(
        table,
        cost,
        split_names(model) if model else (),
        data=data,
        output=folder,
        watch=tuple(watch or ()),
        benchmarks=tuple(split_names(benchmark)) if benchmark else (),
        orders=tuple(whole_numbers(orders, "--orders") or ()),
        seeds=tuple(whole_numbers(seeds, "--seeds") or ()),
        rows=tuple(split_names(rows)) if rows else (),
        settings=parse_overrides(settings or []),
    )
    found = grids(wanted)
    quieten(everything=quiet)
    console = SafeConsole(quiet=quiet)
    if dry_run:
        for grid in found.values():
            show_plan(grid, console)
        return
    # the results are written after each benchmark, and shown once
    made = [(run_grid(grid, console).failed, write_result(wanted, found)) for grid in found.values()]
    _show(made[-1][1], console)
    failed = [each for lost, _ in made for each in lost]
    for planned, reason in failed:
        print_error(f"{planned.title} failed: {reason}")
    if failed:
        raise typer.Exit(FAILED)


def _list() -> None:
    """Print every table and figure: what it shows, what it needs, and what it takes in each budget."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kifuse.reproducing.budgets import BUDGETS
    from kifuse.reproducing.catalog import paper_tables
    from kifuse.terminal.safe_console import SafeConsole

    console = SafeConsole()
    shown = Table(
        "name", "what it shows", "data and orders", "rows", "runs", box=box.SIMPLE_HEAD, pad_edge=False
    )
    shown.columns[0].no_wrap = True
    for each in paper_tables().values():
        title = f"{each.paper.title}, {each.called}: {each.title}"
        rows = len(each.properties or each.rows)
        runs = len(each.rows) * sum(len(numbers) for numbers in (each.orders or {}).values())
        often = f"{runs} a seed" + (" and model" if each.models else "") if runs else "none"
        needs = _benchmarks(each) + ("; --watch tasks" if each.unseen else "")
        shown.add_row(*map(Text, (each.name, title, needs, str(rows), often)))
    console.print(shown)
    for budget in BUDGETS.values():
        _say(console, f"--budget {budget.name}: {budget.summary}.")
    _say(console, "'--dry-run' says how much work a table is.")


def _benchmarks(table: PaperTable) -> str:
    """`standard-cl 1, 2, 3; long-sequence 4`."""
    orders = table.orders or {}
    return "; ".join(f"{name} {', '.join(map(str, numbers))}" for name, numbers in orders.items())


def _show(result: Result, console: Console) -> None:
    """Print our figures beside the paper's, the paper's claims, and the paths of the results."""
    from kifuse.reporting.terminal_tables import plain_table

    console.print(plain_table(result.table))
    for claim, verdict, why in result.claims.rows:
        _say(console, f"{verdict.text}: {claim.text}. {why.text}.")
    _say(console, f"Page: {result.page}")
    if result.problem is not None:
        _say(console, f"Pictures were not written as files: {result.problem}")


def _say(console: Console, text: str) -> None:
    from kifuse.reporting.wording import MINUS

    console.print(text.replace(MINUS, "-"), soft_wrap=True, highlight=False, markup=False)
