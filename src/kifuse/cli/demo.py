"""``kifuse demo``: show forgetting, and how a method prevents it, on small tasks that come with kifuse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kifuse.cli.quiet import QUIET


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, data order and memory.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the runs. Default: runs/demo-seedN.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods to compare, separated by commas; see 'kifuse ls methods'.")
    ] = "sequential,recurrent-kif",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=QUIET)] = False,
) -> None:
    """Train a small model on one task after another, and compare how much it forgets with each method."""
    from kifuse.cli.user_errors import split_names
    from kifuse.errors import ConfigError
    from kifuse.registry import method_entry
    from kifuse.terminal.safe_console import SafeConsole

    names = tuple(dict.fromkeys(split_names(methods)))
    if not names:
        raise ConfigError("--methods: found no name, expected at least one method. See 'kifuse ls methods'.")
    for name in names:
        method_entry(name, place="--methods")

    from kifuse.cli.quiet import quieten
    from kifuse.demo import run_demo

    quieten(everything=quiet)
    raise typer.Exit(run_demo(output, seed, names, SafeConsole(quiet=quiet)))
