"""Matrices decomposed, trained and merged: what the boundary between tasks keeps, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.osf.layer import OSFLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from kifuse.adapters.kinds import refuse_pairing
from kifuse.config import AdapterConfig
from kifuse.errors import ConfigError, ModelError
from kifuse.methods.osf import OSF
from kifuse.methods.sequential import Sequential
from kifuse.registry import build_method
from tests.adapters import (
    add_adapter,
    close_factors,
    frozen_tensors,
    learned_weights,
    load_adapter_weights,
    open_factors,
    save_adapter,
    set_learned_weights,
)
from tests.tiny import build_llama, build_t5

pytestmark = pytest.mark.usefixtures("quick")

VOCABULARY = 64
BUILD: dict[str, Any] = {"llama": build_llama, "t5": build_t5}
FAMILIES = pytest.mark.parametrize("family", BUILD)


def made(family: str, model: Any = None, **settings: Any) -> Any:
    config = AdapterConfig.model_validate({"kind": "osf", **settings})
    base = BUILD[family](VOCABULARY) if model is None else model
    return add_adapter(base, config, encoder_decoder=family == "t5", seed=0)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def learn(model: Any, seed: int = 1, size: float = 0.05) -> None:
    """Move all factors, as a training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trained(model).values():
            p.add_(torch.randn(p.shape, generator=draw) * size)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learned_weights(model).items()}


def logits(model: Any) -> Tensor:
    ids = torch.arange(3, 27).view(2, 12)
    extra = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **extra).logits


def layers(model: Any) -> dict[str, OSFLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, OSFLayer)}


def own(name: str) -> str:
    """The name of a layer's weight in the model without factors."""
    return f"{name.removeprefix('base_model.model.')}.weight"


def product(layer: OSFLayer) -> Tensor:
    """U_l S_l V_l as it is now."""
    factors: Any = layer.osf_svd_params["default"]
    return (factors["U_low"] * factors["S_low"]) @ factors["V_low"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@FAMILIES
def test_the_function_is_the_same_on_both_sides_of_a_boundary(family: str):
    untouched = logits(BUILD[family](VOCABULARY))
    model = made(family)
    torch.testing.assert_close(logits(model), untouched, rtol=1e-4, atol=1e-4)
    for task in range(3):
        open_factors(model, 0.5 + 0.1 * task)
        learn(model, seed=task)
        reached = logits(model)
        close_factors(model)
        torch.testing.assert_close(logits(model), reached, rtol=1e-4, atol=1e-4)
        kept = logits(model)
        open_factors(model, 0.6)
        torch.testing.assert_close(logits(model), kept, rtol=1e-4, atol=1e-4)
        close_factors(model)
        assert torch.equal(logits(model), kept)
    assert (kept - untouched).abs().max() > 1e-2


@FAMILIES
def test_what_was_learned_is_in_the_weights_after_the_boundary(family: str, tmp_path: Path):
    model = made(family)
    before = weights(model)
    learn(model)
    frozen = {name: before[own(name)] - start(each) for name, each in layers(model).items()}
    wanted = {name: frozen[name] + product(each).detach() for name, each in layers(model).items()}
    close_factors(model)
    save_adapter(model, tmp_path / "kept")
    again = made(family)
    load_adapter_weights(again, tmp_path / "kept")
    for each in (model, again):
        for name, weight in wanted.items():
            torch.testing.assert_close(weights(each)[own(name)], weight, rtol=1e-5, atol=1e-6)
            assert (weight - before[own(name)]).abs().max() > 1e-2
        open_factors(each, 0.5)
        assert same(weights(each), weights(model))
    assert torch.equal(logits(again), logits(model))


def start(layer: OSFLayer) -> Tensor:
    """U_l0 S_l0 V_l0."""
    u, s, v = (getattr(layer, f"_osf_{x}_low_init")["default"] for x in "USV")
    return (u * s) @ v


def test_peft_s_unload_gives_back_the_model_without_what_was_learned():
    """Why it is not called: the published example of continual learning does."""
    model = made("llama")
    untouched = logits(BUILD["llama"](VOCABULARY))
    learn(model)
    assert (logits(model) - untouched).abs().max() > 1e-3
    assert torch.equal(logits(model.unload()), untouched)


def test_an_open_and_a_closed_model_are_saved_alike(tmp_path: Path):
    model = made("llama")
    learn(model)
    save_adapter(model, tmp_path / "open")
    close_factors(model)
    save_adapter(model, tmp_path / "closed")
    close_factors(model)  # again: nothing is merged twice
    save_adapter(model, tmp_path / "again")
    found = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("open", "closed", "again")]
    assert same(found[0], found[1]) and same(found[1], found[2])


@FAMILIES
def test_a_saved_folder_loads_with_torch_alone(family: str, tmp_path: Path):
    model = made(family)
    learn(model)
    close_factors(model)
    save_adapter(model, tmp_path / "kept")
    base = BUILD[family](VOCABULARY)
    found = load_file(tmp_path / "kept" / "adapter_model.safetensors")
    assert not base.load_state_dict(found, strict=False).unexpected_keys
    assert torch.equal(logits(base), logits(model))
    described = json.loads((tmp_path / "kept" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (described["format"], described["tensors"]) == ("kifuse full weights", len(found))
    as_full = add_adapter(
        BUILD[family](VOCABULARY),
        AdapterConfig.model_validate({"kind": "full", "target_modules": [n[:-7] for n in found]}),
        encoder_decoder=family == "t5",
        seed=0,
    )
    load_adapter_weights(as_full, tmp_path / "kept")
    assert torch.equal(logits(as_full), logits(model))


def test_the_largest_directions_of_the_updated_matrix_are_frozen():
    model = made("llama")
    learn(model, size=1.0)
    close_factors(model)
    merged = weights(model)
    open_factors(model, 0.25)
    kept = frozen_tensors(model)
    for name, layer in layers(model).items():
        weight = merged[own(name)]
        u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
        k = int(0.25 * len(s))
        assert layer.effective_rank["default"] == k
        rest = (u[:, k:] * s[k:]) @ v[k:]
        torch.testing.assert_close(start(layer).double(), rest, rtol=1e-5, atol=1e-5)
        # what was learned is large enough to have changed which directions these are
        first = torch.linalg.svd(weights(made("llama"))[own(name)])[0][:, :k]
        assert (first.mT @ u[:, :k].float()).square().sum() < 0.9 * k
        prefix = f"{name}.osf_svd_params.default"
        for kept_one, high in ((kept[f"{prefix}.U_low"], u), (kept[f"{prefix}.V_low"].mT, v.mT)):
            columns = high[:, :k] if kept_one.shape[1] == k else high[:, k:]
            inside = columns.float() @ (columns.float().mT @ kept_one)
            torch.testing.assert_close(inside, kept_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("share", "ks"), [(0.5, {16, 8}), (0.01, {1}), (0.99, {31, 15}), (1.0, {31, 15})])
def test_at_least_one_direction_is_frozen_and_one_is_trained(share: float, ks: set[int]):
    # q_proj (32, 32), v_proj (16, 32); 4% of 16 are none
    model = made("llama", preserve=0.04)
    assert {layer.effective_rank["default"] for layer in layers(model).values()} == {1}
    open_factors(model, share)
    assert {layer.effective_rank["default"] for layer in layers(model).values()} == ks
    for name, p in trained(model).items():
        assert p.numel() and p.shape[-1 if "U_low" in name or "S_low" in name else 0] in (
            {32 - k for k in ks} | {16 - k for k in ks}
        )


def test_what_a_training_that_was_cut_short_has_left_is_dropped():
    whole, broken = made("llama"), made("llama")
    open_factors(broken, 0.5)
    learn(broken)
    for model in (whole, broken):
        open_factors(model, 0.5)
    assert all(torch.equal(p, trained(whole)[name]) for name, p in trained(broken).items())
    torch.testing.assert_close(logits(broken), logits(whole), rtol=0, atol=0)


def test_decomposing_once_is_enough_for_the_first_task(monkeypatch: pytest.MonkeyPatch):
    model = made("llama")
    before = trained(model)
    calls: list[int] = []
    monkeypatch.setattr(OSFLayer, "update_layer", lambda *args, **kwargs: calls.append(1))
    open_factors(model, 0.5)
    assert not calls and all(p is before[name] for name, p in trained(model).items())
    open_factors(model, 0.5)  # it may have been trained since
    assert len(calls) == 4


def test_weights_are_put_back_as_they_were_before_any_task():
    model = made("llama")
    before = weights(model)
    learn(model)
    close_factors(model)
    set_learned_weights(model, before)
    assert same(weights(model), before)
    assert torch.equal(logits(model), logits(build_llama(VOCABULARY)))
    open_factors(model, 0.5)
    fresh = made("llama")
    assert all(torch.equal(p, trained(fresh)[name]) for name, p in trained(model).items())


def test_gradients_are_projected_while_it_is_open_and_no_hook_stays():
    model = made("llama", preserve=0.25)
    ids = torch.arange(3, 27).view(2, 12)

    def hooks() -> int:
        return sum(len(p._backward_hooks or ()) for p in trained(model).values())

    for _ in range(2):
        assert hooks() == 2 * 4
        model.train()(input_ids=ids, labels=ids).loss.backward()
        for name, layer in layers(model).items():
            weight = weights(model)[own(name)]
            u, _, v = torch.linalg.svd(weight)
            k = layer.effective_rank["default"]
            factors: Any = layer.osf_svd_params["default"]
            assert (u[:, :k].mT @ factors["U_low"].grad).abs().max() < 1e-6
            assert (factors["V_low"].grad @ v[:k].mT).abs().max() < 1e-6
            assert factors["U_low"].grad.abs().max() > 1e-5
        learn(model)
        close_factors(model)
        assert hooks() == 0
        open_factors(model, 0.25)


def test_weights_that_cannot_be_decomposed_are_refused():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=VOCABULARY))
    with pytest.raises(ModelError, match=r"c_attn is a Conv1D, and 'osf' decomposes"):
        made("llama", gpt2)
    with pytest.raises(ModelError, match=r"embed_tokens is a Embedding, and 'osf' decomposes"):
        made("llama", target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match=r"lm_head shares its weight with shared"):
        made("t5", target_modules=["lm_head"])
    with pytest.raises(ModelError, match=r"self_attn\.q_proj, which is torch\.bfloat16 and would lose them"):
        made("llama", build_llama(VOCABULARY).bfloat16())
    quantised: Any = build_llama(VOCABULARY)
    quantised.is_quantized = True
    with pytest.raises(ModelError, match=r"'osf' cannot decompose quantised weights"):
        made("llama", quantised)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_configuration_with_quantised_weights_is_refused(bits: str):
    from kifuse.config import load_config

    sections = {"model.name": "smollm2-135m", "model.quantization": bits, "model.adapter.kind": "osf"}
    more = {"data.benchmark": "support-desk", "method.name": "osf", "output": "out"}
    with pytest.raises(ConfigError, match=r"'none' with model\.adapter\.kind 'osf', as quantised"):
        load_config(None, {**sections, **more})


def test_folders_of_other_kinds_and_shapes_are_refused(tmp_path: Path):
    save_adapter(made("llama"), tmp_path / "kept")
    with pytest.raises(ModelError, match=r"does not hold 'model\.layers\.0\.self_attn\.o_proj\.weight'"):
        load_adapter_weights(made("llama", target_modules=["q_proj", "o_proj"]), tmp_path / "kept")
    plain = add_adapter(build_llama(VOCABULARY), AdapterConfig(rank=2), encoder_decoder=False, seed=0)
    with pytest.raises(ModelError, match="holds weights of full fine-tuning, expected an adapter"):
        load_adapter_weights(plain, tmp_path / "kept")
    save_adapter(plain, tmp_path / "lora")
    with pytest.raises(ModelError, match=r"holds an adapter \(LORA\), expected weights"):
        load_adapter_weights(made("llama"), tmp_path / "lora")


def test_the_kind_and_the_method_go_together_only():
    osf, lora = AdapterConfig(kind="osf"), AdapterConfig()
    refuse_pairing(osf, OSF(), "osf")
    refuse_pairing(lora, Sequential(), "sequential")
    with pytest.raises(ModelError, match=r"model\.adapter\.kind: found 'lora', expected 'osf': 'osf' trains"):
        refuse_pairing(lora, OSF(), "osf")
    for name in ("kif", "sequential", "replay"):
        with pytest.raises(ModelError, match=rf"method\.name: found '{name}', expected 'osf'"):
            refuse_pairing(osf, build_method(name), name)
