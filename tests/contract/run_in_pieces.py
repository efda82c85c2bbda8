"""One process of those that run a stream together with a model in pieces, as accelerate launches them."""

from __future__ import annotations

import contextlib
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
from tests.runs import TASKS, PressCtrlC, learned_files, write_stream

RUNS: dict[str, tuple[dict[str, Any], int]] = {
    "recurrent-kif": ({"name": "recurrent-kif"}, 3),
    "ewc": ({"name": "ewc", "penalty": 10.0}, 2),
    "ogd": ({"name": "ogd", "per_task": 5}, 2),
}
"""The methods of the runs, and how many tasks each learns."""
OF = {"fsdp": list(RUNS), "2": ["recurrent-kif"], "3": ["recurrent-kif"]}
"""Which of them are run in pieces of each kind: FSDP2, or a stage of ZeRO."""


def config(name: str, model: Path, stream: Path, output: Path) -> RunConfig:
    """One of the runs."""
    adapter = {"rank": 2, "dropout": 0.0}
    method, tasks = RUNS[name]
    values: dict[str, Any] = {
        "model": {"name": str(model), "precision": "fp32", "adapter": adapter},
        "data": {"path": str(stream), "order": list(TASKS[:tasks])},
        "method": method,
        "training": {"batch_size": 4, "epochs": 1, "learning_rate": 0.01},
        "record": {"probe_importance": [TASKS[0]], "probe_examples": 5, "probe_stages": 1},
        "output": str(output / name),
    }
    return RunConfig.model_validate(values)


def check_run_in_pieces(how: str, model: Path, folder: Path) -> None:
    """Two processes learn what one does, keep whole adapters, and score alike."""
    stream = write_stream(folder / "stream")
    run_two("tests.contract.run_in_pieces", how, str(model), str(stream), str(folder), timeout=600)
    for name in OF[how]:
        expected = kifuse.run(config(name, model, stream, folder / "one"))
        found = RunRecord.load(folder / "two" / name)
        assert [(s.after, s.task, s.score) for s in found.scores] == [
            (s.after, s.task, s.score) for s in expected.scores
        ]
        for one, two in zip(expected.tasks, found.tasks, strict=True):
            wanted, probed = (_probed(each.per_tensor["series"]) for each in (one, two))
            assert len(wanted) == 2  # in the middle of the task, and at its end
            torch.testing.assert_close(probed, wanted, rtol=1e-2, atol=1e-6)
        for k in range(1, RUNS[name][1] + 1):
            one, two = (
                load_file(folder / each / name / "adapters" / f"after-{k}" / "adapter_model.safetensors")
                for each in ("one", "two")
            )
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def check_stopped(folder: Path) -> None:
    """The run that was stopped in the middle of a task has learned what the other one has, bit for bit."""
    log = (folder / "stopped" / "recurrent-kif" / "log.txt").read_text("utf-8")
    assert "fruit: going on after step 2 of 3" in log
    two, stopped = (learned_files(folder / each / "recurrent-kif") for each in ("two", "stopped"))
    assert len(two) >= 12 and two == stopped


def stop_and_go_on(model: Path, stream: Path, folder: Path) -> None:
    """Tell the second process to stop in the middle of a task, and give the same command again."""
    stopped = config("recurrent-kif", model, stream, folder / "stopped")
    presses = PressCtrlC("fruit", 2) if os.environ["RANK"] == "1" else None
    with contextlib.suppress(KeyboardInterrupt):
        kifuse.run(stopped, progress=presses)
    assert (Path(stopped.output) / "checkpoint" / "middle" / "state.json").is_file()
    kifuse.run(stopped)


def _probed(series: dict[str, Any]) -> dict[str, Any]:
    return {
        key: torch.tensor(values) for key, values in series.items() if key.startswith("probed importance")
    }


def main(how: str, *places: str) -> None:
    """Run it: `how` is fsdp, or the stage of ZeRO."""
    model, stream, folder = map(Path, places)
    torch.set_num_threads(1)
    if how == "fsdp":
        from tests.contract.script_in_pieces import cut_by_accelerate

        cut_by_accelerate()
    else:
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": how}
    for name in OF[how]:
        kifuse.run(config(name, model, stream, folder / "two"))
    if how == "fsdp":
        stop_and_go_on(model, stream, folder)
    end_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
