"""Adapters from elsewhere: what is pickled, endless, too large or names code is refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kifuse import load_adapter
from kifuse.adapters import foreign
from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.registry import build_method
from tests.adapters import add_adapter, save_adapter
from tests.tiny import build_llama

pytestmark = pytest.mark.usefixtures("quick")

SETTINGS = AdapterConfig.model_validate({"rank": 2, "alpha": 8, "dropout": 0.0})
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def saved(folder: Path, method: str | None = None) -> Path:
    made = None if method is None else build_method(method)
    save_adapter(add_adapter(build_llama(64), SETTINGS, encoder_decoder=False, seed=0, method=made), folder)
    return folder


def with_settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / CONFIG
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), encoding="utf-8")

    return change


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def pickled(folder: Path) -> None:
    torch.save({"x": Bomb(), **load_file(folder / WEIGHTS)}, folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(min(tensors))
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_a_tensor, r"adapter_model\.safetensors: .* is missing \(1 tensors in all\)"),
        (pickled, r"no adapter there \(adapter_model\.safetensors is missing\)"),
        (with_settings(megatron_config={"a": 1}, megatron_core="antigravity"), "imports the module"),
        (with_settings(layer_replication=[[0, 2]] * 1000), "layer_replication: it can make the model"),
        (with_settings(peft_type="XLORA", adapters={"1": "owner/name"}), "found 'XLORA', expected one of"),
        (with_settings(peft_type=5), "found 5, expected one of"),
        (with_settings(r=10**9), "found 1000000000, expected sizes from 0 to 1024"),
        (with_settings(rank_pattern={"q_proj": 10**9}), "found 1000000000, expected sizes"),
        (with_settings(r="x"), "cannot be put on this model: TypeError"),
        (with_settings(target_modules=["nowhere"]), "cannot be put on this model: .*nowhere"),
        (with_settings(target_modules="(([a-z_.0-9]+)+)+!"), "takes longer than 1 seconds"),
        (with_settings(alpha_pattern={"(([a-z_.0-9]+)+)+!": 1}), "takes longer than 1 seconds"),
    ],
)
def test_a_peft_adapter_that_does_more_than_be_put_on_is_refused(
    change: Callable[[Path], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreign, "SECONDS", 1.0)
    change(saved(tmp_path / "kept"))
    with pytest.raises(ModelError, match=words) as refused:
        load_adapter(build_llama(64), tmp_path / "kept")
    assert str(tmp_path / "kept") in str(refused.value)
    assert not (tmp_path / "unpickled").exists()


def test_patterns_that_end_are_taken(tmp_path: Path):
    with_settings(target_modules=r".*\.(q_proj|v_proj)", rank_pattern={r".*q_proj": 2})(
        saved(tmp_path / "kept")
    )
    assert load_adapter(build_llama(64), tmp_path / "kept").active_adapters == ["default"]
    with pytest.raises(ModelError, match="task: found 2, expected none"):
        load_adapter(build_llama(64), tmp_path / "kept", task=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_settings(method_settings={"pool": 10**9}), "found 1000000000, expected sizes"),
        (with_settings(method_settings=[1]), r"method_settings: found \[1\], expected keys and values"),
        (with_settings(settings=None), "settings: found None, expected keys and values"),
        (with_settings(method_settings={"depth": 1}), "method.depth"),
        (with_settings(method="os:system"), "method 'os:system', which is not known here"),
    ],
)
def test_an_adapter_of_a_method_with_settings_that_are_none_is_refused(
    change: Callable[[Path], None], words: str, tmp_path: Path
):
    change(saved(tmp_path / "kept", "l2p"))
    with pytest.raises(ModelError, match=words):
        load_adapter(build_llama(64), tmp_path / "kept")
