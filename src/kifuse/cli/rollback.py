"""``kifuse rollback``: take a learner back to an earlier task."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from kifuse.cli.opened_learner import FOLDER, JSON, MODEL, OWN_METHOD, TRUST, opened, refuse_missing, speaks


def rollback(
    folder: Annotated[Path, typer.Argument(help=FOLDER)],
    to: Annotated[str, typer.Option(help="The last task to keep, or 0 for the model before its first.")],
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    own_method: Annotated[str | None, typer.Option(help=OWN_METHOD)] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Take a learner back to an earlier task, bit for bit; what came later is moved aside, never deleted."""
    from kifuse.record.run_record import RunRecord
    from kifuse.terminal.safe_console import SafeConsole

    refuse_missing(folder)
    names = [task.name for task in RunRecord.load(os.path.expanduser(folder)).tasks]
    at = 0 if to == "0" and to not in names else to
    with opened(
        folder, model=model, own_method=own_method, trust_remote_code=trust_remote_code, at=at
    ) as learner:
        left = learner.tasks or learner.config.model.adapter.from_ is not None
        facts = {"tasks": learner.tasks, "adapter": str(learner.adapter) if left else None}
    if as_json and speaks():
        typer.echo(json.dumps(facts))
    elif speaks():
        said = f"learned now: {', '.join(learner.tasks) or 'nothing'}"
        SafeConsole().print(said, markup=False, highlight=False, soft_wrap=True)
