"""VR-MCL by hand: first and second order against autograd written out, variance reduction, going on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch import Tensor

from kifuse.methods.context import TaskInfo
from kifuse.methods.kept import MethodState
from kifuse.methods.vr_mcl import VRMCL
from tests.reference import vr_mcl as reference
from tests.unit.methods.by_hand import ByHand, batches, loss, values
from tests.unit.methods.hand_passes import HandBatch, HandPasses

STEPS, RATE, SIZE = 5, 0.02, 2
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no bound": {"clip": None, "alpha_lr": 0.02},
    "a low bound": {"clip": 0.02, "alpha_lr": 5.0},
    "one minibatch": {"inner_size": 99},
    "no variance reduction": {"momentum": 0.0},
    "strong variance reduction": {"momentum": 0.9},
    "fixed inner rates": {"alpha_lr": 0.0, "alpha": 0.5},
    "no inner steps": {"alpha": 0.0, "alpha_lr": 0.0},
}


RATES = {"alpha": 0.1, "alpha_lr": 0.25}


def method(**settings: Any) -> VRMCL:
    return VRMCL(**{"inner_size": SIZE, **RATES, **settings})


def training_of(made: VRMCL, index: int = 1, limit: float | None = None) -> ByHand:
    training = ByHand(made, values(), batches(STEPS), batches(STEPS, 2), rates=RATE, index=index)
    training.passes.limit = limit
    # as the literal optimizer
    training.optimizer = torch.optim.AdamW(training.params.tensors, lr=RATE, weight_decay=0.0)
    return training


def joined(first: Any, second: Any) -> Any:
    return tuple(torch.cat(pair) for pair in zip(first, second, strict=True))


def literal(second: bool, limit: float | None, **settings: Any) -> list[Any]:
    given = {"inner_size": SIZE, **RATES, "momentum": 0.15, "clip": 1.0, **settings}
    size = given["inner_size"]
    return reference.vr_mcl(
        values(),
        loss,
        batches(STEPS),
        batches(STEPS, 2),
        rate=RATE,
        inner=lambda b: list(zip(b[0].split(size), b[1].split(size), strict=True)),
        c=given["momentum"],
        start=given["alpha"],
        alpha_lr=given["alpha_lr"],
        clip=given["clip"],
        limit=limit,
        second=second,
        outer=lambda theta, one, two: loss(theta, joined(one, two)),
    )


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_training_is_what_the_equations_say(name: str, second: bool):
    made = method(second_order=second, **CASES[name])
    training = training_of(made, limit=0.5)
    expected = literal(second, 0.5, **CASES[name])
    for step in training.steps():
        theta, m, alpha = expected[step - 1]
        # torch clips to a little less than the bound
        torch.testing.assert_close(training.values(), theta, rtol=1e-5, atol=1e-7)
        rates = dict(zip(training.params.names, made._rates.tolist(), strict=True))
        assert rates == pytest.approx(alpha, rel=1e-4, abs=1e-6)
        if made.momentum:
            kept = dict(zip(training.params.names, made._momentum, strict=True))
            torch.testing.assert_close(kept, m, rtol=1e-4, atol=1e-6)


def test_the_order_matters_only_with_inner_steps():
    reached = {
        (second, alpha): training_of(method(second_order=second, alpha=alpha, alpha_lr=0.0)).train()[-1]
        for second in (False, True)
        for alpha in (0.0, 0.5)
    }
    torch.testing.assert_close(reached[False, 0.0], reached[True, 0.0], rtol=1e-9, atol=1e-12)
    gap = max(float((reached[False, 0.5][n] - v).abs().max()) for n, v in reached[True, 0.5].items())
    assert gap > 1e-5


def at(training: ByHand, made: VRMCL) -> tuple[list[Tensor], list[Tensor]]:
    """g_t at the present weights, and the m_t that the method makes of it."""
    passes = HandPasses(training, loss)
    training.batch = training.current[3]
    theta = training.params.clone()
    batch, memory = HandBatch(*training.batch), HandBatch(*training.memory[0])
    g, _ = copy.deepcopy(made)._hypergradient(passes, theta, batch, memory)
    made.on_gradients(training)
    return g, [p.grad.clone() for p in training.params.tensors if p.grad is not None]


@given(st.floats(0.0, 0.99), st.integers(0, 100))
@effort(max_examples=20, deadline=None)
def test_at_weights_that_did_not_move_only_the_last_m_is_weighed(c: float, seed: int):
    """theta_t = theta_{t-1}: m_t - g_t = c (m_{t-1} - g_t); and with c = 0, m_t is g_t."""
    made = method(momentum=c)
    training = training_of(made)
    training.begin()
    draw = torch.Generator().manual_seed(seed)
    last = [torch.randn(p.shape, dtype=p.dtype, generator=draw) for p in training.params.tensors]
    made._momentum, made._before = last, training.params.clone()
    if not c:
        made._momentum = made._before = None
    g, m = at(training, made)
    for found, mean, old in zip(m, g, last, strict=True):
        torch.testing.assert_close(found - mean, c * (old - mean), rtol=1e-6, atol=1e-9)


def test_a_gradient_that_is_not_finite_changes_nothing_of_the_method():
    made = method()
    training = training_of(made)
    for step in training.steps():
        if step == 2:
            before = {n: t.clone() for n, t in made.state().tensors.items()}
            x, y = training.current[3]
            training.batch = (x * torch.nan, y)
            made.on_gradients(training)
            assert any(not bool(torch.isfinite(p.grad).all()) for p in training.params.tensors)
            training.optimizer.zero_grad()
            after = made.state().tensors
            assert after.keys() == before.keys()
            assert all(torch.equal(after[n], t) for n, t in before.items())
            break


def test_the_first_task_is_plain_training():
    made = method()
    training = training_of(made, index=0)
    training.train()
    assert not training.passes.drawn and not training.events
    assert made.state() == MethodState()


def test_inner_rates_are_carried_on_and_nothing_else():
    made = method()
    training = training_of(made)
    training.train()
    state = made.state()
    assert list(state.tensors) == ["rates"] and state.values == {}
    assert not torch.equal(state.tensors["rates"], torch.full_like(state.tensors["rates"], 0.1))
    assert bool((state.tensors["rates"] >= 0).all())
    (event,) = training.events
    assert event["kind"] == "inner rates" and event["order"] == "first"
    fresh = method()
    fresh.load_state(state)
    later = training_of(fresh, index=2)
    later.begin()
    assert torch.equal(fresh.state().tensors["rates"], state.tensors["rates"])


@pytest.mark.parametrize("second", [False, True])
def test_going_on_in_the_middle_ends_as_if_nothing_had_happened(second: bool):
    whole = training_of(method(second_order=second))
    expected = whole.train()[-1]
    for cut in range(1, STEPS):
        training = training_of(method(second_order=second))
        for step in training.steps():
            if step == cut:
                fresh = method(second_order=second)
                fresh.load_state(training.method.state())
                training.method = fresh
                training.go_on()
        training.end()
        assert all(torch.equal(training.values()[n], v) for n, v in expected.items())
        assert training.events == whole.events


def test_a_state_of_another_model_is_refused():
    made = method()
    made.load_state(MethodState({"rates": torch.ones(3)}))
    with pytest.raises(ValueError, match="inner rates of 3 tensors, the model 8"):
        training_of(made).begin()


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 2 * (1 + 2 * 4)),
        ({"momentum": 0.0}, 1 + 2 * 4),
        ({"second_order": True, "inner_size": 32}, 2 * 4),
    ],
)
def test_the_cost_is_counted(settings: dict[str, Any], passes: int):
    made = VRMCL(**settings)
    assert made.extra_passes(TaskInfo(1, "second", 10, batch_size=32), 3) == 10 * passes
    assert made.extra_passes(TaskInfo(0, "first", 10, batch_size=32), 3) == 0


def test_the_defaults_are_those_established():
    made = VRMCL()
    assert (made.inner_size, made.momentum, made.clip) == (8, 0.15, 1.0)
    assert (made.alpha, made.alpha_lr) == (0.1 / 100, 0.25 / 10_000)  # ours for adapters
    assert not made.second_order and made.needs == {"batch"}
