"""One process of those that run a stream together with a model in pieces, as accelerate launches them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import kifuse
from kifuse.config import RunConfig
from kifuse.record.run_record import RunRecord
from tests.processes import end_together, run_two
from tests.runs import write_stream


def config(model: Path, stream: Path, output: Path) -> RunConfig:
    """A run of three tasks."""
    adapter = {"rank": 2, "dropout": 0.0}
    values: dict[str, Any] = {
        "model": {"name": str(model), "precision": "fp32", "adapter": adapter},
        "data": {"path": str(stream)},
        "method": {"name": "recurrent-kif"},
        "training": {"batch_size": 4, "epochs": 1, "learning_rate": 0.01},
        "output": str(output),
    }
    return RunConfig.model_validate(values)


def check_run_in_pieces(how: str, model: Path, folder: Path) -> None:
    """Two processes learn what one does, keep whole adapters, and score alike."""
    stream = write_stream(folder / "stream")
    expected = kifuse.run(config(model, stream, folder / "one"))
    run_two("tests.contract.run_in_pieces", how, str(model), str(stream), str(folder / "two"), timeout=300)
    found = RunRecord.load(folder / "two")
    assert [(s.after, s.task, s.score) for s in found.scores] == [
        (s.after, s.task, s.score) for s in expected.scores
    ]
    for k in (1, 2, 3):
        one, two = (
            load_file(folder / name / "adapters" / f"after-{k}" / "adapter_model.safetensors")
            for name in ("one", "two")
        )
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def main(how: str, *places: str) -> None:
    """Run it: `how` is fsdp, or the stage of ZeRO."""
    torch.set_num_threads(1)
    if how == "fsdp":
        from tests.contract.script_in_pieces import cut_by_accelerate

        cut_by_accelerate()
    else:
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": how}
    kifuse.run(config(*map(Path, places)))  # type: ignore[arg-type]
    end_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
