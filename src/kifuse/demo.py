"""The demo: a real language model learns five jobs in a row, without and with protection from forgetting."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from kifuse.config import RunConfig
from kifuse.record.run_record import RunRecord
from kifuse.reporting.changes import Change, changes
from kifuse.reporting.terminal_tables import comparison_table

SETTINGS: dict[str, Any] = {
    "model": {"name": "smollm2-135m", "adapter": {"rank": 8, "alpha": 32, "dropout": 0.0}},
    "data": {
        "benchmark": "support-desk",
        "train_examples": 160,
        "test_examples": 60,
        "max_input": 96,
        "max_target": 16,
    },
    "memory": {"per_task": 32},
    "training": {
        "learning_rate": 2e-3,
        "epochs": 2,
        "batch_size": 4,
        "scheduler": "linear",
        "warmup_steps": 5,
    },
    "evaluation": {"full_matrix": True},
}
"""The demo's settings; everything else has the papers' defaults.

The demo has minutes, not hours: two passes instead of ten, and small batches at a higher rate. It has no
dropout, because dropout's random numbers take time on a CPU. The memory keeps 32 of a task's 160 examples:
the papers' 2% would be 3, fewer than a job has labels.
"""

METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "recurrent-kif": {"outer_steps": 5, "outer_optimizer": "own"},
}
"""Settings of single methods in the demo: five memory steps in each round of eight, with separate moments."""

SHOWN = 3
"""Number of examples shown of each kind."""


def demo_config(method: str, seed: int, output: Path) -> RunConfig:
    """Return the demo's configuration for one method."""
    training = {**SETTINGS["training"], "seed": seed}
    chosen = {"name": method, **METHOD_SETTINGS.get(method, {})}
    return RunConfig.model_validate({**SETTINGS, "training": training, "method": chosen, "output": output})


def run_demo(output: Path | None, seed: int, methods: tuple[str, ...], console: Console) -> int:
    """Run the demo and print what was kept and what was lost.

    Args:
        output: Folder of the runs; None takes `runs/demo-seed<seed>` in the current folder.
        seed: Seed of everything random.
        methods: Names of methods, with the unprotected one first.
        console: The console to print to.

    Returns:
        0.
    """
    from kifuse.page_refresh import run
    from kifuse.terminal.progress import ConsoleProgress

    folder = output or Path("runs") / f"demo-seed{seed}"
    started = time.monotonic()
    console.print(
        "A small language model (SmolLM2, 135M parameters) learns five jobs of a support desk one after "
        f"another, {len(methods)} times: {', '.join(methods)}.",
        highlight=False,
    )
    records: list[RunRecord] = []
    folders: list[Path] = []
    for position, method in enumerate(methods):
        target = folder / method
        progress = ConsoleProgress(
            console,
            prefix=f"({position + 1}/{len(methods)}) ",
            runs_left=len(methods) - position - 1,
        )
        try:
            records.append(
                run(
                    demo_config(method, seed, target),
                    progress=progress,
                    reuse=folders[0] if folders else None,
                )
            )
        finally:
            progress.finish()
        folders.append(target)
    console.print()
    console.print(comparison_table(records))
    _examples(console, folders, [record.method.name for record in records])
    _where(console, folders, records, time.monotonic() - started)
    return 0


def _examples(console: Console, folders: list[Path], names: list[str]) -> None:
    """Print a few messages that the first method once answered correctly: lost at the end, and kept."""
    found = changes(folders, SHOWN)
    for title, count, chosen in (
        (f"Lost by {names[0]}", found.lost_count, found.lost),
        (f"Kept by {names[0]}", found.kept_count, found.kept),
    ):
        console.print(f"\n{title}: {count} answers that were right when their job was learned", style="bold")
        for change in chosen:
            console.print(_example(change, names), soft_wrap=False)
    for note in found.notes:
        console.print(note, markup=False, highlight=False)


def _example(change: Change, names: list[str]) -> Text:
    """Show a message with its right answer and each method's final answer; it is never read as markup."""
    message = change.input.split("\n", 1)[-1].removesuffix("\nAnswer:").strip()
    text = Text(f"  {change.task}: {message}\n", style="dim")
    text.append(f"    right: {change.references[0]}", style="not dim")
    for name, answer in zip(names, change.answers, strict=True):
        if answer is not None:
            text.append(f"   {name}: ", style="not dim")
            text.append(
                answer.final or "(nothing)", style="not dim green" if answer.right_at_end else "not dim red"
            )
    return text


def _where(console: Console, folders: list[Path], records: list[RunRecord], seconds: float) -> None:
    console.print(f"\nDone in {int(seconds) // 60}:{int(seconds) % 60:02d} minutes.", highlight=False)
    for record, target in zip(records, folders, strict=True):
        adapter = target / "adapters" / f"after-{len(record.tasks)}"
        line = f"{record.method.name}: run in {target}, adapter (standard PEFT) in {adapter}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
