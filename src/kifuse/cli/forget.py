"""``kifuse forget``: remove a task's examples from a learner's folder and its history."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from kifuse.cli.opened_learner import FOLDER, GATE, JSON, MODEL, TRUST, opened


def forget(
    folder: Annotated[Path, typer.Argument(help=FOLDER)],
    task: Annotated[str, typer.Argument(help="A task that was learned, refused, rolled back or watched.")],
    retrain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help=(
                "Data of each later task, in order. These tasks are learned again from the state before TASK."
            ),
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Remove a task's kept examples, predictions and texts from the folder and its history, for good.

    What the weights have learned from the task cannot be removed. The command says so, and says how to
    retrain without the task.
    """
    from kifuse.terminal.safe_console import SafeConsole

    with opened(folder, model=model, trust_remote_code=trust_remote_code) as learner:
        report = learner.forget(task, retrain=retrain)
    if as_json:
        retrained = [each.facts() for each in report.retrained]
        typer.echo(json.dumps({**dataclasses.asdict(report), "retrained": retrained}, default=str))
    else:
        SafeConsole().print(str(report), markup=False, highlight=False, soft_wrap=True)
    if not all(each.accepted for each in report.retrained):
        raise typer.Exit(GATE)
