"""Users' scripts on two processes of this machine without a GPU; of some the model is cut into pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.contract import script_in_pieces, script_of_many
from tests.months import check_two_learned_as_one, of_both, same
from tests.processes import run_two

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes check what pieces must do, and run the scripts with several methods."""
    folder = tmp_path_factory.mktemp("scripts")
    run_two("tests.contract.two_scripts", str(folder), timeout=600)
    return folder


@pytest.fixture
def in_pieces(two_processes: Path) -> Path:
    return two_processes / "pieces"


@pytest.mark.parametrize("name", script_of_many.NAMES)
def test_a_script_on_two_processes_learns_what_one_does(two_processes: Path, tmp_path: Path, name: str):
    expected, _ = script_of_many.train(tmp_path, name)
    check_two_learned_as_one(two_processes / "many" / name, tmp_path, expected, name)


def test_a_loss_that_breaks_on_one_process_skips_the_step_on_all(two_processes: Path):
    found = of_both(two_processes / "many" / "broken")
    assert same(*found) and all(bool(torch.isfinite(value).all()) for value in found[0].values())
    for rank in range(2):
        counts = json.loads((two_processes / "many" / "broken" / f"{rank}.json").read_text("utf-8"))
        assert counts["bad"] == {"task": 1, "memory": 0}


@pytest.mark.parametrize("name", script_in_pieces.NAMES)
def test_a_model_in_pieces_learns_what_a_whole_one_does(in_pieces: Path, tmp_path: Path, name: str):
    expected = script_in_pieces.months(tmp_path, name)
    check_two_learned_as_one(in_pieces / name, tmp_path, expected, name)


@pytest.mark.parametrize("name", script_in_pieces.NAMES)
def test_the_state_of_a_model_in_pieces_holds_the_whole_weights(in_pieces: Path, name: str):
    kept = load_file(in_pieces / name / "state" / "after-2" / "weights.safetensors")
    found = load_file(in_pieces / name / "0.safetensors")
    assert {key.replace(".default", ""): value.tolist() for key, value in found.items()} == {
        key: value.tolist() for key, value in kept.items()
    }


def test_a_model_in_pieces_goes_on_from_a_checkpoint_bit_for_bit(in_pieces: Path):
    whole = of_both(in_pieces / script_in_pieces.INTERRUPTED)
    for found, expected in zip(of_both(in_pieces / "again"), whole, strict=True):
        assert same(found, expected)


def test_gradients_are_accumulated_over_pieces(in_pieces: Path):
    for found, expected in zip(
        of_both(in_pieces / "gathered"), of_both(in_pieces / "recurrent-kif"), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
