"""SLAO by hand: the orthonormal start, the merged B in closed form, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch import Tensor, nn

from kifuse.methods.kept import MethodState
from kifuse.methods.parameters import Parameters
from kifuse.methods.slao import SLAO
from kifuse.registry import build_method
from tests.reference import slao as reference
from tests.unit.methods.by_hand import ByHand, Values, batches, values

STEPS = 3


def learn(method: SLAO, theta: Values, index: int) -> tuple[ByHand, Values, Values]:
    """Train one task; the training, the values at its start and those before its end."""
    training = ByHand(method, theta, batches(STEPS, 10 + index), [], index=index)
    steps = training.steps()
    started = {}
    for step in steps:
        started = started or training.values()
        if step == STEPS:
            tuned = training.values()
            training.end()
    return training, started, tuned


def start_of(method: SLAO, theta: Values, index: int) -> Values:
    """The values that a task begins with."""
    training = ByHand(method, theta, batches(1), [], index=index)
    training.begin()
    return training.values()


def pairs(theta: Values) -> list[tuple[Tensor, Tensor]]:
    return [(a, theta[n.replace("lora_A", "lora_B")]) for n, a in theta.items() if "lora_A" in n]


def chain(tasks: int, **settings: Any) -> tuple[SLAO, list[Values], list[Values]]:
    """Learn tasks in turn; the method, the fine-tuned and the merged values after each."""
    method, theta = SLAO(**settings), values()
    tuned, merged = [], []
    for index in range(tasks):
        training, _, last = learn(method, theta, index)
        theta = training.values()
        tuned.append(last)
        merged.append(theta)
    return method, tuned, merged


@given(st.integers(1, 6), st.integers(0, 1000), st.floats(1e-3, 1e3))
@effort(max_examples=40, deadline=None)
def test_a_task_starts_with_orthonormal_rows_of_the_same_space(rank: int, seed: int, scale: float):
    draw = torch.Generator().manual_seed(seed)
    a = scale * torch.randn(rank, 7, dtype=torch.float64, generator=draw)
    b = torch.randn(5, rank, dtype=torch.float64, generator=draw)
    theta = {"q.lora_A.weight": a, "q.lora_B.weight": b}
    for keep in (False, True):
        started = start_of(SLAO(keep_function=keep), theta, 1)
        q, found = started["q.lora_A.weight"], started["q.lora_B.weight"]
        torch.testing.assert_close(q @ q.mT, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-10)
        # the sines of the principal angles between the two row spaces
        outside = a - (a @ q.mT) @ q
        assert float(outside.abs().max()) <= 1e-9 * scale
        wanted_q, r = reference.orthonormal_rows(a.tolist())
        torch.testing.assert_close(q, torch.tensor(wanted_q, dtype=torch.float64), rtol=1e-6, atol=1e-6)
        if keep:
            torch.testing.assert_close(found @ q, b @ a, rtol=1e-9, atol=1e-9 * scale)
            wanted_b = torch.tensor(reference.times(b.tolist(), r), dtype=torch.float64)
            torch.testing.assert_close(found, wanted_b, rtol=1e-6, atol=1e-6 * scale)
        else:
            assert torch.equal(found, b)


def test_the_function_at_a_start_is_not_the_last_one_unless_kept():
    """Dropping R changes the model: the paper's start is not where the last task ended."""
    for keep in (False, True):
        method = SLAO(keep_function=keep)
        training, _, tuned = learn(method, values(), 0)
        started = start_of(method, training.values(), 1)
        same = [
            torch.allclose(b @ a, d @ c) for (a, b), (c, d) in zip(pairs(started), pairs(tuned), strict=True)
        ]
        assert all(same) if keep else not any(same)


@pytest.mark.parametrize("settings", [{}, {"keep_function": True}, {"start": "merged"}])
def test_the_merged_b_has_the_weights_of_the_closed_form(settings: dict[str, Any]):
    _, tuned, merged = chain(5, **settings)
    for count in range(1, 6):
        for name, value in merged[count - 1].items():
            if "lora_A" in name:
                assert torch.equal(value, tuned[count - 1][name])
                continue
            wanted = reference.merged([each[name].tolist() for each in tuned[:count]])
            torch.testing.assert_close(
                value, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12
            )


def test_a_convex_combination():
    """The weights are at least 0 and sum to 1; of 15 tasks the first has 0.07%, the last five 80%."""
    identity = [[[float(j == k) for k in range(15)]] for j in range(15)]
    weights = reference.merged(identity)[0]
    assert min(weights) >= 0 and math.isclose(sum(weights), 1.0)
    assert 0.0006 < weights[0] < 0.0008 and 0.79 < sum(weights[-5:]) < 0.81


@pytest.mark.parametrize("start", ["last-fine-tuned", "merged"])
def test_the_next_task_starts_from_the_b_that_the_setting_names(start: str):
    method, tuned, merged = chain(3, start=start)
    started = start_of(method, merged[-1], 3)
    source = tuned[-1] if start == "last-fine-tuned" else merged[-1]
    for name, value in started.items():
        if "lora_B" in name:
            assert torch.equal(value, source[name])
            assert not torch.equal(tuned[-1][name], merged[-1][name])


def test_one_task_is_plain_training():
    training, started, tuned = learn(SLAO(), values(), 0)
    plain, _, expected = learn_plainly()
    for name, value in training.values().items():
        assert torch.equal(value, tuned[name])
        assert torch.equal(value, expected[name])
    assert not training.events and started.keys() == plain.values().keys()


def learn_plainly() -> tuple[ByHand, Values, Values]:
    training = ByHand(build_method("sequential"), values(), batches(STEPS, 10), [], index=0)
    reached = training.train()
    return training, reached[0], reached[-1]


def test_the_state_is_of_one_size_whatever_the_number_of_tasks():
    assert chain(1)[0].state() == MethodState()
    sizes = []
    for tasks in (2, 3, 6):
        method, tuned, _ = chain(tasks)
        state = method.state()
        sizes.append(sum(t.numel() for t in state.tensors.values()))
        assert sizes[-1] == sum(v.numel() for n, v in tuned[-1].items() if "lora_B" in n)
        assert state.values == {}
    assert len(set(sizes)) == 1


def test_going_on_in_the_middle_ends_as_if_nothing_had_happened():
    method, _, merged = chain(2)
    state = method.state()
    whole = ByHand(method, merged[-1], batches(STEPS, 12), [], index=2)
    whole.train()
    again = SLAO()
    again.load_state(state)
    training = ByHand(again, merged[-1], batches(STEPS, 12), [], index=2)
    for step in training.steps():
        if step == 2:
            fresh = SLAO()
            fresh.load_state(again.state())
            training.method = fresh
            training.go_on()
    training.end()
    for name, value in whole.values().items():
        assert torch.equal(training.values()[name], value)
    for name, value in method.state().tensors.items():
        assert torch.equal(training.method.state().tensors[name], value)


def test_a_state_of_another_moment_is_refused():
    method, _, merged = chain(2)
    with pytest.raises(ValueError, match="not of a task's middle"):
        ByHand(method, merged[-1], batches(1), [], index=2).go_on()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"q.weight": (4, 4)}, "model.adapter.kind: SLAO merges LoRA pairs"),
        ({"q.lora_A.weight": (2, 4)}, "model.adapter.kind"),
        (
            {"q.lora_A.weight": (2, 4), "q.lora_B.weight": (4, 2), "q.lora_magnitude_vector.weight": (4,)},
            "kind",
        ),
        ({"q.lora_A.weight": (5, 4), "q.lora_B.weight": (4, 5)}, "model.adapter.rank: 5 rows"),
        ({"c.lora_A.weight": (2, 4, 3, 3), "c.lora_B.weight": (4, 2, 1, 1)}, "LoRA of linear layers"),
    ],
)
def test_anything_but_pairs_is_refused(named: dict[str, tuple[int, ...]], message: str):
    params = Parameters((name, nn.Parameter(torch.zeros(shape))) for name, shape in named.items())
    with pytest.raises(ValueError, match=message):
        SLAO().check(params)


def test_a_rank_that_has_died_starts_with_finite_values():
    theta = {"q.lora_A.weight": torch.zeros(2, 4), "q.lora_B.weight": torch.ones(4, 2)}
    assert all(bool(torch.isfinite(v).all()) for v in start_of(SLAO(keep_function=True), theta, 1).values())
