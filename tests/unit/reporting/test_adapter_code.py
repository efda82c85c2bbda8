"""The code on the page loads what a run has learned: it is run here on adapters of tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kifuse.models.catalog import model_names
from kifuse.reporting.adapter_code import BUNDLED, adapter_code
from kifuse.reporting.run_groups import Run
from tests.unit.reporting.runs import make_record

NAME = 'it\'s a "model"'


def run_of(folder: Path | None, model: Path | str, *, encoder_decoder: bool, kind: str = "lora") -> Run:
    record = make_record(
        tasks=["a", "b"],
        model={"name": str(model), "encoder_decoder": encoder_decoder},
        config={"model": {"name": str(model), "adapter": {"kind": kind}}},
    )
    return Run(record, folder)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_code_loads_an_adapter_and_answers(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base: Path = request.getfixturevalue(f"tiny_folder_{family}")
    auto: Any = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    targets = ["q", "v"] if family == "t5" else ["q_proj", "v_proj"]
    adapted: Any = get_peft_model(auto.from_pretrained(base), LoraConfig(target_modules=targets))
    adapted.save_pretrained(str(tmp_path / "adapters" / "after-2"))
    said, code = adapter_code(run_of(tmp_path, base, encoder_decoder=family == "t5"))
    assert "after b, the last task learned" in said
    names: dict[str, Any] = {}
    exec(compile(code, "page", "exec"), names)  # noqa: S102
    assert capsys.readouterr().out.endswith("\n")
    assert type(names["model"]).__name__ == "PeftModel"


@pytest.mark.parametrize("kind", ["full", "osf"])
def test_the_code_loads_fully_trained_weights(tiny_folder_llama: Path, tmp_path: Path, kind: str):
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder_llama)
    weights = {"model.norm.weight": model.model.norm.weight.detach() + 1.0}
    (tmp_path / "adapters" / "after-2").mkdir(parents=True)
    save_file(weights, tmp_path / "adapters" / "after-2" / "adapter_model.safetensors")
    _, code = adapter_code(run_of(tmp_path, tiny_folder_llama, encoder_decoder=False, kind=kind))
    names: dict[str, Any] = {}
    exec(compile(code, "page", "exec"), names)  # noqa: S102
    assert (names["model"].model.norm.weight == weights["model.norm.weight"]).all()


def test_a_name_cannot_leave_its_quotes():
    _, code = adapter_code(run_of(None, NAME, encoder_decoder=False))
    assert f"base = {NAME!r}" in code
    compile(code, "page", "exec")


def test_a_folder_below_the_current_one_is_named_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    _, code = adapter_code(run_of(tmp_path / "runs" / "x", "model", encoder_decoder=False))
    assert "'runs/x/adapters/after-2'" in code


def test_models_that_kifuse_fetches_are_known_by_their_names():
    assert sorted(BUNDLED) == model_names()
    _, code = adapter_code(run_of(None, BUNDLED[0], encoder_decoder=False))
    assert "bundled_model('smollm2-135m')" in code


def test_nothing_learned_is_nothing_to_load():
    run = run_of(None, "model", encoder_decoder=False)
    run.record.status = "running"
    for task in run.record.tasks:
        task.train_steps = None
    said, code = adapter_code(run)
    assert "No task has been learned yet" in said
    assert code == ""
