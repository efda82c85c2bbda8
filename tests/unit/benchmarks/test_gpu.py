"""Every part of the GPU script runs without a GPU, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_part_runs_on_a_cpu_with_tiny_models(tmp_path: Path):
    subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--size", "tiny"),
            *("--methods", "kif", "replay", "--out", str(tmp_path / "gpu.json")),
        ],
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert found["device"] == "CPU" and found["size"] == "tiny"
    parts = found["parts"]
    # both trainings were on the CPU
    assert parts["methods"] == {name: {"agrees": True, "difference": 0.0} for name in ("kif", "replay")}
    assert parts["steps"].keys() == {"tiny T5", "tiny LLaMA"}
    for each in parts["steps"].values():
        assert each.keys() == {"sequential", "kif", "kiflora", "recurrent-kif", "peak_gib", "counted_gib"}
        assert each["kif"]["step_seconds"] > 0 and each["counted_gib"] > 0
    assert parts["answers"]["kifuse"]["prompts_per_second"] > 0
    assert parts["quantised"].keys() == {"none", "8bit", "4bit"}
    assert "no device to wait for" in parts["waits"]["not_measured"]


def test_without_a_gpu_it_says_what_to_do():
    found = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert found.returncode == 2 and "--device cpu --size tiny" in found.stderr
