"""``kifuse validate``: check a configuration and say what it would run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from kifuse.config import RunConfig
    from kifuse.tasks.data_findings import Findings
    from kifuse.tasks.rendering import Rendering
    from kifuse.tasks.task import Task, TaskStream


def validate(
    config: Annotated[Path, typer.Argument(help="The run's configuration.", metavar="CONFIG.yaml")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration; repeatable."),
    ] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Show the whole first example of this task; repeatable."),
    ] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Show the whole first example of every task.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check every key, the method's settings and the data, and say what would run. Trains nothing.

    Shows what the model reads of each task, and what is odd in the data. This loads the model's tokenizer,
    but not its weights.
    """
    from kifuse.cli import shown_tasks
    from kifuse.config import load_config, parse_overrides
    from kifuse.recipes import refuse_recipe_name
    from kifuse.streams import open_stream
    from kifuse.terminal.safe_console import SafeConsole

    refuse_recipe_name(config)
    resolved = load_config(config, parse_overrides(settings or []), check_files=True)
    # some methods need their own kind of adapter, and others refuse some kinds
    if resolved.model.adapter.kind != "lora" or resolved.model.adapter.from_ or resolved.method.name == "osf":
        from kifuse.running.run_start import open_method

        open_method(resolved)
    stream = open_stream(resolved.data, resolved.training.seed)
    watched = _watched(resolved)
    chosen = [_named(name, stream) for name in show or []]
    console = SafeConsole(highlight=False)
    reading = _read(resolved, stream, SafeConsole(stderr=True, highlight=False))
    findings = reading.findings
    whole = [each for each in findings.tasks if examples or each.task.name in chosen]
    odd = findings.notes(most=None) if examples or as_json else findings.notes()
    notes = [*reading.notes, *stream.warnings, *odd, *_passed_over(stream)]
    if as_json:
        found = shown_tasks.as_json(findings, notes, lambda task: _steps(resolved, [task]))
        form = reading.rendering.state() if reading.rendering else None
        # write 8-bit control characters, which a terminal would obey, as JSON escapes like all others
        text = json.dumps({"config": str(config), "rendering": form, **found}, ensure_ascii=False)
        typer.echo(re.sub("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]", lambda c: f"\\u{ord(c[0]):04x}", text))
        return
    console.print(f"{config} is valid. It would run:", soft_wrap=True, markup=False)
    for name, what in [*_facts(resolved), *watched]:
        console.print(f"  {name:<10}{what}", soft_wrap=True, markup=False)
    shown_tasks.print_origin(console, stream.tasks)
    console.print(_tasks(resolved, findings))
    shown_tasks.print_notes(console, notes)
    console.print(shown_tasks.legend(reading.rendering))
    console.print()
    if whole:
        for each in whole:
            shown_tasks.print_whole(console, each)
        return
    shown_tasks.print_excerpts(console, findings.tasks)
    console.print("To see whole examples: --show TASK, or --examples for all tasks.", style="dim")


class _Reading(NamedTuple):
    """What was found in the tasks, in which form the model gets the examples, and notes about that."""

    findings: Findings
    rendering: Rendering | None
    notes: list[str]


def _read(config: RunConfig, stream: TaskStream, progress: Console) -> _Reading:
    """Look through the tasks with the tokenizer of the run, or without it if it cannot be loaded."""
    from kifuse.errors import ModelError
    from kifuse.methods.general_data import GeneralData
    from kifuse.models.tokenizer import load_tokenizer
    from kifuse.running.memory_source import general_inputs, read_general
    from kifuse.tasks.data_findings import look_through
    from kifuse.tasks.encoding import Encoder
    from kifuse.tasks.on_disk import joined
    from kifuse.tasks.rendering import decide_rendering

    try:
        with progress.status("loading the tokenizer"):
            loaded = load_tokenizer(
                config.model.name,
                trust_remote_code=config.model.trust_remote_code,
                say=lambda text: progress.print(text, soft_wrap=True, markup=False),
            )
    except ModelError as error:
        said = (
            "The tokenizer cannot be loaded, so no lengths are known and examples are shown as they are in "
            f"the data: {error}"
        )
        return _Reading(look_through(stream.tasks), None, [said])
    data, generic = config.data, config.memory.generic
    general = [GeneralData(*read_general(generic))] if generic else []
    rendering = decide_rendering(data.chat_template, loaded.tokenizer, benchmark=data.benchmark)
    encoder = Encoder(
        loaded.tokenizer,
        encoder_decoder=loaded.encoder_decoder,
        max_input=data.max_input,
        max_target=data.max_target,
        chat_template=rendering.by_template,
    )
    with _bar(progress) as bar:
        count = sum(len(task.train) + len(task.test) for task in stream.tasks)
        job = bar.add_task("tokenising", total=count)
        findings = look_through(
            stream.tasks,
            encoder,
            earlier=general_inputs(general),
            max_new_tokens=config.evaluation.max_new_tokens,
            done=lambda count: bar.advance(job, count),
        )
    examples = joined(*(split for task in stream.tasks for split in (task.train, task.test)))
    return _Reading(findings, rendering, [*filter(None, [rendering.note(examples)]), *encoder.notes])


def _bar(console: Console) -> Progress:
    from rich.progress import Progress

    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _named(name: str, stream: TaskStream) -> str:
    from kifuse.errors import ConfigError, did_you_mean

    names = [task.name for task in stream.tasks]
    if name not in names:
        raise ConfigError(
            f"--show: no task {name!r}, expected one of {', '.join(names)}.{did_you_mean(name, names)}"
        )
    return name


def _passed_over(stream: TaskStream) -> list[str]:
    return [f"Task '{task.name}': {note}" for task in stream.tasks for note in task.passed_over]


def _facts(config: RunConfig) -> list[tuple[str, str]]:
    from kifuse.method_catalog import class_with
    from kifuse.registry import build_method, method_entry
    from kifuse.reporting.wording import count

    entry, training, adapter = method_entry(config.method.name), config.training, config.model.adapter
    settings = {**entry.preset, **config.method.settings}
    data_class = entry.data_class
    if config.method.settings:  # only then kifuse imports the method, and torch with it
        data_class = build_method(config.method.name, config.method.settings).data_class
    data_class = class_with(data_class, config.memory.source)
    facts = [
        (
            "model",
            f"{config.model.name} ({_kind_of_model(config.model.name)}), {adapter.summary}",
        ),
        ("method", f"{config.method.name} ({data_class})"),
        (
            "training",
            f"{count(training.epochs, 'epoch')} a task, {count(training.batch_size, 'example')} a step, "
            f"seed {training.seed}",
        ),
        ("output", f"{config.output} ({'exists' if config.output.exists() else 'new'})"),
    ]
    if settings:
        facts.insert(2, ("settings", ", ".join(f"{name}={value}" for name, value in settings.items())))
    return facts


def _watched(config: RunConfig) -> list[tuple[str, str]]:
    """Return the watched tasks with the number of answers to score; this reads the tasks."""
    if not (config.watch.tasks or config.watch.lm_eval.tasks):
        return []
    from kifuse.running.watched_tasks import answers_of, open_watched

    names = [f"{task.name} ({answers_of(task)} answers)" for task in open_watched(config)]
    moments = "before the first task and at the end"
    if config.watch.when == "each":
        moments = "before the first task and after each"
    return [("watched", f"{', '.join(names)}, {moments}")] if names else []


def _kind_of_model(name: str) -> str:
    from kifuse.errors import did_you_mean
    from kifuse.models.catalog import BUNDLED, is_model_folder

    if name in BUNDLED:
        return "from 'kifuse ls models'"
    if is_model_folder(name):
        return "a folder"
    return "a hub id, not checked" + did_you_mean(name, BUNDLED)


def _steps(config: RunConfig, tasks: Sequence[Task]) -> int | None:
    """Count the steps on the tasks' own examples; None for a single task if the method learns all at once."""
    from kifuse.registry import method_entry
    from kifuse.streams import own_steps

    training = config.training
    if method_entry(config.method.name).data_class == "all data":
        if len(tasks) == 1:
            return None
        return own_steps(sum(len(t.train) for t in tasks), training.epochs, training.batch_size)
    return sum(own_steps(len(task.train), training.epochs, training.batch_size) for task in tasks)


def _tasks(config: RunConfig, findings: Findings) -> Table:
    from rich import box
    from rich.table import Table

    tasks = [found.task for found in findings.tasks]
    counted = findings.max_input is not None
    table = Table("", "task", "metric", box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    for heading in (*(["longest\ninput", "longest\nanswer"] if counted else []), "train", "dev", "test"):
        table.add_column(heading, justify="right")
    table.add_column("own\nsteps", justify="right")
    for number, found in enumerate(findings.tasks, 1):
        task, steps, lengths = found.task, _steps(config, [found.task]), found.lengths
        longest = [str(n or "") for n in (lengths.longest_input, lengths.longest_target)] if lengths else []
        sizes = [str(len(split)) for split in (task.train, task.dev, task.test)]
        table.add_row(
            str(number), task.name, task.metric, *longest, *sizes, "" if steps is None else str(steps)
        )
    footers = ["", "together", "", *(["", ""] if counted else [])]
    footers += [str(sum(len(task.split(split)) for task in tasks)) for split in ("train", "dev", "test")]
    for column, footer in zip(table.columns, [*footers, str(_steps(config, tasks))], strict=True):
        column.footer = footer
    return table
