"""A run that is stopped by its user, its disk, its neighbours or its clock."""

from __future__ import annotations

import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse.errors import KifuseError, RunError
from kifuse.io.lock import exclusive
from kifuse.running.runner import run
from tests.runs import METHODS, PressCtrlC, adapter, make_config

pytestmark = pytest.mark.usefixtures("quick")

EVERY_STEP = {"training": {"checkpoint_minutes": 0}}


def test_a_second_ctrl_c_stops_at_once(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path):
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", METHODS["sequential"])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=PressCtrlC("fruit", 1, times=2))
    assert not (tmp_path / "out" / "checkpoint" / "middle").exists()
    assert signal.getsignal(signal.SIGINT) is before, "the user's own handler is back"
    assert run(config).status == "finished"


def test_a_damaged_middle_costs_time_and_nothing_else(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", METHODS["kif"])
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=PressCtrlC("fruit", 2))
    file = tmp_path / "out" / "checkpoint" / "middle" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    listener = PressCtrlC("none", 0)
    run(config, progress=listener)
    assert any("weights.safetensors" in line and "starts again" in line for line in listener.said)
    whole = make_config(tiny_folder_llama, tiny_stream, tmp_path / "whole", METHODS["kif"])
    run(whole)
    assert all(torch.equal(v, adapter(tmp_path / "out")[k]) for k, v in adapter(tmp_path / "whole").items())


def test_a_folder_that_a_living_process_writes_to_is_refused(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", METHODS["sequential"])
    code = (
        "import sys, time; from pathlib import Path; from kifuse.io.lock import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"written to by another process \(process {other.pid} on"):
            run(config)
    finally:
        other.kill()
        other.wait()
    # killed without a word, it is in nobody's way
    with exclusive(tmp_path / "out"):
        pass
    assert run(config).status == "finished"


@pytest.mark.parametrize("limit_kb", [1, 8])
def test_a_full_disk_is_said_and_the_run_goes_on_later(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, limit_kb: int
):
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", METHODS["kif"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # no file may grow beyond this: writing fails as it does on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kb * 1024, hard))
        with pytest.raises(KifuseError, match=r"cannot be written|File too large"):
            run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run(config).status == "finished"


def test_a_folder_that_cannot_be_written_to_is_said_before_anything_is_computed(
    tiny_folder_llama: Path, tiny_stream: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kifuse.running.run_start.load_backbone", None)
    config = make_config(tiny_folder_llama, tiny_stream, Path("/proc/kifuse"), METHODS["kif"])
    with pytest.raises(RunError, match=r"output: /proc/kifuse cannot be written to.*name another folder"):
        run(config)


def test_a_clock_that_jumps_changes_nothing(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "steady", METHODS["kif"])
    run(config)
    jumps = iter([1e9, 5.0, 4e9, 0.0] * 100_000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "jumping", METHODS["kif"]))
    steady, jumping = adapter(tmp_path / "steady"), adapter(tmp_path / "jumping")
    assert all(torch.equal(steady[key], jumping[key]) for key in steady)


def test_no_pickle_is_written_or_read(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pickle was written or read")

    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", METHODS["recurrent-kif"])
    for owner, name in ((torch, "save"), (torch, "load"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=PressCtrlC("fruit", 2))
    kinds = {p.suffix for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert run(config).status == "finished"
    kinds |= {p.suffix for p in (tmp_path / "out").rglob("*") if p.is_file()}
    known = {".json", ".jsonl", ".safetensors", ".yaml", ".md", ".html", ".txt", ""}
    assert kinds <= known, kinds - known
