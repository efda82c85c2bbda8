"""``kifuse show memory``: show how much memory training needs on a device, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kifuse.cli.show import chosen_adapter, kind_in_words, known_value, show_app
from kifuse.cli.user_errors import EPILOG_GAP

if TYPE_CHECKING:
    from kifuse.models.memory import MemoryNeeds

DEVICES = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
"""Common memory sizes of accelerators, in GiB."""

ROOM = 0.9
"""The share of a device's memory that training can use; driver, libraries and gaps take the rest."""


@show_app.command(
    epilog=EPILOG_GAP.join(
        [
            "[bold]Examples[/bold]",
            "kifuse show memory --model smollm2-135m",
            "kifuse show memory --model models/llama-2-7b --rows 4 --tokens 1024 --quantization 4bit",
        ]
    )
)
def memory(
    model: Annotated[
        str,
        typer.Option(help="A name of 'kifuse ls models', a hub id, or a folder with a config.json."),
    ],
    rows: Annotated[int, typer.Option(min=1, help="Examples that a device computes at once.")] = 8,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each example, with padding.")] = 512,
    target_tokens: Annotated[int, typer.Option(min=1, help="Target tokens of each example.")] = 16,
    kind: Annotated[str, typer.Option(help="lora, rslora, dora, ia3 or full.")] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA kinds.")] = 8,
    target: Annotated[
        str | None,
        typer.Option(help="Layers to adapt, separated by commas, as in model.adapter.target_modules."),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16, as in model.precision.")] = "bf16",
    quantization: Annotated[str, typer.Option(help="none, 8bit or 4bit, as in model.quantization.")] = "none",
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute the layers again in the backward pass, as with training.gradient_checkpointing.",
        ),
    ] = False,
) -> None:
    """Show how much memory training needs on each device: weights, trained parameters, activations.

    Needs no weights: a model's config.json is enough. Several devices train with plain data parallelism, so
    each of them holds the whole model.
    """
    from typing import get_args

    from kifuse.models.loading import Precision, Quantization
    from kifuse.terminal.safe_console import SafeConsole

    known_value("--kind", kind, ("lora", "rslora", "dora", "ia3", "full"))
    known_value("--precision", precision, get_args(Precision))
    known_value("--quantization", quantization, get_args(Quantization))
    if kind == "full" and quantization != "none":
        from kifuse.errors import ConfigError

        raise ConfigError("--quantization: quantised weights stay frozen; use an adapter, e.g. --kind lora.")
    adapter = chosen_adapter(kind, rank, target)

    from kifuse.cli.quiet import quieten
    from kifuse.models.memory import memory_needs

    quieten()
    needs = memory_needs(
        model,
        adapter,
        rows=rows,
        tokens=tokens,
        target=target_tokens,
        precision=precision,  # type: ignore[arg-type]
        quantization=quantization,  # type: ignore[arg-type]
        checkpointing=checkpointing,
    )
    console = SafeConsole(highlight=False)
    again = ", layers computed again" if checkpointing else ""
    console.print(
        f"{model}, {kind_in_words(kind, rank)}: {needs.trainable:,} trained numbers; "
        f"{rows} examples of {tokens} tokens at once{again}.",
        soft_wrap=True,
        markup=False,
    )
    console.print(_table(needs, precision, quantization))
    console.print(_advice(needs), soft_wrap=True, markup=False)


def _table(needs: MemoryNeeds, precision: str, quantization: str) -> object:
    from rich import box
    from rich.table import Table

    from kifuse.models.memory import COPIES

    chosen = precision if quantization == "none" else quantization
    kept = "fp32" if (precision, quantization) == ("fp32", "none") else f"{chosen}, embeddings in fp32"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("memory of a device")
    table.add_column("GiB", justify="right")
    for text, size in (
        (f"frozen weights ({kept})", needs.frozen),
        ("what is trained: values, gradients, AdamW's moments", needs.trained),
        ("activations, kept for the backward pass", needs.activations),
    ):
        table.add_row(text, _gib(size))
    table.add_row("together", _gib(needs.total()), style="bold")
    for method, copies in COPIES.items():
        table.add_row(
            f"together with {method}'s {copies} copies of what is trained",
            _gib(needs.total(copies)),
        )
    return table


def _advice(needs: MemoryNeeds) -> str:
    from kifuse.models.memory import COPIES

    most = needs.total(max(COPIES.values()))
    fits = next((size for size in DEVICES if most <= ROOM * size * 2**30), None)
    counted = f"Counting on {ROOM:.0%} of a device's memory, "
    if fits is not None:
        return f"{counted}one device of {fits} GiB is enough; more devices share the examples."
    return (
        f"{counted}no device of up to {DEVICES[-1]} GiB is enough: try --quantization 4bit, "
        "--gradient-checkpointing or fewer --rows."
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"
