"""Measure rows of the bench regime: Standard CL on SmolLM2-135M, small enough for two CPU cores.

    python benchmarks/bench_regime.py --data FOLDER [--rows sequential,replay] [--seeds 0,1] [--order 1]

Runs every row of the table that has no record yet, one at a time. A run that was stopped goes on. The records
are kept in benchmarks/results/bench-regime/, or in the folder that --results names. The table of all records
is printed at the end. REPRODUCIBILITY.md says what the regime is and why. The protocol of
docs/measured/winning.md uses --test-examples 400 --results benchmarks/results/winning.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from kifuse.config import RunConfig
from kifuse.io.sealed_json import read_sealed
from kifuse.record.run_record import RunRecord
from kifuse.running.runner import run
from kifuse.terminal.progress import ConsoleProgress

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "bench-regime"

REGIME: dict[str, Any] = {
    "model": {"name": "smollm2-135m", "adapter": {"rank": 8, "alpha": 32, "dropout": 0.0}},
    "data": {
        "benchmark": "standard-cl",
        "order": 1,
        "train_examples": 150,
        "test_examples": 200,
        "max_input": 100,
        "max_target": 16,
    },
    "memory": {"per_task": 20},
    "training": {"learning_rate": 1e-3, "epochs": 4, "batch_size": 8, "scheduler": "linear"},
    "evaluation": {"max_new_tokens": 16},
}

PUBLISHED = {"fusion": "published", "score": "uncertainty", "alpha_inner": 0.85, "alpha_outer": 0.15}

CANDIDATE = "benchmarks.candidates.old_questions:OldQuestions"

ROWS: dict[str, dict[str, Any]] = {
    "sequential": {"name": "sequential"},
    "joint": {"name": "joint"},
    "replay": {"name": "replay"},
    "der++": {"name": "der++"},
    "der": {"name": "der++", "label_weight": 0.0},
    "der++-half": {"name": "der++", "strength": 0.5},
    "der++-double": {"name": "der++", "strength": 2.0},
    "old-questions": {"name": CANDIDATE},
    "old-questions-m": {"name": CANDIDATE, "replay": True},
    "old-questions-m-half": {"name": CANDIDATE, "replay": True, "strength": 0.5},
    "old-questions-m-quarter": {"name": CANDIDATE, "replay": True, "strength": 0.25},
    "old-questions-m-plain": {"name": CANDIDATE, "replay": True, "kept_strength": 0.0},
    "generated-replay": {"name": "generated-replay"},
    "lwf": {"name": "lwf"},
    "kif": {"name": "kif"},
    "kiflora": {"name": "kiflora"},
    "rkif-paper": {"name": "recurrent-kif"},
    "rkif-paper-m2": {"name": "recurrent-kif", "outer_steps": 2},
    "rkif-published": {"name": "recurrent-kif", **PUBLISHED, "outer_steps": 4},
    "rkif-paper-m4": {"name": "recurrent-kif", "outer_steps": 4},
    "rkif-paper-m4-reset": {"name": "recurrent-kif", "outer_steps": 4, "moments": "reset"},
    "rkif-paper-m4-own": {"name": "recurrent-kif", "outer_steps": 4, "outer_optimizer": "own"},
    "rkif-published-own": {
        "name": "recurrent-kif",
        **PUBLISHED,
        "outer_steps": 4,
        "outer_optimizer": "own",
    },
    "rkif-published-m1": {"name": "recurrent-kif", **PUBLISHED, "outer_steps": 1},
}
"""Rows of the table: a label, and a method with its settings. 'm4' means four memory steps in each round.

With two memory steps in each round Recurrent-KIF replays exactly as many examples as replay does: 480.
"""

ABLATIONS: dict[str, dict[str, Any]] = {
    "static-outer": {"outer_importance": "static"},
    "no-masks": {"masks": "none"},
    "global-sum": {"masks": "global"},
    "soft-masks": {"masks": "soft"},
    "no-share": {"share": False},
    "gradient": {"importance": "gradient"},
    "no-smoothing": {"smoothing": False},
    "one-fusion": {"rounds": "one"},
    "share-90": {"threshold": "share"},
    "by-module": {"scope": "module"},
    "by-layer": {"scope": "layer"},
    "reset": {"moments": "reset"},
    "outer-1e-3": {"outer_lr": 1e-3},
}
"""Recurrent-KIF with one thing changed: its Table 2, our adaptive threshold and scopes, two open defaults.

`reset` starts the optimizer's moments anew at each fusion; `outer-1e-3` keeps the rate of memory steps fixed.
"""

OF_KIFLORA: dict[str, dict[str, Any]] = {
    "first-order": {"order": "first"},
    "gradient": {"order": "gradient"},
    "magnitude": {"order": "magnitude"},
    "no-smoothing": {"smoothing": False, "uncertainty": False},
    "no-uncertainty": {"uncertainty": False},
    "per-example": {"fisher": "per_example"},
    "mean-score": {"unit_score": "mean"},
    "matrix-units": {"units": "matrix"},
    "static": {"fusion": "static"},
    "average": {"fusion": "average"},
    "ema": {"fusion": "ema"},
}
"""KIFLoRA with one thing changed: the rows of KIF's Tables IV and V, and rows of our own."""

RIVALS = (
    "inclora",
    "o-lora",
    "n-lora",
    "ella",
    "ewc",
    "online-ewc",
    "ogd",
    "migu",
    "slao",
    "forever",
    "aimmerging",
    "vr-mcl",
    "weight-ensemble",
    "ema",
    "osf",
)
"""The other methods, with their defaults."""

ADAPTERS: dict[str, dict[str, Any]] = {"osf": {"kind": "osf"}, "osf-own-rate": {"kind": "osf"}}
"""The adapters of rows that do not train LoRA: OSF trains singular directions of the same projections."""

RATES = {"osf-own-rate": 5e-5, "l2p": 0.01, "lfpt5": 0.01, "progprompt": 0.01, "epi": 0.03, "mocl": 0.03}
"""Learning rates of rows that do not use the regime's rate, which suits LoRA: that of OSF's paper, and those
that prompt_rates.py chose."""

OF_THE_TABLES: dict[str, dict[str, Any]] = {
    "l2p": {"name": "l2p"},
    "lfpt5": {"name": "lfpt5", "length": 50},
    "progprompt": {"name": "progprompt"},
    "epi": {"name": "epi"},
    "mocl": {"name": "mocl", "length": 16},
    "mocl-lora": {"name": "mocl", "module": "lora"},
    "moe-lora": {"name": "moe-lora"},
    "sapt": {"name": "sapt"},
    "sapt-light": {"name": "sapt", "reflection": 0.1},
}
"""Systems of the papers' tables that came last. Prompts are as long as suits inputs of 100 tokens."""

WRITERS = ("lfpt5", "generated-replay")
WRITTEN = {"max_target": 128}
"""Rows whose model writes inputs, and the room that a lesson takes: an input, its separator and its label."""

PAPERS_SHARE = 3
"""How many of a task's 150 examples are kept if the memory is 2%; the papers keep 20 of 1,000."""

OF_PAPERS_SHARE: dict[str, dict[str, Any]] = {
    "replay-2pct": {"name": "replay"},
    "rkif-2pct": {"name": "recurrent-kif"},
    "rkif-2pct-equal": {"name": "recurrent-kif", "inner_steps": 20},
    "rkif-2pct-m4": {"name": "recurrent-kif", "outer_steps": 4},
}
"""Rows with the papers' share. With 20 steps in a round Recurrent-KIF replays about as much as replay."""

ROWS |= OF_PAPERS_SHARE | OF_THE_TABLES
ROWS |= {name: {"name": name} for name in RIVALS}
ROWS["osf-own-rate"] = {"name": "osf"}
ROWS["vr-mcl-vision"] = {"name": "vr-mcl", "alpha": 0.1, "alpha_lr": 0.25}
ROWS["vr-mcl-fast-rates"] = {"name": "vr-mcl", "alpha_lr": 0.0025}
ROWS |= {f"rkif-{label}": {"name": "recurrent-kif", **change} for label, change in ABLATIONS.items()}
ROWS |= {f"kiflora-{label}": {"name": "kiflora", **change} for label, change in OF_KIFLORA.items()}


def config(
    row: str,
    seed: int,
    data: Path,
    folder: Path,
    threads: int | None,
    order: int = 1,
    test_examples: int | None = None,
) -> RunConfig:
    """Return the regime's configuration with one row's method."""
    sizes = {"test_examples": test_examples} if test_examples else {}
    sizes |= WRITTEN if row in WRITERS else {}
    model, training = REGIME["model"], REGIME["training"]
    rate = RATES.get(row, training["learning_rate"])
    return RunConfig.model_validate(
        {
            **REGIME,
            "model": {**model, "adapter": ADAPTERS.get(row, model["adapter"])},
            "data": {**REGIME["data"], **sizes, "path": data, "order": order},
            "training": {**training, "learning_rate": rate, "seed": seed, "threads": threads},
            "memory": {"per_task": PAPERS_SHARE} if row in OF_PAPERS_SHARE else REGIME["memory"],
            "method": ROWS[row],
            "output": folder,
        }
    )


def keep_record(
    settings: RunConfig, kept: Path, label: str, console: Console, reuse: Sequence[Path] = ()
) -> None:
    """Run a configuration and keep its record, unless it is kept already; a run that was stopped goes on."""
    if kept.is_file():
        return
    progress = ConsoleProgress(console, prefix=f"{label}: ")
    try:
        run(settings, progress=progress, reuse=reuse)
    finally:
        progress.finish()
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(settings.output / "record.json", kept)


def measure(row: str, seed: int, arguments: argparse.Namespace, console: Console) -> None:
    """Run one row with one seed, unless its record exists."""
    order = arguments.order
    place = "" if order == 1 else f".order{order}"
    kept = arguments.results / f"{row}{place}.seed{seed}.json"
    folder = arguments.runs / f"{row}{place}-seed{seed}"
    reuse = [other for other in sorted(arguments.runs.glob("*-seed*")) if other != folder]
    settings = config(row, seed, arguments.data, folder, arguments.threads, order, arguments.test_examples)
    keep_record(settings, kept, f"{row} seed {seed}", console, reuse)


def show(console: Console, results: Path) -> None:
    """Print one line for each record."""
    console.print(
        f"{'row':24}{'seed':>5}{'AP':>7}{'BWT':>7}{'FWT':>7}{'replayed':>10}{'extra':>7}{'train s':>9}"
    )
    for file in sorted(results.glob("*.json")):
        record = RunRecord.model_validate(read_sealed(file)[0])
        row, seed = file.stem.split(".seed")
        numbers = {k: v.value for k, v in record.summary().items()}
        shown = "".join(
            f"{'-' if numbers[k] is None else format(numbers[k], '.1f'):>7}" for k in ("AP", "BWT", "FWT")
        )
        extra = sum(task.extra_forward_backward or 0 for task in record.tasks)
        console.print(
            f"{row:24}{seed:>5}{shown}{record.replayed():>10}{extra:>7}{record.train_seconds():>9.0f}",
            highlight=False,
        )


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the long_sequence data")
    parser.add_argument("--rows", default=",".join(ROWS), help="labels with commas")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--order", type=int, default=1, help="order of Standard CL: 1, 2 or 3")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--test-examples", type=int, default=None, help="of each task; the regime's are 200")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-regime"))
    arguments = parser.parse_args()
    console = Console(width=160)
    for seed in map(int, arguments.seeds.split(",")):
        for row in filter(None, arguments.rows.split(",")):
            if row not in ROWS:
                parser.error(f"--rows: {row!r} is none of {', '.join(ROWS)}")
            measure(row, seed, arguments, console)
    show(console, arguments.results)


if __name__ == "__main__":
    main()
