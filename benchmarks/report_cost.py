"""Measure what the pictures of a run cost: recording while it trains, and drawing the page afterwards.

    python benchmarks/report_cost.py [--threads 1] [--steps 20] [--pages 5] [--run RUN]

SmolLM2-135M learns the five jobs of the support desk (batches of 8, inputs cut to 96 tokens) with KIFLoRA and
with Recurrent-KIF. Recording is timed inside the run, as a share of the training time; its size is what it
adds to `record.json`. `kifuse report` draws the page in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kifuse.config import RunConfig
from kifuse.driving.context import TrainerContext
from kifuse.methods.parameters import Parameters
from kifuse.running.runner import run

RESULTS = Path(__file__).parent / "results" / "report-cost.json"
METHODS: dict[str, dict[str, Any]] = {
    "kiflora": {"name": "kiflora"},
    "recurrent-kif": {"name": "recurrent-kif"},
}


class Stopwatch:
    """Adds up the time spent in some methods of classes; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._deep = 0

    def wrap(self, owner: type, name: str) -> None:
        """Begin to time every call of one method."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._deep += 1
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._deep -= 1
                if not self._deep:
                    self.seconds += time.perf_counter() - began

        setattr(owner, name, timed)


def recording(label: str, folder: Path, steps: int, threads: int | None, watch: Stopwatch) -> dict[str, Any]:
    """Train on the jobs; return the seconds and bytes of recording beside those of training."""
    watch.seconds = 0.0
    config = RunConfig.model_validate(
        {
            "model": {"name": "smollm2-135m", "adapter": {"dropout": 0.0}},
            "data": {
                "benchmark": "support-desk",
                "train_examples": 8 * steps,
                "test_examples": 1,
                "max_input": 96,
            },
            "method": METHODS[label],
            "memory": {"per_task": 16},
            "training": {"epochs": 1, "threads": threads},
            "output": folder,
        }
    )
    record = run(config)
    text = (folder / "record.json").read_text(encoding="utf-8")
    kept = [task.per_tensor for task in record.tasks]
    return {
        "tasks": len(record.tasks),
        "steps": sum(task.train_steps or 0 for task in record.tasks),
        "seconds_training": record.train_seconds(),
        "seconds_recording": watch.seconds,
        "bytes_recorded": len(json.dumps(kept)),
        "bytes_record": len(text.encode()),
        "tensors": len(kept[-1].get("names", [])) if kept[-1] else 0,
    }


def page(folder: Path, times: int) -> list[float]:
    """Return the seconds that `kifuse report` takes, with the start of Python."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "kifuse", "report", str(folder)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        found.append(time.perf_counter() - began)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--steps", type=int, default=20, help="steps a job")
    parser.add_argument("--pages", type=int, default=5)
    parser.add_argument("--run", type=Path, default=None, help="a run folder whose page is timed as well")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="report-cost-"))
    watch = Stopwatch()
    for owner, name in ((Parameters, "means"), (TrainerContext, "measure"), (TrainerContext, "event")):
        watch.wrap(owner, name)
    found: dict[str, Any] = {"cpus": os.cpu_count(), "methods": {}, "pages": {}}
    for label in METHODS:
        one = recording(label, folder / label, arguments.steps, arguments.threads, watch)
        found["methods"][label] = one
        share = 100 * one["seconds_recording"] / one["seconds_training"]
        print(
            f"{label}: recording {one['seconds_recording']:.3f} s of {one['seconds_training']:.1f} s "
            f"training ({share:.2f}%), {one['bytes_recorded'] / 1024:.0f} of "
            f"{one['bytes_record'] / 1024:.0f} KiB of record.json, {one['tensors']} tensors, "
            f"{one['tasks']} tasks"
        )
    runs = {label: folder / label for label in METHODS}
    if arguments.run is not None:
        copy = folder / "given"
        shutil.copytree(arguments.run, copy, ignore=shutil.ignore_patterns("adapters", "state", "checkpoint"))
        runs["given"] = copy
    for label, place in runs.items():
        seconds = page(place, arguments.pages)
        size = (place / "report.html").stat().st_size
        found["pages"][label] = {"seconds": seconds, "bytes": size}
        print(
            f"page of {label}: median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to "
            f"{max(seconds):.2f} s over {len(seconds)}, {size / 1024:.0f} KiB"
        )
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
