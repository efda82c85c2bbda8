"""Frozen weights in 8 or 4 bits: what is refused, what is asked of transformers, and that it trains."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kifuse.config import AdapterConfig, load_config
from kifuse.errors import ConfigError, ModelError
from kifuse.models.loading import load_backbone, quantization_config, shrink_frozen
from tests.adapters import add_adapter, load_adapter_weights, save_adapter

CPU = torch.device("cpu")
installed = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def test_without_bitsandbytes_the_message_says_how_to_get_it(
    tiny_folder_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more)
    )
    with pytest.raises(ModelError, match=r"'4bit' needs .* pip install bitsandbytes"):
        load_backbone(str(tiny_folder_llama), quantization="4bit", device=CPU)
    assert load_backbone(str(tiny_folder_llama), quantization="none", device=CPU).model is not None


def test_an_unknown_quantization_is_refused():
    with pytest.raises(ModelError, match="found '3bit', expected one of none, 8bit, 4bit"):
        quantization_config("3bit", "fp32")


def test_what_is_asked_of_transformers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    assert quantization_config("none", "bf16") is None
    assert quantization_config("8bit", "bf16").load_in_8bit
    four = quantization_config("4bit", "bf16")
    assert four.load_in_4bit and four.bnb_4bit_quant_type == "nf4"
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_config("4bit", "fp32").bnb_4bit_compute_dtype == torch.float32


def test_full_fine_tuning_of_quantised_weights_is_refused_in_the_configuration(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model:\n  name: smollm2-135m\n  quantization: 8bit\n  adapter:\n    kind: full\n"
        f"data:\n  benchmark: support-desk\nmethod:\n  name: kif\noutput: {tmp_path / 'out'}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"run.yaml:3: model.quantization: found '8bit' .* expected 'none'"):
        load_config(file)
    for change in ({"model.adapter.kind": "dora"}, {"model.quantization": "none"}):
        load_config(file, change)


def test_full_fine_tuning_of_a_quantised_model_is_refused(tiny_llama: LlamaForCausalLM):
    tiny_llama.is_quantized = True
    with pytest.raises(ModelError, match="'full' cannot train quantised weights"):
        add_adapter(tiny_llama, AdapterConfig(kind="full"), encoder_decoder=False, seed=0)


def test_dora_on_8_bit_weights_is_refused_on_a_cpu(tiny_llama: LlamaForCausalLM):
    tiny_llama.is_loaded_in_8bit = True
    with pytest.raises(ModelError, match=r"'dora' on 8-bit weights needs a GPU\. Use .*'4bit'"):
        add_adapter(tiny_llama, AdapterConfig(kind="dora"), encoder_decoder=False, seed=0)


@pytest.fixture
def folder(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model whose matrices are as large as a block of quantisation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@installed
@pytest.mark.parametrize(
    ("bits", "kind"),
    [("8bit", "lora"), ("8bit", "ia3"), ("4bit", "lora"), ("4bit", "dora"), ("4bit", "ia3")],
)
def test_a_quantised_model_trains_and_its_adapter_comes_back(
    bits: str, kind: str, folder: Path, tmp_path: Path
):
    def made(seed: int):
        backbone = load_backbone(str(folder), quantization=bits, precision="fp32", device=CPU)
        layer = backbone.model.model.layers[0].self_attn.q_proj
        assert type(layer).__name__ == {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[bits]
        # what narrow_4bit_layer looks at
        assert bits == "8bit" or isinstance(layer.support_avx512bf16_for_cpu, int)
        config = AdapterConfig.model_validate({"kind": kind, "rank": 2, "dropout": 0.0})
        model = add_adapter(backbone.model, config, encoder_decoder=False, seed=seed)
        shrink_frozen(model, backbone.precision)
        return model

    model = made(0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=1e-2)
    ids = torch.arange(10, 34).view(2, 12)
    losses = []
    for step in range(4):
        model.eval() if step == 2 else model.train()  # scored in the middle, as a run does
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    save_adapter(model, tmp_path / "kept")
    fresh = made(1)
    load_adapter_weights(fresh, tmp_path / "kept")
    with torch.no_grad():
        assert torch.equal(fresh.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
