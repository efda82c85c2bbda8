"""Measure what the chat template changes in the demo and in one bench row: the same runs with and without it.

    python benchmarks/rendering.py --data FOLDER [--only bench-row]

`bench-row` is the row `sequential` of bench_regime.py, Standard CL order 1, seed 0 (FOLDER is its data). The
demo's two methods run with seed 0. Each runs once with plain prompts and once with the model's chat template.
A run that was stopped goes on. The records are kept in benchmarks/results/rendering/, and all of them are
printed at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench_regime import config, keep_record
from rich.console import Console

from kifuse.config import RunConfig
from kifuse.demo import demo_config
from kifuse.io.sealed_json import read_sealed
from kifuse.record.run_record import RunRecord

RESULTS = Path(__file__).parent / "results" / "rendering"
RUNS = ("bench-row", "demo-sequential", "demo-recurrent-kif")
FORMS = {"plain": False, "chat-template": True}


def settings(name: str, chat_template: bool, data: Path, folder: Path) -> RunConfig:
    """Return the configuration of one run with one form of prompts, on one thread."""
    if name == "bench-row":
        chosen = config("sequential", 0, data, folder, threads=1)
    else:
        chosen = demo_config(name.removeprefix("demo-"), 0, folder)
    content = chosen.model_dump()
    content["data"]["chat_template"] = chat_template
    content["training"]["threads"] = 1
    return RunConfig.model_validate(content)


def measure(name: str, form: str, arguments: argparse.Namespace, console: Console) -> None:
    """Run it, unless its record exists."""
    chosen = settings(name, FORMS[form], arguments.data, arguments.runs / f"{name}-{form}")
    keep_record(chosen, RESULTS / f"{name}.{form}.json", f"{name} {form}", console)


def show(console: Console) -> None:
    """Print one line for each record: its measures, and each task's score at the end."""
    for file in sorted(RESULTS.glob("*.json")):
        record = RunRecord.model_validate(read_sealed(file)[0])
        numbers = {key: measured.value for key, measured in record.summary().items()}
        measures = "  ".join(
            f"{key} {value:.1f}" for key in ("AP", "BWT", "FWT") if (value := numbers[key]) is not None
        )
        console.print(f"{file.stem:36}{measures}", highlight=False)


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the long_sequence data")
    parser.add_argument("--only", choices=RUNS, help="one of the three")
    parser.add_argument("--form", choices=FORMS, help="one of the two renderings")
    parser.add_argument("--runs", type=Path, default=Path("runs/rendering"))
    arguments = parser.parse_args()
    console = Console(width=160)
    for name in [arguments.only] if arguments.only else RUNS:
        for form in [arguments.form] if arguments.form else FORMS:
            measure(name, form, arguments, console)
    show(console)


if __name__ == "__main__":
    main()
