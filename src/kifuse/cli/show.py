"""``kifuse show``: show what a run would train, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kifuse.cli.user_errors import EPILOG_GAP

if TYPE_CHECKING:
    from rich.table import Table

    from kifuse.models.outline import Outline, UnitRow

show_app = typer.Typer(
    help="Show what a run would train, and what memory it takes.",
    epilog=EPILOG_GAP.join(
        [
            "[bold]Examples[/bold]",
            "kifuse show units --model smollm2-135m --level rank --rank 8",
            "kifuse show memory --model smollm2-135m",
        ]
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

MOST_TENSORS = 3
"""How many tensors of a unit are written out; further ones are only counted."""

MEANING = {
    "matrix": "each trainable tensor",
    "rank": "row i of a LoRA A with column i of its B; any other tensor whole",
    "element": "each number",
    "module": "all trainable tensors of one linear layer",
    "layer": "all trainable tensors of one transformer layer",
}


@show_app.command(
    epilog=EPILOG_GAP.join(
        [
            "[bold]Examples[/bold]",
            "kifuse show units --model smollm2-135m",
            "kifuse show units --model models/t5-large --level rank --rank 16 --target q,k,v,o",
            "kifuse show units --model models/t5-large --kind full --level layer",
        ]
    )
)
def units(
    model: Annotated[
        str,
        typer.Option(help="A name of 'kifuse ls models', a hub id, or a folder with a config.json."),
    ],
    level: Annotated[str, typer.Option(help="matrix, rank, element, module or layer.")] = "matrix",
    kind: Annotated[str, typer.Option(help="lora, rslora, dora, ia3, full or osf.")] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA kinds.")] = 8,
    target: Annotated[
        str | None,
        typer.Option(help="Layers to adapt, separated by commas, as in model.adapter.target_modules."),
    ] = None,
) -> None:
    """Show the skill units of a model's trained parameters: how many, of which sizes, in which layers.

    Needs no weights: a model's config.json is enough.
    """
    from kifuse.terminal.safe_console import SafeConsole

    adapter = chosen_adapter(kind, rank, target)
    known_value("--level", level, MEANING)

    from kifuse.cli.quiet import quieten
    from kifuse.models.outline import outline, unit_rows

    quieten()
    found = outline(model, adapter)
    console = SafeConsole(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width to fit
        console.width = 240
    what = kind_in_words(kind, rank)
    console.print(
        f"{model} ({found.family}), {what}: {len(found.tensors):,} trainable tensors with "
        f"{found.trainable:,} numbers; the model has {found.parameters:,}.",
        soft_wrap=True,
        markup=False,
    )
    console.print()
    console.print(f"Skill units of level {level}: {MEANING[level]}", soft_wrap=True, markup=False)
    console.print(_partition(unit_rows(found.tensors, level)))  # type: ignore[arg-type]
    console.print("All levels", markup=False)
    console.print(_levels(found, level))


def kind_in_words(kind: str, rank: int) -> str:
    """Return an adapter's kind in words, with its rank if it has one."""
    return kind if kind in ("ia3", "full", "osf") else f"{kind} of rank {rank}"


def chosen_adapter(kind: str, rank: int, target: str | None) -> object:
    """Return the adapter's configuration, with every setting checked as in a run's configuration."""
    from typing import get_args

    from kifuse.cli.user_errors import split_names
    from kifuse.config import AdapterConfig
    from kifuse.errors import ConfigError

    known_value("--kind", kind, get_args(AdapterConfig.model_fields["kind"].annotation))
    targets = None if target is None else list(split_names(target))
    if targets is not None and not targets:
        raise ConfigError(
            "--target: found no name, expected at least one layer, e.g. --target q_proj,v_proj."
        )
    return AdapterConfig.model_validate({"kind": kind, "rank": rank, "target_modules": targets})


def known_value(option: str, value: str, names: Iterable[str]) -> None:
    """Refuse a value that an option does not know.

    Raises:
        ConfigError: The value is not one of the names.
    """
    from kifuse.errors import ConfigError, did_you_mean

    known = list(names)
    if value not in known:
        raise ConfigError(
            f"{option}: found {value!r}, expected one of {', '.join(known)}.{did_you_mean(value, known)}"
        )


def _partition(rows: Sequence[UnitRow]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("in", footer="together")
    table.add_column("tensors")
    for heading in ("units each", "numbers in a unit", "units"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = [f"{row.units:,}", f"{row.size:,}", f"{row.total:,}"]
        table.add_row(Text(_place(row)), Text(_tensors(row)), *numbers)
    table.columns[3].footer = f"{sum(row.total * row.size for row in rows):,} in all"
    table.columns[4].footer = f"{sum(row.total for row in rows):,}"
    return table


def _place(row: UnitRow) -> str:
    """Say where the units are, such as `encoder layers 0-11`."""
    if not row.layers:
        return "outside of layers"
    side = next((part for part in row.stack.split(".") if part in ("encoder", "decoder")), "")
    word = "layer" if len(row.layers) == 1 else "layers"
    return f"{side} {word} {ranges(row.layers)}".strip()


def ranges(numbers: Sequence[int]) -> str:
    """Write whole numbers as ranges.

    Args:
        numbers: Ascending.

    Returns:
        E.g. ``0-3, 5, 7-8``.
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _tensors(row: UnitRow) -> str:
    """Write the tensors of a unit with their shapes; the common beginning of their names is written once."""
    parts = [name.split(".") for name, _ in row.tensors]
    shared = [len(set(each)) == 1 for each in zip(*parts, strict=False)] if len(parts) > 1 else []
    start = parts[0][: [*shared, False].index(False)]
    shown = [
        f"{'.'.join(part[len(start) :])} {'x'.join(map(str, shape)) or 'scalar'}"
        for part, (_, shape) in zip(parts[:MOST_TENSORS], row.tensors, strict=False)
    ]
    more = len(row.tensors) - MOST_TENSORS
    text = " + ".join(shown) + (f" + {more} more" if more > 0 else "")
    return f"{'.'.join(start)}: {text}" if start else text


def _levels(found: Outline, chosen: str) -> Table:
    from rich import box
    from rich.table import Table

    from kifuse.models.outline import level_sizes

    table = Table("level", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("units", "smallest", "median", "largest"):
        table.add_column(heading, justify="right")
    table.add_column("a unit is")
    for level, meaning in MEANING.items():
        sizes = level_sizes(found.tensors, level)  # type: ignore[arg-type]
        numbers = [f"{n:,}" for n in (sizes.count, sizes.smallest, sizes.median, sizes.largest)]
        table.add_row(level, *numbers, meaning, style="bold" if level == chosen else None)
    return table
