"""Time how long a user waits at the start: for the import, and for the first step of a second start."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

IMPORT = "import time; t = time.perf_counter(); import kifuse; print(time.perf_counter() - t)"
FIRST_STEP = """
import sys, time
from kifuse.config import RunConfig
from kifuse.running.progress import Progress
from kifuse.running.runner import run

class Watch(Progress):
    def step(self, task, step, steps, loss):
        print("first step", flush=True)
        import os
        os._exit(0)

run(RunConfig.model_validate({
    "model": {"name": "smollm2-135m", "adapter": {"dropout": 0.0}},
    "data": {"benchmark": "support-desk", "max_input": 96, "test_examples": 1},
    "method": {"name": "sequential"},
    "output": sys.argv[1],
}), progress=Watch())
"""


def measure(quick: bool) -> list[dict[str, Any]]:
    """Return the seconds of both, each the median over some processes."""
    times = 2 if quick else 5
    imports = [float(_run(IMPORT)) for _ in range(times)]
    first = []
    with tempfile.TemporaryDirectory() as folder:
        import time

        for _ in range(times + 1):
            began = time.perf_counter()
            _run(FIRST_STEP, str(Path(folder) / "run"))
            first.append(time.perf_counter() - began)
    return [
        {"what": "import kifuse", "seconds": statistics.median(imports), "all": imports},
        {
            "what": "second start to the first step, SmolLM2-135M, one test example scored before it",
            "seconds": statistics.median(first[1:]),
            "all": first[1:],
        },
    ]


def _run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, env=os.environ
    )
    return done.stdout
