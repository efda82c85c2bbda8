"""The main job in one call: a real language model learns five jobs in a row, unprotected and protected."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from kifuse.config import RunConfig
from kifuse.errors import RunError
from kifuse.reporting.record import RunRecord

SETTINGS: dict[str, Any] = {
    "model": {"name": "smollm2-135m", "adapter": {"rank": 8, "alpha": 32, "dropout": 0.0}},
    "data": {"benchmark": "support-desk", "max_input": 96, "max_target": 16},
    "memory": {"per_task": 20},
    "training": {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "scheduler": "linear"},
}
"""What the demo runs with; the rest is the papers' defaults."""

METHOD_SETTINGS: dict[str, dict[str, Any]] = {"recurrent-kif": {"outer_steps": 2}}
"""Settings of single methods in the demo."""


def demo_config(method: str, seed: int, output: Path) -> RunConfig:
    """The demo's configuration for one method."""
    training = {**SETTINGS["training"], "seed": seed}
    chosen = {"name": method, **METHOD_SETTINGS.get(method, {})}
    return RunConfig.model_validate({**SETTINGS, "training": training, "method": chosen, "output": output})


def run_demo(output: Path | None, seed: int, methods: tuple[str, ...], console: Console) -> int:
    """Run the demo and print what was kept and what was lost.

    Args:
        output: Folder of the runs; None for `runs/demo-seed<seed>` under the current folder.
        seed: Of everything random.
        methods: Names of methods, the unprotected one first.
        console: Where to.

    Returns:
        0.
    """
    from kifuse.cli.live import ConsoleProgress
    from kifuse.reporting.changes import changes
    from kifuse.reporting.table import comparison_table
    from kifuse.training.runner import run

    folder = output or Path("runs") / f"demo-seed{seed}"
    started = time.monotonic()
    console.print(
        "A small language model (SmolLM2, 135M parameters) learns five jobs of a support desk, one after the "
        f"other, {len(methods)} times: {', '.join(methods)}.\n",
        highlight=False,
    )
    records: list[RunRecord] = []
    folders: list[Path] = []
    for position, method in enumerate(methods):
        target = folder / method
        progress = ConsoleProgress(console, prefix=f"({position + 1}/{len(methods)}) ")
        records.append(
            run(demo_config(method, seed, target), progress=progress, reuse=folders[0] if folders else None)
        )
        folders.append(target)
    console.print()
    console.print(comparison_table(records))
    _ = changes, RunError
    _where(console, folders, records, time.monotonic() - started)
    return 0


def _where(console: Console, folders: list[Path], records: list[RunRecord], seconds: float) -> None:
    console.print(f"\nDone in {int(seconds) // 60}:{int(seconds) % 60:02d} minutes.", highlight=False)
    for record, target in zip(records, folders, strict=True):
        adapter = target / "adapters" / f"after-{len(record.tasks)}"
        console.print(
            f"{record.method.name}: run {target}, adapter {adapter}", soft_wrap=True, highlight=False
        )
