"""``kifuse fuse``: fuse two finished adapters, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

USED_BY: dict[str, tuple[str, ...]] = {
    "static": ("importance", "units", "unit_score", "gamma", "quantile"),
    "adaptive": ("importance", "units", "unit_score", "tau"),
    "average": ("average",),
}
"""The options that each way of fusing uses."""


def fuse(
    previous: Annotated[Path, typer.Option(help="Folder of the adapter before the task.", metavar="ADAPTER")],
    current: Annotated[Path, typer.Option(help="Folder of the adapter after the task.", metavar="ADAPTER")],
    output: Annotated[Path, typer.Option(help="Folder for the fused adapter; new or empty.")],
    importance: Annotated[
        Path | None,
        typer.Option(
            help="File of kifuse.save_importance, or state/after-K/method.safetensors of a run.",
            metavar="FILE",
        ),
    ] = None,
    fusion: Annotated[str, typer.Option(help="static, adaptive or average.")] = "static",
    units: Annotated[
        str | None,
        typer.Option(help="matrix, rank, element, module or layer. Default: the level of the importance."),
    ] = None,
    unit_score: Annotated[
        str | None, typer.Option(help="How a LoRA rank is scored: outer (default) or mean.")
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(help="Static: weight of the previous adapter where both need a unit. Default: 0.7."),
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(help="Static: units above this quantile are needed. Default: 0.8, the top 20%."),
    ] = None,
    tau: Annotated[float | None, typer.Option(help="Adaptive: temperature. Default: 0.15.")] = None,
    average: Annotated[
        float | None, typer.Option(help="Average: weight of the previous adapter everywhere. Default: 0.5.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter that is in --output.")] = False,
) -> None:
    """Fuse the adapter before a task with the one after it, unit by unit, as KIF does. Trains nothing.

    The result is a folder like the two: a standard PEFT adapter, or weights of full fine-tuning.
    """
    given = {
        "importance": importance,
        "units": units,
        "unit_score": unit_score,
        "gamma": gamma,
        "quantile": quantile,
        "tau": tau,
        "average": average,
    }
    settings = _settings(fusion, {name: value for name, value in given.items() if value is not None})

    from kifuse.cli.quiet import quieten
    from kifuse.merging import fuse_adapters

    quieten()
    fused = fuse_adapters(previous, current, output, force=force, fusion=fusion, **settings)
    numbers = sum(tensor.numel() for tensor in fused.tensors.values())
    typer.echo(f"{len(fused.tensors)} tensors with {numbers:,} numbers fused ({fusion}), written to {output}")


def _settings(fusion: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, after checking that the way of fusing uses all of them."""
    from kifuse.errors import ConfigError, did_you_mean

    if fusion not in USED_BY:
        raise ConfigError(
            f"--fusion: found {fusion!r}, expected one of {', '.join(USED_BY)}."
            f"{did_you_mean(fusion, USED_BY)}"
        )
    for name in given:
        if name not in USED_BY[fusion]:
            users = " or ".join(each for each, names in USED_BY.items() if name in names)
            raise ConfigError(
                f"--{name.replace('_', '-')}: has no effect with --fusion {fusion}, expected it with {users} "
                "only. Leave it out."
            )
    if fusion != "average" and "importance" not in given:
        raise ConfigError(
            f"--importance: found nothing, expected a file with the importance that --fusion {fusion} uses. "
            "Only --fusion average needs none."
        )
    return given
