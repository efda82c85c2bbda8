"""Cells of a grid as jobs: the bits of single runs, also where jobs are killed or machines die."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from kifuse.cli import app
from kifuse.comparing.folder import open_folder
from kifuse.comparing.grid import load_grid
from kifuse.comparing.placing import Placing
from kifuse.comparing.run_job import RunJob, run_job
from kifuse.errors import ConfigError
from kifuse.io.lock import exclusive
from kifuse.record.run_record import RunRecord
from kifuse.running.runner import run
from tests.runs import learned_files

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


@pytest.fixture(scope="module")
def alone(plain: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What each method learns in a run of its own, which nothing interrupts."""
    folder = tmp_path_factory.mktemp("alone")
    file = folder / "grid.yaml"
    grid = {**plain, "output": str(folder / "grid"), "compare": {"methods": METHODS}}
    file.write_text(yaml.safe_dump(grid), encoding="utf-8")
    torch.set_num_threads(1)
    found = {}
    for planned in load_grid(file, {}).runs:
        run(planned.config)
        found[planned.variant.label] = learned_files(planned.folder)
    return found


def check(folder: Path, alone: dict[str, dict[str, bytes]]) -> None:
    """Every cell is finished, with the very bits of its own run; the second took over its first task."""
    for name, expected in alone.items():
        cell = folder / name / "seed0"
        assert RunRecord.load(cell).status == "finished"
        assert learned_files(cell) == expected
    notes = RunRecord.load(folder / "replay" / "seed0").notes
    assert any("taken over from the run of sequential" in note for note in notes)
    assert not any("taken over" in note for note in RunRecord.load(folder / "sequential" / "seed0").notes)


@contextlib.contextmanager
def once_in_training(cell: Path, act: Callable[[int], None]) -> Iterator[list[int]]:
    """Do something to the process that trains a cell, once, in the middle of a task."""
    done: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            with contextlib.suppress(OSError):
                found = re.match(r"process (\d+) on", (cell / ".lock.owner").read_text("utf-8"))
                if found and (cell / "checkpoint" / "middle" / "state.json").is_file():
                    done.append(int(found[1]))
                    act(int(found[1]))
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def preempt(process: int) -> None:
    os.kill(process, signal.SIGUSR2)  # what SLURM is asked to send before it takes a machine away


def test_a_killed_job_on_this_machine_goes_on_where_it_was(
    write: Callable[..., Path], tmp_path: Path, alone: dict[str, dict[str, bytes]]
):
    with once_in_training(tmp_path / "grid" / "sequential" / "seed0", kill) as killed:
        result = call(write(), "--jobs", 2)
    assert killed and result.exit_code == 0, result.output
    check(tmp_path / "grid", alone)
    assert "2 jobs at once on local" in result.output
    assert "(sent again: ended with exit code -9" in result.output
    assert "replay, seed 0: finished, 3 of 3 tasks learned" in result.output
    log = (tmp_path / "grid" / "sequential" / "seed0" / "log.txt").read_text("utf-8")
    assert re.search(r"colour: going on after step \d+ of", log)
    again = call(write(), "--jobs", 2)
    assert again.exit_code == 0 and "2 of them finished" in again.output


def test_a_preempted_job_of_submitit_goes_on_where_it_was(
    write: Callable[..., Path], tmp_path: Path, alone: dict[str, dict[str, bytes]]
):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    file = write(on="slurm", jobs=2, job={"cluster": "local", "timeout_min": 30})
    with once_in_training(tmp_path / "grid" / "sequential" / "seed0", preempt) as done:
        result = call(file)
    assert done and result.exit_code == 0, result.output
    check(tmp_path / "grid", alone)
    # submitit itself queues it again, as one and the same job
    assert "sent again" not in result.output
    assert "Requeued job" in "".join(
        f.read_text("utf-8") for f in (tmp_path / "grid" / "jobs").rglob("*.out")
    )


def test_submitit_runs_cells_in_this_process_for_debugging(write: Callable[..., Path], tmp_path: Path):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    file = write(methods=["sequential"], on="slurm", jobs=1)
    result = call(file, "--job", "cluster=debug", "--set", "training.epochs=1")
    assert result.exit_code == 0, result.output
    assert RunRecord.load(tmp_path / "grid" / "sequential" / "seed0").status == "finished"


def test_cells_go_on_when_a_machine_of_a_ray_cluster_dies(
    write: Callable[..., Path],
    tmp_path: Path,
    alone: dict[str, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine has nearly no time for them
    # nothing runs on the first machine, which a cluster cannot do without
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        machines = [cluster.add_node(num_cpus=1) for _ in range(2)]

        def machine_dies(process: int) -> None:
            asked = ["ps", "-o", "ppid=", "-p", str(process)]
            parent = int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
            dead = [m for m in machines if m.all_processes["raylet"][0].process.pid == parent]
            kill(process)
            cluster.remove_node(dead[0], allow_graceful=False)

        with once_in_training(tmp_path / "grid" / "sequential" / "seed0", machine_dies) as died:
            result = call(write(), "--on", "ray", "--jobs", 2, "--job", f"address={cluster.address}")
        assert died and result.exit_code == 0, result.output
        assert "sent again" in result.output
        check(tmp_path / "grid", alone)
    finally:
        cluster.shutdown()


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
    job = RunJob.of(grid.runs[0], grid, None).as_text()
    found: list[str | None] = []
    with exclusive(grid.runs[0].folder):
        thread = threading.Thread(target=lambda: found.append(run_job(job)))
        thread.start()
        time.sleep(1)
        assert not (grid.runs[0].folder / "record.json").exists()
    thread.join()
    assert found == [None] and RunRecord.load(grid.runs[0].folder).status == "finished"


def test_a_second_command_on_the_folder_is_refused(write: Callable[..., Path], tmp_path: Path):
    with exclusive(tmp_path / "grid"):
        result = call(write(), "--jobs", 2)
    assert result.exit_code == 2 and "is being written to by another process" in result.output
