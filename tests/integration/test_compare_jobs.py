"""Cells of a grid as jobs: where they run, what they ask for, and what stops them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from kifuse.cli import app
from kifuse.comparing.cell_job import CellJob, run_cell
from kifuse.comparing.folder import open_folder
from kifuse.comparing.grid import load_grid
from kifuse.comparing.placing import Placing
from kifuse.errors import ConfigError
from kifuse.io.lock import exclusive
from kifuse.record.run_record import RunRecord

METHODS = ["sequential", "replay"]
"""The second one's first task is that of the first."""
EPOCHS = 4


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def plain(tiny_folder_llama: Path, tiny_stream: Path) -> dict[str, Any]:
    """What the runs of a grid have in common."""
    return {
        "model": {"name": str(tiny_folder_llama), "precision": "fp32", "adapter": {"rank": 2, "alpha": 8}},
        "data": {"path": str(tiny_stream), "max_input": 64, "max_target": 8},
        "memory": {"per_task": 3},
        "training": {
            "learning_rate": 1e-2,
            "epochs": EPOCHS,
            "batch_size": 4,
            "checkpoint_minutes": 0,
            "threads": 1,
        },
        "evaluation": {"max_new_tokens": 2},
    }


@pytest.fixture
def write(tmp_path: Path, plain: dict[str, Any]) -> Callable[..., Path]:
    """Writes a grid's file."""

    def write(**section: Any) -> Path:
        grid = {**plain, "output": str(tmp_path / "grid"), "compare": {"methods": METHODS, **section}}
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(grid), encoding="utf-8")
        return file

    return write


def test_a_cell_that_fails_stops_no_other(write: Callable[..., Path], tmp_path: Path):
    file = write(methods=[{"label": "strange", "name": "sequential"}, "sequential"])
    open_folder(load_grid(file, {"training.epochs": 1}))
    in_the_way = tmp_path / "grid" / "strange" / "seed0" / "somebody-else-s.txt"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    result = call(file, "--jobs", 2, "--set", "training.epochs=1")
    assert result.exit_code == 1, result.output
    output = " ".join(result.output.split())
    assert "failed: strange, seed 0: output: " in output and "holds no run" in output
    assert "sent again" not in output and "sequential, seed 0: finished" in output
    assert RunRecord.load(tmp_path / "grid" / "sequential" / "seed0").status == "finished"


@pytest.mark.parametrize(("on", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_extra_is_one_plain_message(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, on: str, package: str
):
    monkeypatch.setitem(sys.modules, package, None)
    result = call(write(), "--on", on)
    assert result.exit_code == 2
    assert f"pip install 'kifuse[{on}]'" in result.output and "Traceback" not in result.output


def test_what_a_job_asks_for_is_refused_where_it_is_not_known(write: Callable[..., Path]):
    for option, words in {
        "--on=slrm": "Did you mean 'slurm'?",
        "--jobs=0": "at least 1",
        "--job=slurm_partition=gpu": "name the cluster",
        "--job=": "KEY=VALUE",
    }.items():
        result = call(write(), option)
        assert result.exit_code == 2 and words in result.output
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    result = call(write(), "--on", "slurm", "--job", "cluster=local", "--job", "partitoin=gpu")
    assert result.exit_code == 2 and "partitoin" in result.output and "slurm_partition=gpu" in result.output
    result = call(write(), "--on", "slurm")
    assert result.exit_code == 2 and "where sbatch is" in result.output


def test_the_file_says_where_and_the_command_line_wins(write: Callable[..., Path]):
    file = write(on="slurm", jobs=5, job={"slurm_partition": "gpu", "timeout_min": 60})
    placing = load_grid(file, {}).placing
    assert (placing.on, placing.at_once, placing.here) == ("slurm", 5, False)
    changed = placing.given(None, 2, ["timeout_min=90"])
    assert changed == Placing("slurm", 2, {"slurm_partition": "gpu", "timeout_min": 90})
    # what a job asks for is of one kind of cluster
    assert placing.given("ray", None, ["num_cpus=2"]) == Placing("ray", 5, {"num_cpus": 2})
    assert placing.given("local", 1, []).here and Placing().here
    for section in ({"on": "cloud"}, {"jobs": 0}, {"job": ["gpu"]}):
        with pytest.raises(ConfigError, match=f"compare.{next(iter(section))}"):
            load_grid(write(**section), {})


def test_a_cell_that_another_job_is_at_work_on_is_waited_for(write: Callable[..., Path], tmp_path: Path):
    grid = load_grid(write(methods=["sequential"]), {"training.epochs": 1})
    job = CellJob.of(grid.runs[0], grid, None).as_text()
    found: list[str | None] = []
    with exclusive(grid.runs[0].folder):
        thread = threading.Thread(target=lambda: found.append(run_cell(job)))
        thread.start()
        time.sleep(1)
        assert not (grid.runs[0].folder / "record.json").exists()
    thread.join()
    assert found == [None] and RunRecord.load(grid.runs[0].folder).status == "finished"


def test_a_second_command_on_the_folder_is_refused(write: Callable[..., Path], tmp_path: Path):
    with exclusive(tmp_path / "grid"):
        result = call(write(), "--jobs", 2)
    assert result.exit_code == 2 and "is being written to by another process" in result.output
