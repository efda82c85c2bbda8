"""The demo, from its first line to the adapter it leaves, on a tiny model in place of the real one."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from peft import PeftModel
from rich.console import Console
from transformers import LlamaForCausalLM

import kifuse.demo
from kifuse.record.run_record import RunRecord


@pytest.fixture(scope="module")
def shown(tiny_folder_llama: Path, tmp_path_factory: pytest.TempPathFactory, quick: None) -> tuple[str, Path]:
    """What the demo prints where nobody watches, and where its runs are."""
    output = tmp_path_factory.mktemp("demo") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kifuse.demo.SETTINGS, "model", {"name": str(tiny_folder_llama), "precision": "fp32"})
        patch.setitem(
            kifuse.demo.SETTINGS,
            "data",
            {**kifuse.demo.SETTINGS["data"], "train_examples": 16, "test_examples": 4, "max_input": 400},
        )
        patch.setitem(kifuse.demo.SETTINGS, "evaluation", {"full_matrix": True, "max_new_tokens": 2})
        patch.setitem(kifuse.demo.SETTINGS, "training", {**kifuse.demo.SETTINGS["training"], "epochs": 1})
        console = Console(file=io.StringIO(), width=100)
        assert kifuse.demo.run_demo(output, 0, ("sequential", "recurrent-kif"), console) == 0
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue(), output


def test_the_table_has_every_task_and_metric(shown: tuple[str, Path]) -> None:
    text, output = shown
    record = RunRecord.load(output / "recurrent-kif")
    for name in [task.name for task in record.tasks]:
        assert re.search(rf"^\s*{name}\s", text, re.MULTILINE), name
    for metric in ("AP", "FWT", "BWT", "forgetting", "trained, seconds"):
        assert re.search(rf"^\s*{metric}", text, re.MULTILINE), metric
    for name, metric in record.summary().items():
        assert metric.value is not None, f"{name}: {metric.reason}"


def test_scores_are_told_while_it_runs(shown: tuple[str, Path]) -> None:
    text, _ = shown
    assert "before" not in text.split("after task 1")[0]
    assert text.count("after task 5: 05-reply-tone") == 2


def test_run_and_adapter_are_where_it_says(shown: tuple[str, Path], tiny_folder_llama: Path) -> None:
    text, output = shown
    folders = re.findall(r"adapter \(standard PEFT\) in (\S+)", text)
    assert folders == [
        str(output / name / "adapters" / "after-5") for name in ("sequential", "recurrent-kif")
    ]
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_folder_llama), folders[1])
    assert any(parameter.abs().sum() > 0 for name, parameter in model.named_parameters() if "lora_B" in name)


def test_the_first_task_is_trained_once(shown: tuple[str, Path]) -> None:
    _, output = shown
    first = [
        (output / name / "adapters/after-1/adapter_model.safetensors").read_bytes()
        for name in ("sequential", "recurrent-kif")
    ]
    assert first[0] == first[1]
    assert "taken over" in " ".join(RunRecord.load(output / "recurrent-kif").notes)
