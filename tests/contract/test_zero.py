"""Users' scripts under DeepSpeed's ZeRO, on two processes of this machine without a GPU."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.contract import script_under_zero as under_zero
from tests.contract.run_in_pieces import check_run_in_pieces
from tests.months import check_two_learned_as_one, of_both, same
from tests.processes import run_two

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="the extra deepspeed is not installed"
    ),
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="deepspeed compiles an operator, and there is no g++"
    ),
]
ALL = [(stage, name) for stage, names in under_zero.OF_STAGE.items() for name in names]
STAGES = tuple(under_zero.OF_STAGE)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes run the scripts under each stage; the first start compiles DeepSpeed's operator."""
    folder = tmp_path_factory.mktemp("zero")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        for stage in STAGES:
            run_two("tests.contract.script_under_zero", str(stage), str(folder / str(stage)), timeout=1200)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """What one process learned without DeepSpeed, by method."""
    return {}


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_two_processes_learn_what_one_does(
    ran: Path, alone: dict[str, tuple[Path, Any]], tmp_path: Path, stage: int, name: str
):
    if name not in alone:
        alone[name] = (tmp_path, under_zero.months(tmp_path, name))
    folder, expected = alone[name]
    check_two_learned_as_one(ran / str(stage) / name, folder, expected, name)


@pytest.mark.parametrize("stage", [2, 3])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(ran: Path, stage: int):
    folder = ran / str(stage)
    for found, expected in zip(
        of_both(folder / "again"), of_both(folder / under_zero.INTERRUPTED), strict=True
    ):
        assert same(found, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_accumulated(ran: Path, alone: dict[str, tuple[Path, Any]], tmp_path: Path, stage: int):
    expected = under_zero.months(tmp_path, "recurrent-kif")
    for found in of_both(ran / str(stage) / "gathered"):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["several", "broken"])
@pytest.mark.parametrize("stage", STAGES)
def test_tasks_of_one_model_and_broken_steps_end_as_without_deepspeed(
    ran: Path, tmp_path: Path, stage: int, case: str
):
    expected, counts = under_zero.several(tmp_path, **under_zero.OTHERS[case])
    folder = ran / str(stage) / case
    for rank, found in enumerate(of_both(folder)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert json.loads((folder / f"{rank}.json").read_text("utf-8")) == counts


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_ends_as_one_process_does(
    tiny_folder_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    check_run_in_pieces(str(stage), tiny_folder_llama, tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_keeps_what_the_model_computes_with(ran: Path, stage: int):
    found = of_both(ran / str(stage) / "bf16")
    assert same(*found)
    kept = load_file(ran / str(stage) / "bf16" / "state" / "after-2" / "weights.safetensors")
    for name, value in found[0].items():
        assert value.dtype == torch.bfloat16 and torch.equal(
            kept[name.replace(".default", "")], value.float()
        )


def test_in_bf16_every_stage_gives_the_same_gradients_of_single_examples(ran: Path):
    shared, *others = (of_both(ran / str(stage) / "bf16, ewc")[0] for stage in STAGES)
    plain = of_both(ran / "1" / "bf16, nothing")[0]
    for other in others:
        torch.testing.assert_close(other, shared, rtol=1e-2, atol=4e-3)
    far = max(float((shared[key] - value).abs().max()) for key, value in plain.items())
    assert far > 1e-2


@pytest.mark.parametrize("stage", STAGES)
def test_the_installed_releases_have_every_name_that_kifuse_relies_on(ran: Path, stage: int):
    for rank in range(2):
        assert json.loads((ran / str(stage) / f"facts-{rank}.json").read_text("utf-8"))["missing"] == []


def test_what_cannot_keep_in_step_is_refused_where_layers_are_in_pieces(ran: Path):
    for rank in range(2):
        refused = json.loads((ran / "3" / f"facts-{rank}.json").read_text("utf-8"))["refused"]
        assert refused.keys() == under_zero.REFUSED.keys()
        for name, why in under_zero.REFUSED.items():
            assert why in refused[name] and "ZeRO of stage 1 or 2 in fp32" in refused[name]
