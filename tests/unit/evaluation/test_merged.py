"""Adapters added to their weights while prompts are answered: the same answers, and the model as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from kifuse.evaluation import merged
from kifuse.evaluation.generation import greedy_generate
from kifuse.evaluation.merged import merged_adapters
from tests.tiny import build_tokenizer
from tests.unit.evaluation.test_generation import FIRST, NEW, end_somewhere, plain_texts, shake

LONG = [[0] * 2**11]  # prompts enough to be worth it


def adapted(model: Any, scale: float = 0.3, **settings: Any) -> PeftModel:
    """A model with LoRA on all its linear layers, whose B is not zero."""
    settings = {"target_modules": "all-linear", "r": 3, "lora_alpha": 5, **settings}
    found = get_peft_model(shake(model), LoraConfig(**settings))
    randomise(found, scale)
    return found


def randomise(model: Any, scale: float = 0.3) -> None:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))


def layers_of(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def bits(model: Any) -> dict[str, tuple[int, bool, torch.Tensor]]:
    """Every parameter: which object it is, whether it is trained, its values."""
    return {
        name: (id(parameter), parameter.requires_grad, parameter.detach().clone())
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def assert_unchanged(model: Any, before: dict[str, tuple[int, bool, torch.Tensor]]) -> None:
    after = bits(model)
    assert list(after) == list(before)
    for name, (which, trained, values) in before.items():
        assert after[name][:2] == (which, trained), name
        assert torch.equal(after[name][2], values), name
    assert not any(layer.merged for layer in layers_of(model).values())


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_answers_are_those_of_plain_generation(
    kind: str, tiny_llama: Any, tiny_t5: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, draw = build_tokenizer("bytes"), random.Random(0)
    model = adapted(tiny_llama if kind == "llama" else tiny_t5)
    prompts = [[draw.randrange(FIRST, len(tokenizer)) for _ in range(3 + i % 17)] for i in range(24)]
    end_somewhere(model, tokenizer, prompts, kind == "t5")
    expected = plain_texts(model, tokenizer, prompts, kind == "t5")
    assert len(set(expected)) > len(prompts) // 2
    with model.disable_adapter():
        assert plain_texts(model, tokenizer, prompts, kind == "t5") != expected
    model.train()
    before, merges = bits(model), []
    monkeypatch.setattr(merged, "_LEAST_TOKENS", 1)
    monkeypatch.setattr(
        merged, "_sum", lambda layer, weight, add=merged._sum: merges.append(1) or add(layer, weight)
    )
    found = greedy_generate(model, tokenizer, prompts, encoder_decoder=kind == "t5", max_new_tokens=NEW)
    assert found == expected
    assert len(merges) == len(layers_of(model)) > 0
    assert_unchanged(model, before)
    assert model.training


def test_a_layer_multiplies_with_w_and_s_b_a_alone(tiny_llama: Any) -> None:
    model = adapted(tiny_llama)
    ids = torch.arange(FIRST, FIRST + 9)[None]
    expected = model(ids).logits
    weights = {
        name: layer.base_layer.weight
        + 5 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        for name, layer in layers_of(model).items()
    }
    with merged_adapters(model, LONG) as done:
        assert done
        for name, layer in layers_of(model).items():
            torch.testing.assert_close(layer.base_layer.weight, weights[name])
        randomise(model, 100.0)  # nobody looks at the adapter any more
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(ids).logits, expected, rtol=1e-2, atol=1e-2)


def test_all_active_adapters_are_added(tiny_llama: Any) -> None:
    model = adapted(tiny_llama)
    model.add_adapter("past", LoraConfig(target_modules="all-linear", r=6, lora_alpha=5))
    model.base_model.set_adapter(["default", "past"])
    randomise(model)
    ids = torch.arange(FIRST, FIRST + 9)[None]
    expected, before = model(ids).logits, bits(model)
    with merged_adapters(model, LONG) as done:
        assert done
        randomise(model, 100.0)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    randomise(model)
    assert_unchanged(model, before)
    assert model.active_adapters == ["default", "past"]


def test_weights_that_are_shared_stay_as_they_are_elsewhere(tiny_llama: Any) -> None:
    tiny_llama.config.tie_word_embeddings = True
    tiny_llama.tie_weights()
    model = adapted(tiny_llama, target_modules=["lm_head", "q_proj"])
    embedding = model.get_input_embeddings().weight
    assert embedding is model.get_output_embeddings().base_layer.weight
    values = embedding.detach().clone()
    with merged_adapters(model, LONG) as done:
        assert done
        assert model.get_input_embeddings().weight is embedding
        assert torch.equal(embedding, values)
        assert not torch.equal(model.get_output_embeddings().base_layer.weight, values)
    assert embedding is model.get_output_embeddings().base_layer.weight


@pytest.mark.parametrize("fails_in", ["the block", "the second layer"])
def test_a_failure_leaves_the_model_as_it_was(
    fails_in: str, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_llama)
    before, add, seen = bits(model), merged._sum, []

    def second_fails(layer: Any, weight: Any) -> Any:
        seen.append(layer)
        if fails_in == "the second layer" and len(seen) == 2:
            raise MemoryError
        return add(layer, weight)

    monkeypatch.setattr(merged, "_sum", second_fails)
    with pytest.raises(MemoryError), merged_adapters(model, LONG):
        assert fails_in == "the block"
        raise MemoryError
    assert len(seen) >= 2
    assert_unchanged(model, before)


def in_bf16(model: Any) -> Any:
    return model.to(torch.bfloat16)


def disabled(model: Any) -> Any:
    model.base_model.disable_adapter_layers()
    return model


def merged_by_its_owner(model: Any) -> Any:
    model.merge_adapter()
    return model


def watched(model: Any) -> Any:
    next(iter(layers_of(model).values())).lora_A["default"].register_forward_hook(lambda *_: None)
    return model


CHANGES: dict[str, Callable[[Any], Any]] = {
    "no adapter": lambda model: model.unload(),
    "bf16": in_bf16,
    "disabled": disabled,
    "merged by its owner": merged_by_its_owner,
    "watched": watched,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("case", [*CHANGES, *SETTINGS, "autocast", "few tokens", "much memory"])
def test_what_cannot_be_merged_exactly_or_is_not_worth_it_is_left_alone(
    case: str, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CHANGES.get(case, lambda model: model)(adapted(tiny_llama, **SETTINGS.get(case, {})))
    weights = {name: id(parameter) for name, parameter in model.named_parameters()}
    if case == "much memory":
        monkeypatch.setattr(merged, "_MOST_BYTES", 4 * 32 * 32)
    prompts = [[0] * 8] if case == "few tokens" else LONG
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"),
        merged_adapters(model, prompts) as done,
    ):
        assert not done
        assert {name: id(parameter) for name, parameter in model.named_parameters()} == weights
    layers = layers_of(model).values()
    assert all(layer.merged == (case == "merged by its owner") for layer in layers)
