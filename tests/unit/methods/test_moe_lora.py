"""MoE-LoRA: gates, the mixture of a layer, and what trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.methods.moe_lora import Experts, MoELoRA
from tests.adapters import add_adapter
from tests.reference import moe_lora
from tests.tiny import build_llama, build_t5

pytestmark = pytest.mark.usefixtures("quick")


def experts(count: int = 3, top_k: int = 0, seed: int = 0) -> Experts:
    torch.manual_seed(seed)
    found = Experts(6, 4, experts=count, rank=2, scale=1.5, top_k=top_k, dropout=0.0)
    torch.nn.init.normal_(found.b)
    return found


@given(st.integers(1, 5), st.integers(0, 6), st.integers(0, 99))
def test_a_layer_adds_what_the_equation_says(count: int, top_k: int, seed: int):
    layer, x = experts(count, top_k, seed), torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        wanted = moe_lora.added(x, layer.a, layer.b, layer.router, 1.5, min(top_k, count))
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
        gates = layer.gates(x)
    torch.testing.assert_close(gates.sum(dim=-1), torch.ones(5))
    assert int((gates > 0).sum(dim=-1).max()) <= (min(top_k, count) or count)


def test_all_experts_by_name_are_all_experts_and_like_ones_are_a_single_lora():
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(experts(3, top_k=3)(x), experts(3, top_k=0)(x))
        alike = experts(3)
        for p in (alike.a, alike.b):
            p.copy_(p[:1].expand_as(p))
        torch.testing.assert_close(alike(x), 1.5 * x @ alike.a[0].T @ alike.b[0].T)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_nothing_changes_at_first_and_only_experts_train(family: str):
    build = {"llama": build_llama, "t5": build_t5}[family]
    ids = torch.arange(3, 27).view(2, 12)
    more: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "labels": ids}
    before = build(64).eval()(input_ids=ids, **more).logits
    model = add_adapter(
        build(64), AdapterConfig(rank=2), encoder_decoder=family == "t5", seed=0, method=MoELoRA()
    ).eval()
    out = model(input_ids=ids, **more)
    torch.testing.assert_close(out.logits, before, rtol=0, atol=1e-5)
    out.loss.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[2] for n in trained} == {"a", "b", "router"}
    assert all(".experts." in n for n in trained)


def test_a_layer_that_is_not_linear_is_refused():
    with pytest.raises(ModelError, match=r"embed_tokens is a Embedding, expected a linear layer"):
        add_adapter(
            build_llama(64),
            AdapterConfig(target_modules=["embed_tokens"]),
            encoder_decoder=False,
            seed=0,
            method=MoELoRA(),
        )
