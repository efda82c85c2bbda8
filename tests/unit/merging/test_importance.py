"""Importance from one's own gradients, its file, and the state of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kifuse.errors import KifuseError, ModelError
from kifuse.io.storage import read_tensors, write_tensors
from kifuse.merging import Importance, identify, load_importance, save_importance
from tests.reference import importance as literal


@pytest.mark.parametrize("order", ["first", "second", "gradient", "magnitude"])
def test_importance_of_a_live_training_follows_the_written_out_equations(order: Any):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    params = dict(model.named_parameters())
    seen: list[tuple[list[Tensor], list[Tensor]]] = []

    def steps():
        for _ in range(5):
            model(torch.randn(6, 4)).square().sum().backward()
            gradients = {name: p.grad for name, p in params.items()}
            seen.append(
                ([p.detach().clone() for p in params.values()], [g.clone() for g in gradients.values()])  # type: ignore[union-attr]
            )
            yield gradients
            sgd.step()
            sgd.zero_grad()

    found = identify(params, steps(), order=order)
    for score, wanted in zip(found.values(), literal.run(seen, order), strict=True):
        torch.testing.assert_close(score.double(), wanted, rtol=1e-4, atol=1e-9)
    assert list(found) == ["weight", "bias"]


def test_a_missing_gradient_counts_as_zero():
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    found = identify(params, [{"a": torch.ones(2), "b": None}, {"a": torch.ones(2)}], uncertainty=False)
    assert found["a"].min() > 0 and torch.equal(found["b"], torch.zeros(3))


@pytest.mark.parametrize(
    ("params", "grads", "words"),
    [
        ({}, [], "holds no weights"),
        ({"a": torch.ones(2)}, [], "found no steps"),
        ({"a": torch.ones(2)}, [{"b": torch.ones(2)}], "step 1: found a gradient of 'b'"),
        ({"a": torch.ones(2)}, [{"a": torch.ones(3)}], r"gradient of 'a' has shape \(3,\), expected \(2,\)"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(params: Any, grads: Any, words: str):
    with pytest.raises(ModelError, match=words):
        identify(params, grads)


NAME = "base_model.model.q.lora_A.default.weight"


def test_scores_by_parameter_come_back(tmp_path: Path):
    previous, current = (
        {NAME: torch.rand(2, 3), "b": torch.rand(4)},
        {"b": torch.rand(4), NAME: torch.rand(1)},
    )
    save_importance(tmp_path / "i.safetensors", previous=previous, current=current)
    tensors, metadata = read_tensors(tmp_path / "i.safetensors")
    assert metadata == {"format": "kifuse importance", "version": "1"}
    plain = NAME.replace(".default", "")
    assert sorted(tensors) == sorted([f"previous/{plain}", f"current/{plain}", "previous/b", "current/b"])
    found = load_importance(tmp_path / "i.safetensors")
    assert not found.by_unit and sorted(found.names()) == sorted([plain, "b"])
    assert torch.equal(found.previous[plain], previous[NAME])  # type: ignore[index]
    assert torch.equal(found.current[plain], current[NAME])  # type: ignore[index]


def test_values_per_unit_come_back(tmp_path: Path):
    file = tmp_path / "i.safetensors"
    save_importance(
        file,
        previous=torch.tensor([1.0, 2]),
        current=torch.tensor([3.0, 4]),
        order=[NAME, "b"],
        level="matrix",
    )
    found = load_importance(file)
    assert found.by_unit and found.level == "matrix"
    assert found.order == (NAME.replace(".default", ""), "b")
    assert torch.equal(found.previous, torch.tensor([1.0, 2]))  # type: ignore[arg-type]
    assert torch.equal(found.current, torch.tensor([3.0, 4]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"previous": {"a": torch.ones(1)}, "current": torch.ones(1)}, "by parameter and by unit"),
        ({"previous": {"a": torch.ones(1)}, "current": {"b": torch.ones(1)}}, "only one of .* scores 'a'"),
        ({"previous": torch.ones(1), "current": torch.ones(1)}, "needs the order of the parameters"),
    ],
)
def test_what_cannot_be_an_importance_is_not_saved(given: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(ModelError, match=words):
        save_importance(tmp_path / "i.safetensors", **given)
    assert not list(tmp_path.iterdir())


ONE = torch.ones(1)
OWN = {"format": "kifuse importance", "version": "1"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"previous/a": ONE}, {**OWN, "version": "2"}, "version is '2', expected '1'"),
        ({"before/a": ONE}, OWN, "holds 'before/a', expected names that begin with 'previous/'"),
        ({"history": ONE, "current": ONE}, OWN, "metadata has no 'order'"),
        ({"history": ONE, "current": ONE}, {**OWN, "order": "{"}, "metadata has no 'order'"),
        ({"weight": ONE}, {}, r"holds no importance. Expected a file of kifuse.save_importance"),
        ({"history": ONE, "current": ONE}, {}, "history already includes the task just learned"),
    ],
)
def test_other_files_are_refused(
    tensors: dict[str, Tensor], metadata: dict[str, str], words: str, tmp_path: Path
):
    write_tensors(tmp_path / "i.safetensors", tensors, metadata)
    with pytest.raises(ModelError, match=words):
        load_importance(tmp_path / "i.safetensors")


def test_missing_and_damaged_files_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="no such file"):
        load_importance(tmp_path / "i.safetensors")
    (tmp_path / "i.safetensors").write_bytes(b"\x08 half of it")
    with pytest.raises(ModelError, match=r"i\.safetensors: not a readable safetensors file"):
        load_importance(tmp_path / "i.safetensors")


def _state(run: Path, k: int, history: float, current: float, values: Any) -> Path:
    folder = run / "state" / f"after-{k}"
    folder.mkdir(parents=True)
    tensors = {"history": torch.tensor([history, 0.0]), "current": torch.tensor([current, 0.0])}
    write_tensors(folder / "method.safetensors", tensors)
    (folder / "method.json").write_text(json.dumps({"values": values}), encoding="utf-8")
    return folder / "method.safetensors"


UNITS = {"units": "matrix", "parameters": [NAME, "b"]}


def test_of_a_run_the_history_is_that_before_the_task(tmp_path: Path):
    _state(tmp_path, 1, 10.0, 11.0, UNITS)
    found = load_importance(_state(tmp_path, 2, 20.0, 21.0, UNITS))
    assert found.previous[0] == 10.0 and found.current[0] == 21.0  # type: ignore[index]
    assert found.level == "matrix" and found.names() == (NAME.replace(".default", ""), "b")


def test_a_run_without_what_is_needed_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="with k from 2 on"):
        load_importance(_state(tmp_path, 1, 1.0, 1.0, UNITS))
    with pytest.raises(ModelError, match=r"after-2.method\.safetensors: no such file"):
        load_importance(_state(tmp_path, 3, 1.0, 1.0, UNITS))
    with pytest.raises(ModelError, match="does not say which skill units"):
        load_importance(_state(tmp_path, 2, 1.0, 1.0, {}))


def test_importance_is_of_one_kind():
    with pytest.raises(ModelError, match="expected one kind for both"):
        Importance({"a": ONE}, ONE)
    assert issubclass(ModelError, KifuseError)
