"""What can be trained beside LoRA: each kind on tiny models, saved, loaded here and by standard tools."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, T5ForConditionalGeneration

from kifuse import load_adapter
from kifuse.adapters.kinds import refuse_pairing
from kifuse.config import AdapterConfig, load_config
from kifuse.errors import ConfigError, ModelError
from kifuse.methods.osf import OSF
from kifuse.models.loading import shrink_frozen
from tests.adapters import KINDS, add_adapter, close_factors, load_adapter_weights, save_adapter
from tests.tiny import build_llama, build_t5

pytestmark = pytest.mark.usefixtures("quick")

VOCABULARY = 64
BUILD: dict[str, Callable[[int], Any]] = {"llama": build_llama, "t5": build_t5}


def made(family: str, kind: str, seed: int = 0, method: Any = None, **settings: Any) -> Any:
    config = AdapterConfig.model_validate({"kind": kind, "rank": 2, "alpha": 8, "dropout": 0.0, **settings})
    model = BUILD[family](VOCABULARY)
    return add_adapter(model, config, encoder_decoder=family == "t5", seed=seed, method=method)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def moved(model: Any) -> Any:
    """Change all trained values, each its own way."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trained(model).values():
            p.add_(torch.randn(p.shape, generator=draw) * 0.1)
    return model


def logits(model: Any, family: str) -> Tensor:
    ids = torch.arange(3, 27).view(2, 12)
    extra = {"decoder_input_ids": ids[:, :4]} if family == "t5" else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **extra).logits


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_comes_back_as_it_was_saved(kind: str, family: str, tmp_path: Path):
    model = moved(made(family, kind))
    if kind == "osf":
        close_factors(model)  # as at a task's end: until then the same sum has other roundings
    save_adapter(model, tmp_path / "kept")
    expected = logits(model, family)
    fresh = made(family, kind, seed=1)
    assert not torch.equal(logits(fresh, family), expected)
    load_adapter_weights(fresh, tmp_path / "kept")
    assert torch.equal(logits(fresh, family), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("full", "osf")])
def test_the_peft_kinds_load_with_peft(kind: str, family: str, tmp_path: Path):
    model = moved(made(family, kind))
    save_adapter(model, tmp_path / "kept")
    loaded = PeftModel.from_pretrained(BUILD[family](VOCABULARY), tmp_path / "kept")
    assert torch.equal(logits(loaded, family), logits(model, family))


@pytest.mark.parametrize("family", BUILD)
def test_full_weights_load_with_torch_alone(family: str, tmp_path: Path):
    model = moved(made(family, "full"))
    save_adapter(model, tmp_path / "kept")
    base = BUILD[family](VOCABULARY)
    result = base.load_state_dict(load_file(tmp_path / "kept" / "adapter_model.safetensors"), strict=False)
    assert not result.unexpected_keys
    assert torch.equal(logits(base, family), logits(model, family))


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_tensor_of_a_kind_gets_a_gradient(kind: str, family: str):
    model = moved(made(family, kind))
    ids = torch.arange(3, 27).view(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, p in trained(model).items():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_kinds_train_what_they_say():
    assert {name.split(".")[-3] for name in trained(made("llama", "dora"))} == {
        "lora_A",
        "lora_B",
        "lora_magnitude_vector",
    }
    plain, stabilised = moved(made("llama", "lora")), moved(made("llama", "rslora"))
    scaling = {
        module.scaling["default"]
        for model in (plain, stabilised)
        for module in model.modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    assert scaling == {8 / 2, 8 / 2**0.5}
    shapes = {name.split(".")[-3]: tuple(p.shape) for name, p in trained(made("llama", "ia3")).items()}
    # outputs of keys and values, inputs of the second feed-forward matrix
    assert shapes == {"k_proj": (16, 1), "v_proj": (16, 1), "down_proj": (1, 64)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "lora", "rank": 4}, "adapters of rank 4"),
        ({"kind": "rslora", "rank": 4}, "rank-stabilised adapters of rank 4"),
        ({"kind": "dora", "rank": 4}, "DoRA adapters of rank 4"),
        ({"kind": "ia3", "rank": 4}, "(IA)3 adapters"),
        ({"kind": "full"}, "full fine-tuning of all weights"),
        ({"kind": "osf", "preserve": 0.25}, "orthogonal subspaces, 25% of the singular directions frozen"),
        ({"kind": "full", "target_modules": ["q", "v"]}, "full fine-tuning of q, v"),
    ],
)
def test_what_is_trained_is_said_in_a_few_words(settings: dict[str, Any], words: str):
    assert AdapterConfig.model_validate(settings).summary == words


def test_putting_an_adapter_on_warns_of_nothing(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(made("llama", "lora"), tmp_path / "kept")
        load_adapter(build_llama(VOCABULARY), tmp_path / "kept")


def test_one_kind_is_refused_where_peft_is_too_old_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kifuse.adapters.osf.version", lambda library: "0.20.0.dev0")
    words = r"kind: 'osf' needs PEFT 0\.21 or later, found 0\.20\.0\.dev0\. Run: pip install --upgrade peft"
    with pytest.raises(ModelError, match=words):
        refuse_pairing(AdapterConfig(kind="osf"), OSF, "osf")
    with pytest.raises(ModelError, match=words):
        made("llama", "osf")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match=r"model\.adapter\.kind: found 'dorra' .* Did you mean 'dora'"):
        load_config(
            None,
            {
                "model.name": "smollm2-135m",
                "model.adapter.kind": "dorra",
                "data.benchmark": "support-desk",
                "method.name": "kif",
                "output": "out",
            },
        )

    class Other:
        kind, target_modules = "dorra", None

    with pytest.raises(ModelError, match=r"model\.adapter\.kind: found 'dorra', expected one of lora"):
        add_adapter(build_llama(VOCABULARY), Other(), encoder_decoder=False, seed=0)


def test_full_trains_everything_and_keeps_tied_weights_tied(tmp_path: Path):
    model = made("t5", "full")
    assert len(trained(model)) == len(list(model.named_parameters()))
    assert model.lm_head.weight is model.shared.weight
    save_adapter(moved(model), tmp_path / "kept")
    fresh = made("t5", "full")
    load_adapter_weights(fresh, tmp_path / "kept")
    assert fresh.lm_head.weight is fresh.shared.weight is fresh.encoder.embed_tokens.weight
    assert torch.equal(fresh.shared.weight, model.shared.weight)


def test_full_trains_chosen_modules_only(tmp_path: Path):
    model = moved(made("llama", "full", target_modules=["v_proj", "layers.1.mlp"]))
    assert {name.removeprefix("model.layers.") for name in trained(model)} == {
        "0.self_attn.v_proj.weight",
        "1.self_attn.v_proj.weight",
        *(f"1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    save_adapter(model, tmp_path / "kept")
    described = json.loads((tmp_path / "kept" / "adapter_config.json").read_text(encoding="utf-8"))
    assert described["trained"] == "chosen weights" and described["tensors"] == 5
    assert len(load_file(tmp_path / "kept" / "adapter_model.safetensors")) == 5


def test_a_full_folder_is_refused_by_peft(tmp_path: Path):
    save_adapter(made("llama", "full"), tmp_path / "kept")
    with pytest.raises(Exception, match="peft_type"):
        PeftModel.from_pretrained(build_llama(VOCABULARY), tmp_path / "kept")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", BUILD)
def test_frozen_weights_in_bf16_give_the_same_bits_for_every_kind(family: str, kind: str):
    chosen = {"target_modules": ["v_proj" if family == "llama" else "v"]}
    ids = torch.arange(10, 34).reshape(2, 12)
    extra = {"decoder_input_ids": ids[:, :4]} if family == "t5" else {}
    found = []
    for shrink in (False, True):
        model = moved(made(family, kind, **chosen))
        if shrink:
            shrink_frozen(model, "bf16")
            assert any(p.dtype == torch.bfloat16 for p in model.parameters())
        assert all(p.dtype == torch.float32 for p in trained(model).values())
        with torch.autocast("cpu", torch.bfloat16):
            out = model(input_ids=ids, **extra).logits
        out.float().square().sum().backward()
        found.append((out, [p.grad for p in trained(model).values()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_full_of_all_weights_has_nothing_to_shrink():
    model = made("t5", "full")
    shrink_frozen(model, "bf16")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model.lm_head.weight is model.shared.weight


@pytest.mark.parametrize(
    ("saved", "wanted", "words"),
    [
        ("full", "lora", "holds weights of full fine-tuning, expected an adapter"),
        ("lora", "full", "holds an adapter .LORA., expected weights of full fine-tuning"),
        ("ia3", "lora", "does not hold 'base_model"),
        ("lora", "dora", "does not hold .*lora_magnitude_vector"),
        ("dora", "lora", "holds .*lora_magnitude_vector.*, which this model does not have"),
    ],
)
def test_another_kind_is_refused(saved: str, wanted: str, words: str, tmp_path: Path):
    save_adapter(made("llama", saved), tmp_path / "kept")
    model = made("llama", wanted)
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    with pytest.raises(ModelError, match=words):
        load_adapter_weights(model, tmp_path / "kept")
    assert all(torch.equal(p, before[name]) for name, p in trained(model).items())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_fewer_tensors_than_the_model_trains_are_refused(kind: str, tmp_path: Path):
    save_adapter(made("llama", kind, target_modules=["q_proj"]), tmp_path / "kept")
    with pytest.raises(ModelError, match=r"other modules, as it does not hold .*v_proj"):
        load_adapter_weights(made("llama", kind, target_modules=["q_proj", "v_proj"]), tmp_path / "kept")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_tensor_of_another_shape_is_named(kind: str, tmp_path: Path):
    save_adapter(made("llama", kind), tmp_path / "kept")
    file = tmp_path / "kept" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    save_file({**tensors, name: torch.zeros(3, 5)}, file)
    with pytest.raises(ModelError, match=rf"'{name}' has shape \(3, 5\), expected \("):
        load_adapter_weights(made("llama", kind), tmp_path / "kept")


def _edit(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter there"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter there"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"half"), "not a readable"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "no peft_type"),
        (lambda folder: _edit(folder, version=2), "version is 2, expected 1"),
    ],
)
def test_damaged_full_weights_are_refused(spoil: Callable[[Path], None], words: str, tmp_path: Path):
    save_adapter(made("llama", "full"), tmp_path / "kept")
    spoil(tmp_path / "kept")
    with pytest.raises(ModelError, match=words):
        load_adapter_weights(made("llama", "full"), tmp_path / "kept")


def test_saving_replaces_what_was_there_and_leaves_nothing_else(tmp_path: Path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old.txt").write_text("old", encoding="utf-8")
    (tmp_path / ".kept.partial").mkdir()
    save_adapter(made("llama", "full"), tmp_path / "kept")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "kept",
    ]


def test_the_file_names_the_layers_in_order(tmp_path: Path):
    layers = ["up_proj", "q_proj", "v_proj", "down_proj", "k_proj", "gate_proj", "o_proj"]
    save_adapter(made("llama", "lora", target_modules=layers), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config["target_modules"] == sorted(layers)


def test_a_module_that_holds_no_weights_is_refused():
    with pytest.raises(ModelError, match="act_fn hold no weights to train"):
        made("llama", "full", target_modules=["act_fn"])


def test_a_module_that_peft_cannot_adapt_is_refused():
    with pytest.raises(ModelError, match="no lora adapter can be put on norm"):
        made("llama", "lora", target_modules=["norm"])


def test_ia3_of_an_unknown_family_asks_for_names(tiny_llama: LlamaForCausalLM):
    tiny_llama.model.layers[0].mlp.down_proj = tiny_llama.model.layers[1].mlp.down_proj = nn.Identity()
    with pytest.raises(ModelError, match=r"places of \(IA\)3 in a 'llama' model are not known"):
        add_adapter(tiny_llama, AdapterConfig(kind="ia3"), encoder_decoder=False, seed=0)


def test_an_adapted_embedding_comes_back(
    tiny_t5: T5ForConditionalGeneration, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    config = AdapterConfig(rank=2, dropout=0.0, target_modules=["shared", "q"])
    model = moved(add_adapter(tiny_t5, config, encoder_decoder=True, seed=0))
    save_adapter(model, tmp_path / "kept")
    fresh = add_adapter(build_t5(len(tiny_tokenizer)), config, encoder_decoder=True, seed=1)
    load_adapter_weights(fresh, tmp_path / "kept")
    for name, p in trained(fresh).items():
        assert torch.equal(p, trained(model)[name])
