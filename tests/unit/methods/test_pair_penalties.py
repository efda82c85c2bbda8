"""The penalties of O-LoRA, N-LoRA and ELLA: when they are 0, where they lead, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kifuse.errors import ConfigError
from kifuse.methods.base import Method
from kifuse.methods.ella import ELLA
from kifuse.methods.inclora import IncLoRA
from kifuse.methods.nlora import NLoRA
from kifuse.methods.olora import OLoRA
from kifuse.methods.pairs import PairPenalty
from kifuse.methods.parameters import Parameters
from kifuse.registry import build_method
from tests.reference import ella, nlora, olora
from tests.unit.methods.by_hand import Bare

A, B = "layer.lora_A.default.weight", "layer.lora_B.default.weight"

Pairs = list[tuple[Tensor, Tensor]]
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 5)


def drawn(seed: int, rank: int, inputs: int, outputs: int, tasks: int) -> Pairs:
    """The (A, B) of some tasks."""
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(rank, inputs, generator=draw), torch.randn(outputs, rank, generator=draw))
        for _ in range(tasks)
    ]


def parameters(pairs: Pairs) -> Parameters:
    """The last pair is trained, those before it are stored."""
    *earlier, (a, b) = pairs
    past = (
        {A: torch.cat([a for a, _ in earlier]), B: torch.cat([b for _, b in earlier], 1)} if earlier else {}
    )
    return Parameters([(A, nn.Parameter(a.clone())), (B, nn.Parameter(b.clone()))], past)


def size(method: PairPenalty, pairs: Pairs) -> float:
    return float(sum(part.detach() for part in method.parts(parameters(pairs))))


def gradients(method: Method, pairs: Pairs) -> list[Tensor]:
    """What the method adds to a gradient of 0."""
    params = parameters(pairs)
    for p in params.tensors:
        p.grad = torch.zeros_like(p)
    method.on_gradients(Bare(params))
    return [p.grad for p in params.tensors if p.grad is not None]


LITERAL: list[tuple[Method, Any]] = [
    (OLoRA(orthogonality=0.7, norm=0.3), lambda layers: olora.penalty(layers, 0.7, 0.3, True)),
    (OLoRA(orthogonality=0.7, penalty="absolute"), lambda layers: olora.penalty(layers, 0.7, 0.0, False)),
    (OLoRA(orthogonality=0.0, norm=0.3), lambda layers: olora.penalty(layers, 0.0, 0.3, True)),
    (NLoRA(strength=0.2), lambda layers: nlora.penalty(layers, 0.2, "BA")),
    (ELLA(strength=0.2), lambda layers: ella.penalty(layers, 0.2, False)),
    (ELLA(strength=0.2, normalise=True), lambda layers: ella.penalty(layers, 0.2, True)),
]


@pytest.mark.parametrize(("method", "literal"), LITERAL)
@given(seed=seeds, rank=sizes, inputs=sizes, outputs=sizes, tasks=st.integers(1, 4))
def test_the_gradients_are_those_of_the_equations(
    method: Method, literal: Any, seed: int, rank: int, inputs: int, outputs: int, tasks: int
):
    pairs = drawn(seed, rank, inputs, outputs, tasks)
    found = gradients(method, pairs)
    leaves = [t.clone().requires_grad_() for t in pairs[-1]]
    total = literal([[*pairs[:-1], (leaves[0], leaves[1])]])
    if torch.is_tensor(total) and total.requires_grad:
        total.backward()
    for leaf, gradient in zip(leaves, found, strict=True):
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


@given(seed=seeds, rank=sizes, width=sizes)
def test_the_authors_product_of_n_lora_is_that_of_the_equation(seed: int, rank: int, width: int):
    pairs = drawn(seed, rank, width, width, 1)
    leaves = [t.clone().requires_grad_() for t in pairs[-1]]
    torch.as_tensor(nlora.penalty([[(leaves[0], leaves[1])]], 0.4, "AB")).backward()
    for leaf, gradient in zip(leaves, gradients(NLoRA(strength=0.4, product="AB"), pairs), strict=True):
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [IncLoRA(), OLoRA(norm=0.5), ELLA(), ELLA(normalise=True)])
def test_the_first_task_has_no_penalty(method: Method):
    assert not any(g.any() for g in gradients(method, drawn(0, 2, 4, 3, 1)))


@given(seed=seeds, rank=st.integers(1, 3), outputs=sizes)
@pytest.mark.parametrize("penalty", ["squares", "absolute"])
def test_o_lora_is_0_exactly_for_orthogonal_rows(penalty: Any, seed: int, rank: int, outputs: int):
    pairs = drawn(seed, rank, 8, outputs, 2)
    method = OLoRA(penalty=penalty)
    assert size(method, pairs) > 0.0
    # rows of the old A in the first coordinates, of the new one in the last
    pairs[0][0][:, 4:], pairs[1][0][:, :4] = 0.0, 0.0
    assert size(method, pairs) == 0.0
    assert not any(g.any() for g in gradients(method, pairs))
    pairs[1][0][rank - 1, 0] = 1.0
    assert size(method, pairs) > 0.0 or not pairs[0][0][:, 0].any()


@given(seed=seeds, rank=sizes, inputs=sizes, outputs=sizes)
@pytest.mark.parametrize("method", [NLoRA(), ELLA(), ELLA(normalise=True)])
def test_a_fresh_pair_has_no_penalty_and_is_not_moved_by_it(
    method: PairPenalty, seed: int, rank: int, inputs: int, outputs: int
):
    pairs = drawn(seed, rank, inputs, outputs, 3)
    pairs[-1][1].zero_()
    assert size(method, pairs) == 0.0
    assert not any(g.any() for g in gradients(method, pairs))


@given(seed=seeds, rank=sizes, inputs=st.integers(1, 9), outputs=st.integers(1, 9))
def test_n_lora_is_the_sum_of_the_absolute_entries_of_the_update(
    seed: int, rank: int, inputs: int, outputs: int
):
    pairs = drawn(seed, rank, inputs, outputs, 1)
    expected = sum(abs(float(entry)) for entry in (pairs[0][1] @ pairs[0][0]).flatten())
    assert size(NLoRA(), pairs) == pytest.approx(expected, rel=1e-5)


def test_the_authors_product_of_n_lora_is_refused_for_layers_that_are_not_square():
    NLoRA(product="AB").check(parameters(drawn(0, 2, 4, 4, 1)))
    NLoRA().check(parameters(drawn(0, 2, 4, 3, 1)))
    with pytest.raises(ValueError, match=r"product: found 'AB'.* 4 inputs and 3 outputs; use 'BA'"):
        NLoRA(product="AB").check(parameters(drawn(0, 2, 4, 3, 1)))


def test_the_authors_product_of_n_lora_makes_no_entry_of_the_update_0():
    """The update may be as dense as it likes, where A B is 0."""
    a, b = torch.ones(1, 4), torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert size(NLoRA(product="AB"), [(a, b)]) == 0.0 and size(NLoRA(), [(a, b)]) == 16.0


@given(seed=seeds, rank=sizes, inputs=sizes, outputs=sizes)
def test_ella_grows_fourfold_where_the_past_doubles_unless_it_is_normalised(
    seed: int, rank: int, inputs: int, outputs: int
):
    pairs = drawn(seed, rank, inputs, outputs, 3)
    doubled = [*((a, 2.0 * b) for a, b in pairs[:-1]), pairs[-1]]
    assert size(ELLA(), doubled) == pytest.approx(4.0 * size(ELLA(), pairs), rel=1e-5)
    even = ELLA(normalise=True)
    assert size(even, doubled) == pytest.approx(size(even, pairs), rel=1e-4)


def test_ella_is_0_exactly_for_disjoint_entries():
    old, new = torch.tensor([[1.0, 2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0, 4.0]])
    b = torch.ones(3, 1)
    for method in (ELLA(), ELLA(normalise=True)):
        assert size(method, [(old, b), (new, b)]) == 0.0
        assert size(method, [(old, b), (old + new, b)]) > 0.0


def test_ella_has_no_penalty_where_earlier_updates_cancel():
    """W_past is a sum with signs: two opposite tasks leave their entries unprotected."""
    a, b = drawn(0, 2, 4, 3, 1)[0]
    assert size(ELLA(strength=1.0), [(a, b), (a, -b), drawn(1, 2, 4, 3, 1)[0]]) < 1e-9


@pytest.mark.parametrize("strength", [0.5, 4.0])
def test_ella_settles_where_the_paper_says(strength: float):
    """1/2 ||D - G||^2 + lambda/2 ||E * D||^2 has its minimum at G / (1 + lambda E^2)."""
    draw = torch.Generator().manual_seed(0)
    goal, past = torch.randn(3, 3, generator=draw), torch.randn(3, 3, generator=draw)
    pairs = [(torch.eye(3), past), (torch.eye(3), torch.zeros(3, 3))]
    params, method = parameters(pairs), ELLA(strength=strength / 2)
    a, b = params.tensors
    for _ in range(3000):
        rest = (b @ a - goal).detach()
        a.grad, b.grad = b.detach().mT @ rest, rest @ a.detach().mT
        method.on_gradients(Bare(params))
        with torch.no_grad():
            for p in (a, b):
                p.sub_(0.05 * p.grad)  # type: ignore[operator]
    expected = goal / (1.0 + strength * past**2)
    torch.testing.assert_close((b @ a).detach(), expected, rtol=1e-4, atol=1e-4)


def test_two_tasks_collide_the_less_the_stronger_n_lora_is():
    """Collision: both updates of an entry are larger than tau = 0.1."""
    draw = torch.Generator().manual_seed(0)
    goals = [torch.randn(8, 8, generator=draw) * (torch.rand(8, 8, generator=draw) < 0.4) for _ in range(2)]
    shares = []
    for strength in (0.0, 0.1, 0.3, 1.0):
        updates = []
        for goal in goals:
            params = parameters(
                [(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(8, 4))]
            )
            a, b = params.tensors
            optimizer = torch.optim.Adam(params.tensors, lr=0.02)
            for _ in range(400):
                optimizer.zero_grad()
                (0.5 * (b @ a - goal).square().sum()).backward()
                NLoRA(strength=strength).on_gradients(Bare(params))
                optimizer.step()
            updates.append((b @ a).detach().abs() > 0.1)
        shares.append(float((updates[0] & updates[1]).float().mean()))
    assert shares == sorted(shares, reverse=True) and shares[0] > 2 * shares[-1]


@pytest.mark.parametrize("name", ["orthogonality", "norm"])
def test_a_negative_strength_is_refused(name: str):
    with pytest.raises(ConfigError, match=name):
        build_method("o-lora", {name: -1.0})
