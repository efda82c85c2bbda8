"""``kifuse ls``: what there is to choose from."""

from __future__ import annotations

import typer

from kifuse.cli.group import EPILOG_GAP

ls_app = typer.Typer(
    help="List the methods, benchmarks or models.",
    epilog=EPILOG_GAP.join(
        ["[bold]Examples[/bold]", "kifuse ls methods", "kifuse ls benchmarks", "kifuse ls models"]
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@ls_app.command(epilog="[bold]Example[/bold]  kifuse ls methods")
def methods() -> None:
    """List the methods: which data each trains on, what it does, and its paper."""
    from kifuse.registry import METHODS

    rows = [(name, each.data_class, each.summary, each.paper or "baseline") for name, each in METHODS.items()]
    _print(["method", "data", "what it does", "paper"], rows)


@ls_app.command(epilog="[bold]Example[/bold]  kifuse ls benchmarks")
def benchmarks() -> None:
    """List the benchmarks: their task orders, what they are, and their paper."""
    from kifuse.benchmarks.catalog import BENCHMARKS

    rows = [
        (
            name,
            ", ".join(str(order) for order in each.orders),
            each.summary,
            each.paper or "comes with kifuse",
        )
        for name, each in BENCHMARKS.items()
    ]
    _print(["benchmark", "orders", "what it is", "paper"], rows)


@ls_app.command(epilog="[bold]Example[/bold]  kifuse ls models")
def models() -> None:
    """List the models that have a name here; any Hugging Face hub id or model folder works as well."""
    from kifuse.models.catalog import BUNDLED

    _print(
        ["model", "what it is", "licence"],
        [(each.name, each.summary, each.licence) for each in BUNDLED.values()],
    )
    typer.echo(
        "Any causal or encoder-decoder model of the Hugging Face hub, or a folder that holds one, works too."
    )


def _print(columns: list[str], rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (table.columns[0], table.columns[1] if len(columns) > 3 else table.columns[-1]):
        column.no_wrap = True
    for row in rows:
        table.add_row(*row)
    Console().print(table)
