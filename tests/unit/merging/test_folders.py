"""Fusion of saved adapters: what is written, and which pairs and folders are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from kifuse.adapters.folder import read_adapter
from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.merging import Importance, fuse, fuse_adapters, save_importance
from tests.adapters import add_adapter, load_adapter_weights, save_adapter
from tests.tiny import build_llama

VOCABULARY = 64


def model(kind: str = "lora", seed: int = 0, **settings: Any) -> Any:
    config = AdapterConfig.model_validate({"kind": kind, "rank": 2, "dropout": 0.0, **settings})
    made = add_adapter(build_llama(VOCABULARY), config, encoder_decoder=False, seed=0)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=draw) * 0.1)
    return made


def pair(folder: Path, kind: str = "lora", **settings: Any) -> tuple[Path, Path]:
    """Adapters before and after a task."""
    save_adapter(model(kind, 1), folder / "old")
    save_adapter(model(kind, 2, **settings), folder / "new")
    return folder / "old", folder / "new"


def scores(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.rand(tensors[name].shape, generator=draw) for name in sorted(tensors)}


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "full"])
def test_two_folders_become_a_third_of_the_same_kind(kind: str, tmp_path: Path):
    old, new = pair(tmp_path, kind)
    tensors = read_adapter(new).tensors
    importance = Importance(scores(tensors, 3), scores(tensors, 4))
    save_importance(tmp_path / "i.safetensors", previous=importance.previous, current=importance.current)
    fused = fuse_adapters(old, new, tmp_path / "out", tmp_path / "i.safetensors", units="rank")
    wanted = fuse(read_adapter(old).tensors, tensors, importance, units="rank")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert written.keys() == wanted.keys() == tensors.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    assert fused.full == (kind == "full") and fused.path == tmp_path / "out"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    configs = [json.loads((f / "adapter_config.json").read_text()) for f in (new, tmp_path / "out")]
    assert configs[0] == configs[1]
    load_adapter_weights(model(kind, 5), tmp_path / "out")


def test_the_result_loads_with_peft(tmp_path: Path):
    old, new = pair(tmp_path)
    fuse_adapters(old, new, tmp_path / "out", fusion="average")
    loaded = PeftModel.from_pretrained(build_llama(VOCABULARY), tmp_path / "out").eval()
    mine = model()
    load_adapter_weights(mine, tmp_path / "out")
    ids = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, mine.eval()(input_ids=ids).logits)


def test_the_sources_stay_as_they_are(tmp_path: Path):
    old, new = pair(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    fuse_adapters(old, new, tmp_path / "out", fusion="average")
    assert all(p.read_bytes() == content for p, content in before.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 4}, r"differ in r \(2 and 4\)"),
        ({"target_modules": ["q_proj", "o_proj"]}, r"target_modules \(\['q_proj', 'v_proj'\] and \['o_proj'"),
        ({"kind": "dora"}, r"use_dora \(None and True\)"),
        ({"kind": "ia3"}, r"peft_type \('LORA' and 'IA3'\)"),
        ({"kind": "full"}, r"format \(None and 'kifuse full weights'\)"),
        ({"alpha": 64}, r"lora_alpha \(32 and 64\)"),
    ],
)
def test_adapters_that_differ_are_refused_with_what_they_differ_in(
    settings: dict[str, Any], words: str, tmp_path: Path
):
    old, new = tmp_path / "old", tmp_path / "new"
    save_adapter(model(), old)
    save_adapter(model(**settings), new)
    with pytest.raises(ModelError, match=words):
        fuse_adapters(old, new, tmp_path / "out", fusion="average")
    assert not (tmp_path / "out").exists()


def _edit(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_adapters_of_different_models_are_refused(tmp_path: Path):
    old, new = pair(tmp_path)
    _edit(old, base_model_name_or_path="one/model")
    _edit(new, base_model_name_or_path="another/model")
    with pytest.raises(ModelError, match=r"base_model_name_or_path \('one/model' and 'another/model'\)"):
        fuse_adapters(old, new, tmp_path / "out", fusion="average")


def test_the_order_of_modules_and_the_spelling_of_a_path_make_no_difference(tmp_path: Path):
    old, new = pair(tmp_path)
    _edit(old, target_modules=["q_proj", "v_proj"], base_model_name_or_path=str(tmp_path))
    _edit(new, target_modules=["v_proj", "q_proj"], base_model_name_or_path=str(tmp_path / "x" / ".."))
    (tmp_path / "x").mkdir()
    fuse_adapters(old, new, tmp_path / "out", fusion="average")


def _reshape(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[sorted(tensors)[0]] = torch.zeros(2, 7)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "new: no such folder"),
        (lambda f: (f / "adapter_config.json").unlink(), "new: no adapter there .adapter_config.json is"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter there .adapter_model.safetensors"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"half"), "not a readable safetensors file"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json:1: not valid JSON"),
        (lambda f: (f / "adapter_config.json").write_text('{"model_type": "t5"}'), "it has no peft_type"),
        (
            _reshape,
            r"layers\.0\.self_attn\.q_proj\.lora_A\.weight' has shape \(2, 32\) in .* and \(2, 7\) in",
        ),
    ],
)
def test_folders_that_hold_no_fitting_adapter_are_refused(
    spoil: Callable[[Path], Any], words: str, tmp_path: Path
):
    old, new = pair(tmp_path)
    spoil(new)
    with pytest.raises(ModelError, match=words):
        fuse_adapters(old, new, tmp_path / "out", fusion="average")
    assert not (tmp_path / "out").exists()


def test_an_output_in_use_is_left_as_it_is(tmp_path: Path):
    old, new = pair(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    fuse_adapters(old, new, out, fusion="average")  # empty is as good as new
    with pytest.raises(ModelError, match=r"found an adapter, .* or add --force"):
        fuse_adapters(old, new, out, fusion="average", average=1.0)
    fuse_adapters(old, new, out, fusion="average", average=1.0, force=True)
    found, wanted = (load_file(f / "adapter_model.safetensors") for f in (out, old))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    (out / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="found other files"):
        fuse_adapters(old, new, out, fusion="average", force=True)
    with pytest.raises(ModelError, match="found a file"):
        fuse_adapters(old, new, old / "adapter_config.json", fusion="average", force=True)


def test_values_per_unit_without_an_order_are_refused(tmp_path: Path):
    old, new = pair(tmp_path)
    with pytest.raises(ModelError, match="not the order of the parameters"):
        fuse_adapters(old, new, tmp_path / "out", Importance(torch.rand(8), torch.rand(8)))
