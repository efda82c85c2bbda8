"""Model folders from elsewhere: what is damaged, pickled or incomplete is refused by name, soon."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kifuse.errors import ModelError
from kifuse.models.loading import load_backbone

WEIGHTS = "model.safetensors"
QUERY = "model.layers.0.self_attn.q_proj.weight"
Change = Callable[[Path], Any]


def settings(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def written(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def truncated(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def index(places: dict[str, str]) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (truncated, r"model\.safetensors is damaged"),
        (written(WEIGHTS, b""), r"model\.safetensors is damaged"),
        (written(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), r"model\.safetensors is damaged"),
        (weights(lambda t: t.pop(QUERY)), rf"{QUERY} is missing\. Missing weights would be random"),
        (weights(dict.clear), r"is missing \(21 tensors are wrong or missing\)"),
        (
            weights(lambda t: t.update({QUERY: torch.zeros(3, 32)})),
            r"has the shape \(3, 32\), expected",
        ),
        (pickled, r"pytorch_model\.bin is pickled, .* safetensors only"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"holds no weights; expected model\.safetensors"),
        (index({}), r"index\.json holds no weight_map"),
        (index({"a": "one.safetensors"}), r"one\.safetensors is missing"),
        (index({"a": "../other.safetensors"}), r"names '\.\./other\.safetensors', expected files of this"),
        (written("config.json", b"{"), r"config\.json:1: not valid JSON"),
        (written("config.json", b"[]"), r"config\.json holds no object"),
        (written("config.json", b'{"a":' + b"[" * 100_000), r"nested too deeply"),
        (settings(model_type="gpt2"), r"are wrong or missing"),
        (settings(hidden_size="x"), r"field 'hidden_size': TypeError: .* expected int, got str"),
        (settings(num_hidden_layers=10**9), r"num_hidden_layers: 1000000000, expected at most 1000"),
        (
            settings(vocab_size=10**12),
            r"a model of 64,000,\d+,\d+,\d+ values, its weights hold 50,528",
        ),
        (settings(num_attention_heads=0), r"not a model folder that transformers can load"),
        (written("adapter_config.json", b"{}"), r"name the base model"),
        (written("generation_config.json", b"[]"), r"not a model folder that transformers can load"),
        (written("tokenizer.json", b"\xff\x00"), r"not a model folder that transformers can load"),
        (written("tokenizer_config.json", b"[1]"), r"not a model folder that transformers can load"),
    ],
)
def test_a_damaged_model_folder_is_refused_by_name(
    change: Change, words: str, tiny_folder_llama: Path, tmp_path: Path
):
    folder = shutil.copytree(tiny_folder_llama, tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError, match=words) as refused:
        load_backbone(str(folder), precision="fp32")
    assert str(folder) in str(refused.value)


def test_weights_without_a_place_are_said(tiny_folder_llama: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_folder_llama, tmp_path / "model")
    settings(num_hidden_layers=1)(folder)
    said: list[str] = []
    load_backbone(str(folder), precision="fp32", say=said.append)
    assert len(said) == 1 and said[0].startswith("9 tensors of the model's files have no place in it")


def test_weights_in_several_files_are_read(tiny_folder_llama: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_folder_llama, tmp_path / "model")
    tensors = load_file(folder / WEIGHTS)
    halves = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for part in set(halves.values()):
        own = {name: tensors[name] for name, place in halves.items() if place == part}
        save_file(own, folder / part, metadata={"format": "pt"})
    index(halves)(folder)
    found = dict(load_backbone(str(folder), precision="fp32").model.named_parameters())
    assert torch.equal(found[QUERY], tensors[QUERY])
