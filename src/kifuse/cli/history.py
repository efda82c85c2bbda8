"""``kifuse history``: show what a learner learned, refused and took back, with all scores."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kifuse.cli.opened_learner import FOLDER, JSON, refuse_missing

if TYPE_CHECKING:
    from rich.table import Table


def history(
    folder: Annotated[Path, typer.Argument(help=FOLDER)],
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Show what a learner learned, refused and took back, with scores before and after. Loads no model."""
    from kifuse.record.run_record import RunRecord
    from kifuse.terminal.safe_console import SafeConsole

    refuse_missing(folder)
    record = RunRecord.load(os.path.expanduser(folder))
    limits = {key: getattr(record, key) for key in ("max_forgetting", "min_score", "repair")}
    learned = [task.name for task in record.tasks if task.train_steps is not None]
    watched = [task.name for task in record.watched if task.forgotten is None]
    model, method = record.model.get("name", "-"), record.method.name
    if as_json:
        now = {"model": model, "method": method, "learned": learned, "watched": watched, **limits}
        typer.echo(json.dumps({**now, "history": record.lineage}))
        return
    console = SafeConsole(highlight=False)
    said = [f"{model}, {method}; learned now: {', '.join(learned) or 'nothing'}"]
    said += [f"watched: {', '.join(watched)}"] if watched else []
    given = [f"{key} {value}" for key, value in limits.items() if value not in (None, False)]
    said += [f"limits: {', '.join(given)}"] if given else []
    console.print("\n".join(said), markup=False, soft_wrap=True)
    console.print(_table(record.lineage))


def _table(lineage: list[dict[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("when", "what", "task", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("before", "after", "earlier ones", "lost most"):
        table.add_column(heading, justify="right")
    table.columns[0].no_wrap = table.columns[1].no_wrap = table.columns[5].no_wrap = True
    for entry in lineage:
        when = entry["when"][:16].replace("T", " ")
        if entry["event"] == "rolled back":
            gone = ", ".join(entry["tasks"])
            table.add_row(Text(when), "rolled back", Text(gone), "", "", "", "")
            continue
        if entry["event"] == "forgotten":
            table.add_row(when, "forgotten", Text(entry["task"]), "", "", "", "")
            continue
        task, before, after = entry["task"], entry["before"], entry["after"]
        earlier = [name for name in after if name != task]
        means = (
            [sum(scores[name] for name in earlier) / len(earlier) for scores in (before, after)]
            if earlier
            else []
        )
        lost = {name: before[name] - after[name] for name in earlier if after[name] < before[name]}
        worst = max(lost, key=lambda name: lost[name], default=None)
        table.add_row(
            Text(when),
            entry["event"],
            Text(task),
            _points(before.get(task)),
            _points(after.get(task)),
            f"{means[0]:.1f} → {means[1]:.1f}" if means else "",
            Text("" if worst is None else f"{worst} {-lost[worst]:.1f}"),
            style="red" if entry["event"] == "refused" else None,
        )
    return table


def _points(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"
