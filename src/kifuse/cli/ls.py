"""``kifuse ls``: list the methods, benchmarks, metrics, models and recipes that a user can choose from."""

from __future__ import annotations

import typer

from kifuse.cli.user_errors import EPILOG_GAP

ls_app = typer.Typer(
    help="List the methods, benchmarks, metrics, models or recipes.",
    epilog=EPILOG_GAP.join(
        [
            "[bold]Examples[/bold]",
            *(f"kifuse ls {what}" for what in ("methods", "benchmarks", "metrics", "models", "recipes")),
        ]
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@ls_app.command(epilog="[bold]Example[/bold]  kifuse ls methods")
def methods() -> None:
    """List the methods: which data each one trains on, what it does, and its paper."""
    from kifuse.method_catalog import METHODS

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


@ls_app.command(epilog="[bold]Example[/bold]  kifuse ls metrics")
def metrics() -> None:
    """List the metrics that score answers: what each one means, and if it scores each answer or the set."""
    from kifuse.scoring.metrics import METRICS

    _print(
        ["metric", "what it is", "over"],
        [
            (name, each.meaning, "the set" if each.over_set else "each answer")
            for name, each in METRICS.items()
        ],
    )
    typer.echo(
        "Scores are from 0 to 100. A metric over each answer gives the mean of all answers. Name a "
        "function of your own as module:function, such as my_scores:score."
    )


@ls_app.command(epilog="[bold]Example[/bold]  kifuse ls models")
def models() -> None:
    """List the models that have a name here; any Hugging Face hub id or model folder works as well."""
    from kifuse.models.bundled import bundled_folder
    from kifuse.models.catalog import BUNDLED

    _print(
        ["model", "what it is", "licence"],
        [(each.name, each.summary, each.licence) for each in BUNDLED.values()],
    )
    for name in BUNDLED:
        folder = bundled_folder(name)
        done = "is" if (folder / "config.json").is_file() else "will be, once it was used,"
        typer.echo(f"{name} {done} a standard checkpoint in {folder}")
    typer.echo(
        "Any causal or encoder-decoder model of the Hugging Face hub, or a folder that holds one, works too."
    )


@ls_app.command(epilog="[bold]Example[/bold]  kifuse ls recipes")
def recipes() -> None:
    """List the rows of the papers' tables that 'kifuse cp' can copy, with the published figures."""
    from itertools import groupby

    from kifuse.recipes import model_names, papers

    for paper in papers().values():
        for table, group in groupby(paper.rows, key=lambda row: row.table):
            rows = list(group)
            benchmarks = list(dict.fromkeys(name for row in rows for name in row.published))
            published = f", {' / '.join(paper.metrics)} as published" if benchmarks else ""
            typer.echo(f"{paper.title} ({paper.where}), {table}{published}:")
            cells = [
                (row.arguments, row.name, *(paper.in_table(row.published.get(name)) for name in benchmarks))
                for row in rows
            ]
            _print(["kifuse cp", "row", *benchmarks], cells)
    typer.echo(
        "Figures without a model's name are of T5-large. 'kifuse cp RECIPE' writes a recipe to a file "
        "of your own;"
    )
    typer.echo(f"--model takes {', '.join(model_names())} or any other model; --benchmark and --order")
    typer.echo("take what 'kifuse ls benchmarks' lists.")


def _print(columns: list[str], rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table

    from kifuse.terminal.safe_console import SafeConsole

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (table.columns[0], table.columns[1] if len(columns) > 3 else table.columns[-1]):
        column.no_wrap = True
    for row in rows:
        table.add_row(*row)
    SafeConsole().print(table)
