"""``kifuse learn``: teach a learner one more task; the first task makes the learner."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kifuse.cli.opened_learner import GATE, JSON, TRUST, begun, has_learner, opened, speaks
from kifuse.cli.quiet import QUIET
from kifuse.cli.user_errors import refuse_twice, split_names
from kifuse.errors import ConfigError, RunError

if TYPE_CHECKING:
    from kifuse.record.lineage import LearnReport


def learn(
    folder: Annotated[Path, typer.Argument(help="The learner's folder; a new one is made.")],
    data: Annotated[
        str, typer.Argument(help="The task: a folder, a file, or a data set's hub id.", metavar="DATA")
    ],
    name: Annotated[str | None, typer.Option(help="The task's name. Default: the name of the file.")] = None,
    test: Annotated[
        Path | None, typer.Option(help="A file of test rows. Without it, a tenth of the rows is held out.")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="A text that is put before each input.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="The only possible answers, separated by commas.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="A name of 'kifuse ls metrics', or module:function.")
    ] = None,
    data_format: Annotated[
        str | None, typer.Option("--format", help="The format of the rows, if kifuse does not recognise it.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="FIELD=COLUMN",
            help="The column of a field, such as input=question; repeatable.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model of a new learner: a name of 'kifuse ls models', a hub id, or a folder."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="A LoRA adapter made elsewhere that a new learner starts from."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Method of a new learner: a name of 'kifuse ls methods'. Default: recurrent-kif."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration; repeatable."),
    ] = None,
    max_forgetting: Annotated[
        float | None,
        typer.Option(
            help=(
                "Points that an earlier task may lose. If it loses more, the new task is rolled back (exit "
                "code 3)."
            )
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            help="The score that the task must reach. Below it, the task is rolled back (exit code 3)."
        ),
    ] = None,
    repair: Annotated[
        bool | None,
        typer.Option(
            "--repair/--no-repair",
            help="Before rolling back, pull the weights back in small steps and check the limits again.",
        ),
    ] = None,
    watch: Annotated[
        list[Path] | None,
        typer.Option(
            help=(
                "A task or folder of tasks that is scored too and never trained on. --max-forgetting holds "
                "for it."
            )
        ),
    ] = None,
    watch_lm_eval: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness to watch: names separated by commas, or a mapping as "
            "under watch.lm_eval: '{tasks: [hellaswag], limit: 200}'."
        ),
    ] = None,
    before: Annotated[
        str | None, typer.Option("--run-before", help="A shell command to run before the task is learned.")
    ] = None,
    afterwards: Annotated[
        str | None,
        typer.Option("--run-after", help="A shell command to run when the task is kept or rolled back."),
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=QUIET)] = False,
) -> None:
    """Teach a learner one task, score all tasks, and say what was gained and lost.

    The first task makes the learner and needs --model. After a crash, give the same command to go on. If the
    task was learned already, the command only reports. Exit codes: 0 learned, 2 an error, 3 rolled back
    because of --max-forgetting or --min-score. Both limits hold until you give others.
    """
    from kifuse.config.loading import nested, parse_overrides
    from kifuse.config.reading import read_setting
    from kifuse.terminal.safe_console import SafeConsole

    wanted = nested(parse_overrides(settings or []))
    for section, values in wanted.items():
        if not isinstance(values, dict):
            raise ConfigError(
                f"--set {section}: found {values!r}, expected the key of a section, such as "
                "--set training.epochs=3."
            )
    if method is not None:
        refuse_twice({"name": "--method"}, {"name": method}, wanted.get("method", {}))
        wanted["method"] = {**wanted.get("method", {}), "name": method}
    if adapter is not None:
        own = wanted.get("model", {}).get("adapter", {})
        refuse_twice({"from": "--adapter"}, {"from": str(adapter)}, own)
        wanted["model"] = {**wanted.get("model", {}), "adapter": {**own, "from": str(adapter)}}
    limits = {"max_forgetting": max_forgetting, "min_score": min_score, "repair": repair}
    limits = {key: value for key, value in limits.items() if value is not None}
    options = {
        "name": name,
        "test": None if test is None else str(test),
        "instruction": instruction,
        "labels": None if labels is None else [each.strip() for each in labels.split(",") if each.strip()],
        "metric": metric,
        "format": data_format,
        "columns": _columns(columns or []),
    }
    _hook("--run-before", before, folder)
    open_one = opened if has_learner(folder) else begun
    with open_one(
        folder, model=model, settings=wanted, trust_remote_code=trust_remote_code, quiet=quiet, **limits
    ) as learner:
        given = {key: value for key, value in options.items() if value is not None}
        of_lm_eval = read_setting(watch_lm_eval or "[]")
        if isinstance(of_lm_eval, str):
            of_lm_eval = split_names(of_lm_eval)
        report = learner.learn(data, watch=[str(each) for each in watch or ()], lm_eval=of_lm_eval, **given)
    if as_json and speaks():
        typer.echo(json.dumps(report.facts()))
    elif speaks() and not quiet:
        console = SafeConsole()
        console.print(f"{report}\nadapter: {report.adapter}", markup=False, highlight=False, soft_wrap=True)
    _hook("--run-after", afterwards, folder, report)
    if not report.accepted:
        raise typer.Exit(GATE)


def _columns(given: list[str]) -> dict[str, str] | None:
    """Return the names of the data's own columns, by what they hold.

    Raises:
        ConfigError: An entry does not name both.
    """
    pairs = [each.partition("=") for each in given]
    for each, (field, equals, column) in zip(given, pairs, strict=True):
        if not (field and equals and column):
            raise ConfigError(f"--column: found {each!r}, expected FIELD=COLUMN, such as input=question.")
    return {field: column for field, _, column in pairs} or None


def _hook(option: str, command: str | None, folder: Path, report: LearnReport | None = None) -> None:
    """Run a command of the user's. Environment variables tell it what was learned.

    Raises:
        RunError: The command fails.
    """
    if command is None or not speaks():
        return
    known = {"KIFUSE_FOLDER": str(folder)}
    if report is not None:
        known |= {
            "KIFUSE_TASK": report.task,
            "KIFUSE_ACCEPTED": str(int(report.accepted)),
            "KIFUSE_ADAPTER": str(report.adapter),
        }
    # the command is the caller's own; what it prints goes to stderr (2), since stdout is only for the result
    code = subprocess.run(command, shell=True, env={**os.environ, **known}, stdout=2).returncode  # noqa: S602
    if code:
        outcome = "nothing was learned" if report is None else "what was learned stays"
        raise RunError(f"{option}: {command!r} ended with exit code {code}; {outcome}.")
