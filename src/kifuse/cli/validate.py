"""``kifuse validate``: check a configuration and say what it would run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from kifuse.config import RunConfig
    from kifuse.tasks.task import TaskStream


def validate(
    config: Annotated[Path, typer.Argument(help="The run's configuration.", metavar="CONFIG.yaml")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the configuration; repeatable."),
    ] = None,
) -> None:
    """Check every key, the method's settings and the data, and say what would run. Trains nothing."""
    from rich.console import Console

    from kifuse.config import load_config, parse_overrides
    from kifuse.recipes import refuse_recipe_name
    from kifuse.streams import open_stream

    refuse_recipe_name(config)
    resolved = load_config(config, parse_overrides(settings or []), check_files=True)
    # the method of that name needs its own kind of adapter, and others refuse some kinds
    if resolved.model.adapter.kind != "lora" or resolved.method.name == "osf":
        from kifuse.training.opening import open_method

        open_method(resolved)
    stream = open_stream(resolved.data, resolved.training.seed)
    console = Console(highlight=False)
    console.print(f"{config} is valid. It would run:", soft_wrap=True, markup=False)
    for name, what in _facts(resolved):
        console.print(f"  {name:<9}{what}", soft_wrap=True, markup=False)
    console.print(_tasks(resolved, stream))


def _facts(config: RunConfig) -> list[tuple[str, str]]:
    from kifuse.registry import build_method, method_entry

    entry, training, adapter = method_entry(config.method.name), config.training, config.model.adapter
    settings = {**entry.preset, **config.method.settings}
    data_class = entry.data_class
    if config.method.settings:  # only then is the method imported, and torch with it
        data_class = build_method(config.method.name, config.method.settings).data_class
    facts = [
        (
            "model",
            f"{config.model.name} ({_kind_of_model(config.model.name)}), {adapter.summary}",
        ),
        ("method", f"{config.method.name} ({data_class})"),
        (
            "training",
            f"{training.epochs} epochs a task, {training.batch_size} examples a step, seed {training.seed}",
        ),
        ("output", f"{config.output} ({'exists' if config.output.exists() else 'new'})"),
    ]
    if settings:
        facts.insert(2, ("settings", ", ".join(f"{name}={value}" for name, value in settings.items())))
    return facts


def _kind_of_model(name: str) -> str:
    from kifuse.errors import did_you_mean
    from kifuse.models.catalog import BUNDLED, is_model_folder

    if name in BUNDLED:
        return "from 'kifuse ls models'"
    if is_model_folder(name):
        return "a folder"
    return "a hub id, not checked" + did_you_mean(name, BUNDLED)


def _tasks(config: RunConfig, stream: TaskStream) -> Table:
    from rich import box
    from rich.table import Table

    from kifuse.registry import method_entry
    from kifuse.streams import own_steps

    together = method_entry(config.method.name).data_class == "all data"
    training = config.training
    table = Table("", "task", "metric", box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    for heading in ("train", "dev", "test", "own steps"):
        table.add_column(heading, justify="right")
    for number, task in enumerate(stream.tasks, 1):
        steps = "" if together else str(own_steps(len(task.train), training.epochs, training.batch_size))
        sizes = [str(len(split)) for split in (task.train, task.dev, task.test)]
        table.add_row(str(number), task.name, task.metric, *sizes, steps)
    trained = [len(task.train) for task in stream.tasks]
    parts = [sum(trained)] if together else trained
    total = sum(own_steps(examples, training.epochs, training.batch_size) for examples in parts)
    footers = ["", "together", "", str(sum(trained))]
    footers += [
        str(sum(len(task.dev) for task in stream.tasks)),
        str(sum(len(task.test) for task in stream.tasks)),
    ]
    for column, footer in zip(table.columns, [*footers, str(total)], strict=True):
        column.footer = footer
    return table
