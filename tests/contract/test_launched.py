"""`kifuse run` under a launcher: two processes on this machine, without a GPU."""

from __future__ import annotations

from pathlib import Path

from torch import distributed

from kifuse.processes import leave_processes
from tests.contract.run_in_pieces import check_run_in_pieces, check_stopped
from tests.processes import run_two
from tests.runs import write_stream


def test_two_processes_run_a_stream_and_end_well(tiny_folder_llama: Path, tmp_path: Path):
    settings = ["model.adapter.rank=2", "training.batch_size=4", "training.epochs=1", "model.precision=fp32"]
    run_two(
        "kifuse",
        "run",
        *("--model", str(tiny_folder_llama), "--data", str(write_stream(tmp_path / "stream"))),
        *("--method", "recurrent-kif", "--output", str(tmp_path / "run")),
        *(word for setting in settings for word in ("--set", setting)),
        timeout=120,
    )
    assert (tmp_path / "run" / "adapters").is_dir()


def test_a_run_with_a_model_in_pieces_ends_as_one_process_does_also_if_it_is_stopped(
    tiny_folder_llama: Path, tmp_path: Path
):
    check_run_in_pieces("fsdp", tiny_folder_llama, tmp_path)
    check_stopped(tmp_path)


def test_the_group_of_processes_is_left():
    leave_processes()  # there is none
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    leave_processes()
    assert not distributed.is_initialized()
