"""``kifuse run``: train on a stream of tasks (one after another) and score them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kifuse.cli.quiet import QUIET
from kifuse.cli.user_errors import refuse_twice

FLAGS = {
    "data.benchmark": "--benchmark",
    "data.order": "--order",
    "data.path": "--data",
    "model.name": "--model",
    "method.name": "--method",
    "training.seed": "--seed",
    "output": "--output",
}
"""The options that stand for a key of the configuration."""


def run(
    config: Annotated[
        Path | None, typer.Argument(help="The run's configuration.", metavar="CONFIG.yaml")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the run; a run found in it is continued.")
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="A name of 'kifuse ls benchmarks'.")] = None,
    order: Annotated[int | None, typer.Option(help="Number of the benchmark's task order.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the data.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A name of 'kifuse ls models', a hub id, or a folder.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="A name of 'kifuse ls methods'.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data order and memory.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration; repeatable."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=QUIET)] = False,
) -> None:
    """Train on a stream of tasks, one after another, and score every task. Continues an unfinished run.

    Everything may come from CONFIG.yaml, from options, or from both. An option overrides the file.
    """
    from kifuse.config import load_config, parse_overrides
    from kifuse.recipes import refuse_recipe_name
    from kifuse.terminal.safe_console import SafeConsole

    refuse_recipe_name(config)
    overrides = parse_overrides(settings or [])
    options = [benchmark, order, data, model, method, seed, output]
    given: dict[str, Any] = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in zip(FLAGS, options, strict=True)
        if value is not None
    }
    refuse_twice(FLAGS, given, overrides)
    flags = {key: flag for key, flag in FLAGS.items() if key not in overrides}
    resolved = load_config(config, {**overrides, **given}, flags=flags, check_files=True)

    from kifuse.cli.quiet import quieten
    from kifuse.page_refresh import run as run_stream
    from kifuse.processes import is_main_process, leave_processes
    from kifuse.reporting.terminal_tables import comparison_table, matrix_table, plain_table
    from kifuse.reporting.watched import watched_table
    from kifuse.terminal.progress import ConsoleProgress

    quieten(everything=quiet)
    console = SafeConsole(quiet=quiet or not is_main_process())  # only one of several processes prints
    progress = ConsoleProgress(console)
    try:
        record = run_stream(resolved, progress=progress)
    finally:
        progress.finish()
    console.print(matrix_table(record))
    console.print(comparison_table([record]))
    watched = watched_table(record)
    if watched is not None:
        console.print(plain_table(watched))
    console.print(f"Written to {resolved.output}", soft_wrap=True, highlight=False, markup=False)
    leave_processes()
