"""``kifuse cp``: copy a recipe into a configuration file of the user's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def cp(
    recipe: Annotated[str, typer.Argument(help="A name of 'kifuse ls recipes'.", metavar="RECIPE")],
    target: Annotated[
        Path | None,
        typer.Argument(
            help="The file to write, or a folder for it. Default: RECIPE.yaml in this folder.",
            metavar="TARGET",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="One of the papers' models, or a bundled model, a hub id or a folder.")
    ] = "t5-large",
    benchmark: Annotated[
        str | None,
        typer.Option(help="A name of 'kifuse ls benchmarks'. Default: the table's."),
    ] = None,
    order: Annotated[int | None, typer.Option(help="Number of the benchmark's task order.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the data.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Your own value for a key of the recipe; repeatable."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
) -> None:
    """Copy a row of a paper's table as a complete configuration that is yours. Trains nothing."""
    from kifuse.config import parse_overrides
    from kifuse.errors import ConfigError
    from kifuse.io.storage import write_text
    from kifuse.recipes import fill_recipe
    from kifuse.terminal.safe_console import SafeConsole

    filled = fill_recipe(
        recipe,
        model=model,
        benchmark=benchmark,
        order=order,
        data=None if data is None else str(data),
        settings=parse_overrides(settings or []),
    )
    path = Path(f"{recipe}.yaml") if target is None else target
    if path.is_dir():
        path /= f"{recipe}.yaml"
    if path.exists() and not force:
        raise ConfigError(
            f"{path}: found a file, expected none. It was not changed. Name another TARGET, or add --force."
        )
    write_text(path, filled.text)
    shown = shlex.quote(str(path))
    lines = [f"Wrote {path}: {recipe} for {filled.model}, {filled.benchmark} in order {filled.order}."]
    if filled.needs_data:
        lines.append("Set data.path in it to the folder of the published data (or give cp --data FOLDER).")
    lines += ["Next:", f"  kifuse validate {shown}", f"  kifuse run {shown}"]
    console = SafeConsole(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
