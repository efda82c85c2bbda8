"""The examples run as they stand in the documentation, with a tiny model in place of the real one."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from kifuse import registry
from kifuse.record.run_record import RunRecord
from tests.tiny import ENDS

pytestmark = pytest.mark.usefixtures("quick")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, tiny_folder_llama: Path, tmp_path: Path):
    """Runs an example as a script, without the command line's cost of a new process."""
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    monkeypatch.setattr(registry, "OWN", {})

    def go(name: str, *arguments: str) -> None:
        common = ["--model", str(tiny_folder_llama), "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [name, *common, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return go


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL sets it
@pytest.mark.parametrize("name", ["trainer_callback.py", "sft_callback.py"])
def test_a_script_learns_one_task_after_another(
    run_example,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    last_labels: list[int],
):
    if name.startswith("sft"):
        pytest.importorskip("trl")
    for task in ("01-queue", "02-urgency"):
        run_example(name, "--task", task, "--examples", "16")
    told = [line for line in capsys.readouterr().out.splitlines() if "on its test examples" in line]
    assert [line.partition(":")[0] for line in told] == ["01-queue", "01-queue", "02-urgency"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert sorted(path.name for path in (tmp_path / "state").glob("after-*")) == ["after-1", "after-2"]
    kept = (tmp_path / "state" / "after-2" / "memory.jsonl").read_text("utf-8").splitlines()
    assert len(kept) == 1 + 3 + 3
    assert len(last_labels) >= 64 and set(last_labels) <= ENDS, "the model is not taught to stop"


def test_a_method_of_ones_own_runs_under_its_name(run_example, tmp_path: Path, last_labels: list[int]):
    run_example("own_method.py", "--examples", "8")
    record = RunRecord.load(tmp_path / "anchor")
    assert record.status == "finished"
    assert record.method.name == "anchor" and record.method.settings == {"strength": 0.1}
    assert [task.name for task in record.tasks] == ["01-queue", "02-urgency", "04-next-step"]
    assert last_labels and set(last_labels) <= ENDS, "the model is not taught to stop"
