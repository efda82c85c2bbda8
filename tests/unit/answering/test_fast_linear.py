"""Packed weights and merged adapters while prompts are answered: the same answers, and the model as it was.

What is merged is tested with oneDNN's products and without: which of them a run has, its processor says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from kifuse.answering import fast_linear as products
from kifuse.answering.fast_linear import quick_products
from kifuse.answering.generation import greedy_generate
from tests.tiny import build_tokenizer
from tests.unit.answering.test_generation import FIRST, NEW, end_somewhere, plain_texts, shake

LONG = [[0] * 2**13]  # prompts enough to be worth it


@pytest.fixture(params=["packed", "plain"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether oneDNN multiplies, whatever the processor."""
    return multiply_with_onednn(monkeypatch, request.param == "packed")


def multiply_with_onednn(monkeypatch: pytest.MonkeyPatch, really: bool = True) -> bool:
    if really and torch.cpu.get_capabilities().get("architecture") != "x86_64":
        pytest.skip("oneDNN's products are tried on x86-64 only")
    dtypes = frozenset({torch.float32, torch.bfloat16} if really else ())
    monkeypatch.setattr(products, "_dtypes", lambda: dtypes)
    monkeypatch.setattr(products, "_LEAST_WIDTH", 1)
    return really


def needs_bf16() -> None:
    """Skip where the processor multiplies nothing in bf16."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no products in bf16")


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
    assert not packed_layers(model)


def packed_layers(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def merged_layers(model: Any) -> list[str]:
    return [name for name, layer in layers_of(model).items() if layer.merged]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_answers_are_those_of_plain_generation(
    kind: str, packed: bool, tiny_llama: Any, tiny_t5: Any, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(products, "_LEAST_TOKENS", {torch.float32: 1})
    monkeypatch.setattr(
        products, "merged_weight", lambda layer, add=products.merged_weight: merges.append(1) or add(layer)
    )
    products_of = count_products(monkeypatch)
    found = greedy_generate(model, tokenizer, prompts, encoder_decoder=kind == "t5", max_new_tokens=NEW)
    assert found == expected
    assert len(merges) == len(layers_of(model)) > 0
    assert bool(products_of) == packed
    assert_unchanged(model, before)
    assert model.training


def count_products(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The precision of each product of oneDNN, as they come."""
    seen: list[torch.dtype] = []
    build = products._product

    def counted(linear: nn.Linear, weight: Any, dtype: torch.dtype, packs: bool) -> Any:
        forward = build(linear, weight, dtype, packs)
        return lambda x: seen.append(dtype) or forward(x)

    monkeypatch.setattr(products, "_product", counted)
    return seen


def test_a_layer_multiplies_with_w_and_s_b_a_alone(packed: bool, tiny_llama: Any) -> None:
    model = adapted(tiny_llama)
    ids = torch.arange(FIRST, FIRST + 9)[None]
    expected = model(ids).logits
    weights = {
        name: layer.base_layer.weight
        + 5 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        for name, layer in layers_of(model).items()
    }
    with quick_products(model, LONG):
        assert merged_layers(model) == list(weights)
        assert bool(packed_layers(model)) == packed
        for name, layer in layers_of(model).items():
            x = torch.randn(2, 3, weights[name].shape[1])
            torch.testing.assert_close(layer(x), x @ weights[name].T, rtol=1e-4, atol=1e-4)
        randomise(model, 100.0)  # nobody looks at the adapter any more
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(ids).logits, expected, rtol=1e-2, atol=1e-2)


def test_all_active_adapters_are_added(packed: bool, tiny_llama: Any) -> None:
    model = adapted(tiny_llama)
    model.add_adapter("past", LoraConfig(target_modules="all-linear", r=6, lora_alpha=5))
    model.base_model.set_adapter(["default", "past"])
    randomise(model)
    ids = torch.arange(FIRST, FIRST + 9)[None]
    expected, before = model(ids).logits, bits(model)
    with quick_products(model, LONG):
        assert merged_layers(model)
        randomise(model, 100.0)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    randomise(model)
    assert_unchanged(model, before)
    assert model.active_adapters == ["default", "past"]


def test_weights_that_are_shared_stay_as_they_are_elsewhere(packed: bool, tiny_llama: Any) -> None:
    tiny_llama.config.tie_word_embeddings = True
    tiny_llama.tie_weights()
    model = adapted(tiny_llama, target_modules=["lm_head", "q_proj"])
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    assert embedding is head.base_layer.weight
    values, x = embedding.detach().clone(), torch.randn(5, embedding.shape[1])
    before = head.base_layer(x)
    with quick_products(model, LONG):
        assert merged_layers(model)
        assert model.get_input_embeddings().weight is embedding
        assert torch.equal(embedding, values)
        assert not torch.allclose(head.base_layer(x), before, rtol=1e-2, atol=1e-2)
    assert embedding is model.get_output_embeddings().base_layer.weight


@pytest.mark.parametrize("fails_in", ["the block", "the second layer"])
def test_a_failure_leaves_the_model_as_it_was(
    fails_in: str, packed: bool, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tiny_llama)
    before, add, seen = bits(model), products.merged_weight, []

    def second_fails(layer: Any) -> Any:
        seen.append(layer)
        if fails_in == "the second layer" and len(seen) == 2:
            raise MemoryError
        return add(layer)

    monkeypatch.setattr(products, "merged_weight", second_fails)
    with pytest.raises(MemoryError), quick_products(model, LONG):
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
def test_adapters_that_cannot_be_merged_exactly_or_are_not_worth_it_stay_beside_their_layers(
    case: str, packed: bool, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if packed and case in ("bf16", "autocast"):
        needs_bf16()
    model = CHANGES.get(case, lambda model: model)(adapted(tiny_llama, **SETTINGS.get(case, {})))
    weights = {name: id(parameter) for name, parameter in model.named_parameters()}
    merged, ids = merged_layers(model), torch.arange(FIRST, FIRST + 9)[None]
    if case == "much memory":
        monkeypatch.setattr(products, "_MOST_BYTES", 4 * 32 * 32)
    prompts = [[0] * 8] if case == "few tokens" else LONG
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"), torch.no_grad():
        expected = model(ids).logits
        with quick_products(model, prompts):
            assert {name: id(parameter) for name, parameter in model.named_parameters()} == weights
            assert merged_layers(model) == merged
            assert bool(packed_layers(model)) == (packed and case != "few tokens")
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not packed_layers(model)
    assert bool(merged) == (case == "merged by its owner")


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_in_bf16_packed_weights_give_the_same_bits(
    how: str, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_bf16()
    multiply_with_onednn(monkeypatch)
    model = adapted(tiny_llama)
    if how == "weights":
        model = model.to(torch.bfloat16)
    ids = torch.randint(FIRST, 60, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"), torch.no_grad():
        expected = model(ids).logits
        seen = count_products(monkeypatch)
        with quick_products(model, LONG):
            found = model(ids).logits
    assert len(seen) == len(plain_linears(model)) and set(seen) == {torch.bfloat16}
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def plain_linears(model: Any) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) is nn.Linear]


def test_what_the_model_wants_in_full_precision_under_autocast_it_gets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_bf16()
    multiply_with_onednn(monkeypatch)
    layer, x = nn.Linear(64, 32), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), quick_products(layer, LONG):
        assert packed_layers(layer)
        assert layer(x).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("rows", [(), (1,), (3, 7), (2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packs", [True, False])
def test_a_product_is_that_of_the_plain_layer(
    rows: tuple[int, ...], bias: bool, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_with_onednn(monkeypatch)
    monkeypatch.setattr(products, "_MOST_BYTES", 2**31 if packs else 1)
    draw = torch.Generator().manual_seed(len(rows))
    layer, x = nn.Linear(70, 33, bias=bias), torch.randn(*rows, 70, 2, generator=draw)[..., 0]
    expected = layer(x)
    with torch.no_grad(), quick_products(layer, LONG):
        assert packed_layers(layer) == [""]
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert not packed_layers(layer)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda *_: None)
    return layer


def replaced(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x  # as Accelerate's offloading does
    return layer


LEFT_ALONE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "a hook before it": hooked,
    "another forward": replaced,
    "parametrised": lambda layer: nn.utils.parametrizations.orthogonal(layer),
    "float64": lambda layer: layer.double(),
    "another device": lambda layer: layer.to("meta"),
    "a kind of its own": lambda layer: nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4),
}


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_a_layer_that_is_not_plain_is_left_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_with_onednn(monkeypatch)
    layer = LEFT_ALONE[kind](nn.Linear(8, 8))
    before = dict(vars(layer))
    with quick_products(layer, LONG):
        assert dict(vars(layer)) == before
    assert dict(vars(layer)) == before


@pytest.mark.parametrize(
    ("tokens", "precision", "width", "expected"),
    [
        (1023, "fp32", 64, False),
        (1024, "fp32", 64, True),
        (8192, "fp32", 63, False),
        (8191, "bf16", 64, False),
        (8192, "bf16", 64, True),
    ],
)
def test_few_tokens_and_narrow_layers_are_not_worth_it(
    tokens: int, precision: str, width: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision == "bf16":
        needs_bf16()
    multiply_with_onednn(monkeypatch)
    monkeypatch.setattr(products, "_LEAST_WIDTH", 64)
    layer = nn.Linear(128, width)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        quick_products(layer, [[0] * (tokens - 1000), [0] * 1000]),
    ):
        assert bool(packed_layers(layer)) == expected


@pytest.mark.parametrize(
    ("about", "mkl", "enabled", "expected"),
    [
        ({"architecture": "x86_64", "cpu_name": "AMD EPYC"}, True, True, {torch.float32, torch.bfloat16}),
        ({"architecture": "x86_64", "cpu_name": "AMD EPYC"}, False, True, {torch.bfloat16}),
        ({"architecture": "x86_64", "cpu_name": "AMD EPYC"}, True, False, set()),
        ({"architecture": "x86_64", "cpu_name": "Intel(R) Xeon(R)"}, True, True, {torch.bfloat16}),
        ({"architecture": "aarch64", "cpu_name": "Neoverse-V1"}, False, True, set()),
        ({}, True, True, set()),
    ],
)
def test_the_processor_says_what_onednn_multiplies(
    about: dict[str, str],
    mkl: bool,
    enabled: bool,
    expected: set[torch.dtype],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: about)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    with torch.backends.mkldnn.flags(enabled=enabled):
        assert products._dtypes() == expected
