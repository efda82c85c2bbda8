"""Choose the learning rates of prompts and prefixes in the bench regime, on validation examples.

    python benchmarks/prompt_rates.py --data FOLDER [--rows l2p,epi] [--rates 0.01,0.03]

The regime's rate, 1e-3, suits LoRA and hardly moves a prompt. Each row learns only the first task of order 3,
with seed 10, which no row of the results has, and is scored on 100 validation examples of that task. No test
example is looked at. A row that has a record is not run again. The table of all rows is printed at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench_regime import config, keep_record
from rich.console import Console

from kifuse.config import RunConfig
from kifuse.io.sealed_json import read_sealed
from kifuse.record.run_record import RunRecord

RESULTS = Path(__file__).parent / "results" / "prompt-rates"
ROWS, RATES = ("l2p", "lfpt5", "progprompt", "epi", "mocl"), (3e-3, 1e-2, 3e-2)
TASK, SEED, EXAMPLES = "yahoo", 10, 100


def one_task(row: str, rate: float, data: Path, folder: Path, threads: int | None) -> RunConfig:
    """The row's configuration in the regime, with its rate, on the first task alone."""
    settings = config(row, SEED, data, folder, threads).model_dump(exclude_unset=True)
    settings["data"] |= {"order": [TASK], "scored_on": "dev", "dev_examples": EXAMPLES}
    settings["training"]["learning_rate"] = rate
    return RunConfig.model_validate(settings)


def measure(row: str, rate: float, arguments: argparse.Namespace, console: Console) -> None:
    """Run a row with a rate, unless its record exists."""
    settings = one_task(row, rate, arguments.data, arguments.runs / f"{row}-{rate:g}", arguments.threads)
    keep_record(settings, RESULTS / f"{row}.rate{rate:g}.json", f"{row} rate {rate:g}", console)


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the long_sequence data")
    parser.add_argument("--rows", default=",".join(ROWS), help="labels with commas")
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="rates with commas")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/prompt-rates"))
    arguments = parser.parse_args()
    console = Console(width=160)
    for row in arguments.rows.split(","):
        for rate in map(float, arguments.rates.split(",")):
            measure(row, rate, arguments, console)
    for file in sorted(RESULTS.glob("*.json")):
        row, rate = file.stem.split(".rate")
        record = RunRecord.model_validate(read_sealed(file)[0])
        score = record.summary()["AP"].value
        shown = "-" if score is None else format(score, ".1f")
        console.print(f"{row:14}{rate:>8}{shown:>8}", highlight=False)


if __name__ == "__main__":
    main()
