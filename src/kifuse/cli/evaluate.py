"""``kifuse evaluate``: score a learner on tasks, as it is now or as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kifuse.cli.opened_learner import (
    AFTER,
    FOLDER,
    GATE,
    JSON,
    MODEL,
    OWN_METHOD,
    TRUST,
    known_states,
    opened,
    speaks,
)

if TYPE_CHECKING:
    from rich.table import Table


def evaluate(
    folder: Annotated[Path, typer.Argument(help=FOLDER)],
    tasks: Annotated[
        list[str] | None,
        typer.Argument(help="Names of learned or watched tasks, or folders and files.", metavar="DATA"),
    ] = None,
    after: Annotated[str | None, typer.Option(help=AFTER)] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="The lowest score that each task may have. Below it the exit code is 3."),
    ] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    own_metrics: Annotated[
        list[str] | None, typer.Option("--own-metric", help="module:function that scores a learned task.")
    ] = None,
    own_method: Annotated[str | None, typer.Option(help=OWN_METHOD)] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Score a learner on the tasks that it learned, or on others. The scores are not kept."""
    from kifuse.learning.settings import checked_points
    from kifuse.terminal.safe_console import SafeConsole

    checked_points("--min-score", min_score)
    settings = {"data": {"own_metrics": own_metrics}} if own_metrics else None
    with opened(
        folder, model=model, own_method=own_method, trust_remote_code=trust_remote_code, settings=settings
    ) as learner:
        (state,) = known_states([after] if after else [], learner.tasks)
        scores = learner.evaluate(tasks or None, after=state)
    if as_json and speaks():
        typer.echo(json.dumps(scores))
    elif speaks():
        SafeConsole(highlight=False).print(_table(scores))
    if min_score is not None and any(score < min_score for score in scores.values()):
        raise typer.Exit(GATE)


def _table(scores: dict[str, float]) -> Table:
    """Build the printed table: one line for each task, and the mean of all."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("task", box=box.SIMPLE_HEAD, pad_edge=False, show_footer=len(scores) > 1)
    table.add_column("score", justify="right")
    for name, score in scores.items():
        table.add_row(Text(name), f"{score:.1f}")
    if len(scores) > 1:
        table.columns[0].footer = "mean"
        table.columns[1].footer = f"{sum(scores.values()) / len(scores):.1f}"
    return table
