"""Run the comparisons and show what changed since the last committed figures.

    python -m benchmarks.speed [--quick] [--only PART,PART]    parts: identification, selection, training,
                                                               evaluation, products, growth, start
    python -m benchmarks.speed --only published_tasks --data FOLDER [--precision fp32] [--rows 1]

Every figure is a ratio: the alternative's time divided by kifuse's time, above 1 if kifuse is faster. Both
are measured in turn in the same process, or for answers in two processes in turn. The figures are written to
benchmarks/results/speed.json. The printed table shows the last ones beside the new ones.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.speed import PRECISIONS
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parents[1] / "results" / "speed.json"
COMPARISONS = ("identification", "selection", "training", "evaluation", "products")
WITH_DATA = "published_tasks"
"""The comparison that needs the papers' data, which kifuse may not include."""
ROWS = (8, 1)
GROWTH = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


def main() -> None:
    """Measure what was asked for, write the figures and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions; the results are not kept")
    parser.add_argument("--only", default=",".join((*COMPARISONS, "growth", "start")))
    parser.add_argument("--data", type=Path, help=f"folder with the long_sequence data, for {WITH_DATA}")
    parser.add_argument("--precision", default="bf16", choices=PRECISIONS, help=f"for {WITH_DATA}")
    parser.add_argument("--rows", default=8, type=int, choices=ROWS, help="of its plain batches")
    arguments = parser.parse_args()
    console = Console(width=150)
    chosen = arguments.only.split(",")
    before: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    found = dict(before)
    for part in COMPARISONS:
        if part in chosen:
            console.print(f"measuring {part} ...")
            compare: Callable[[bool], list[Any]] = import_module(f"benchmarks.speed.{part}").compare
            found[part] = [one.json() for one in compare(arguments.quick)]
    if WITH_DATA in chosen:
        if arguments.data is None:
            parser.error(f"--only {WITH_DATA} needs --data, the folder with the long_sequence data")
        console.print(f"measuring {WITH_DATA} ...")
        published = import_module(f"benchmarks.speed.{WITH_DATA}").compare
        precision, rows = arguments.precision, arguments.rows
        ratios = published(arguments.quick, arguments.data, precision, rows, RESULTS.parent)
        found[f"{WITH_DATA}_{precision}_{rows}"] = [one.json() for one in ratios]
    if "growth" in chosen:
        console.print("measuring growth ...")
        growth = import_module("benchmarks.speed.selection").growth
        found["growth"] = growth(GROWTH[:2] if arguments.quick else GROWTH)
    if "start" in chosen:
        console.print("measuring start ...")
        found["start"] = import_module("benchmarks.speed.start").measure(arguments.quick)
    found["machine"] = {"cpus": os.cpu_count()}
    show(console, found, before)
    if not arguments.quick:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def show(console: Console, found: dict[str, Any], before: dict[str, Any]) -> None:
    """Print the table of ratios, then the absolute figures."""
    table = Table("what", "ours", "against", "ratio", "10-90%", "ours ms", "last", "note")
    with_data = [f"{WITH_DATA}_{precision}_{rows}" for precision in PRECISIONS for rows in ROWS]
    for part in (*COMPARISONS, *with_data):
        last = {one["name"]: one["ratio"] for one in before.get(part, [])}
        for one in found.get(part, []):
            known = last.get(one["name"])
            table.add_row(
                one["name"],
                one["ours"],
                one["theirs"],
                f"{one['ratio']:.3g}",
                f"{one['low']:.3g}-{one['high']:.3g}",
                f"{one['ours_ms']:.3g}",
                "" if known is None else f"{known:.3g}",
                one["note"],
            )
    console.print(table)
    for one in found.get("growth", []):
        console.print(
            f"threshold among {one['scalars']:,}: {one['seconds']:.3f} s, {one['extra_mib']:.0f} MiB more"
        )
    for one in found.get("start", []):
        console.print(f"{one['what']}: {one['seconds']:.3f} s")


if __name__ == "__main__":
    main()
