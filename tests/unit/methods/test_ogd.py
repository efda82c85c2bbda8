"""OGD: no step, not even Adam's, moves the stored logits to first order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kifuse.errors import ConfigError
from kifuse.methods.context import TaskInfo
from kifuse.methods.ogd import OGD
from kifuse.methods.parameters import Parameters
from kifuse.registry import build_method
from tests.reference import ogd
from tests.unit.methods.by_hand import Bare, Values, batches, begin, values
from tests.unit.methods.looking_back import LookingBack

STEPS = 4


def _flat(theta: Values) -> Tensor:
    return torch.cat([t.flatten() for t in theta.values()])


def _first(method: OGD) -> LookingBack:
    run = LookingBack(method, values(), batches(STEPS), [], index=0)
    run.train()
    return run


def _second(method: OGD, first: LookingBack, **changes: Any) -> LookingBack:
    return LookingBack(method, first.values(), batches(STEPS, seed=5), [], index=1, **changes)


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_adam_s_steps_are_orthogonal_to_all_that_is_kept(rate: float):
    method = OGD(per_task=8)
    first = _first(method)
    rows = method._directions.rows.double()
    assert rows.shape == (8, first.params.count)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(8).double(), rtol=0, atol=1e-6)
    second = _second(method, first, rates=rate)
    at = _flat(first.values())
    for _ in second.steps():
        before, at = at, _flat(second.values())
        step = at - before
        assert float(step.norm()) > 1e-3
        assert float((rows @ step).abs().max()) < 1e-5 * float(step.norm())


def test_without_the_projection_of_updates_adam_leaves_the_allowed_subspace():
    """What makes the default necessary: the paper's rule holds for its own optimizer only."""
    found = {}
    for project in ("update", "gradient"):
        method = OGD(per_task=8, project=project)
        first = _first(method)
        second = _second(method, first)
        for group in second.optimizer.param_groups:
            group["weight_decay"] = 0.0
        list(second.steps())
        step = _flat(second.values()) - _flat(first.values())
        found[project] = float((method._directions.rows.double() @ step).abs().max() / step.norm())
    assert found["update"] < 1e-5 and found["gradient"] > 1e-2


def test_the_gradient_is_projected_as_the_paper_has_it():
    method = OGD(per_task=6, project="gradient")
    first = _first(method)
    kept = list(first.logit_gradients(6))
    params = first.params
    for p in params.tensors:
        p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view_as(p)
    before = torch.cat([g.flatten() for g in params.grads if g is not None])
    begin(method, Bare(params))
    method.on_gradients(Bare(params))
    found = torch.cat([g.flatten() for g in params.grads if g is not None])
    wanted = ogd.project(before, ogd.gram_schmidt(kept))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for g in kept:
        assert abs(float(found.float() @ g)) < 1e-5 * float(before.norm() * g.norm())


def test_a_step_of_sgd_leaves_the_stored_logits_alone_to_first_order():
    """The logits move by the square of the step: a tenth of the step, a hundredth of the change."""
    changes = {}
    for protected in (True, False):
        for rate in (1e-2, 1e-3):
            method = OGD(per_task=6, basis=100 if protected else 0, project="gradient")
            first = _first(method)
            before = torch.stack([first.logit(e).detach() for e in first.examples()[:6]])
            second = _second(method, first, rates=rate)
            second.current, second.rates = second.current[:1], [rate]
            second.optimizer = torch.optim.SGD(second.params.tensors, lr=rate)
            list(second.steps())
            for p, value in zip(first.params.tensors, second.params.clone(), strict=True):
                p.data.copy_(value)
            after = torch.stack([first.logit(e).detach() for e in first.examples()[:6]])
            changes[protected, rate] = float((after - before).abs().max())
    assert changes[True, 1e-3] < 0.02 * changes[False, 1e-3]
    assert changes[True, 1e-3] < 0.03 * changes[True, 1e-2]


def test_the_basis_never_exceeds_its_cap():
    method = OGD(per_task=7, basis=10)
    theta, noted = values(), []
    for index in range(3):
        run = LookingBack(method, theta, batches(STEPS, seed=index + 1), [], index=index)
        run.train()
        theta = run.values()
        noted.append(run.events[-1])
        assert len(method.state().tensors["basis.rows"]) <= 10
    assert [e["vectors"] for e in noted] == [7, 10, 10]
    assert noted[0]["kept_share"] == 1.0 > noted[1]["kept_share"] > 0.5
    rows = method._directions.rows.double()
    torch.testing.assert_close(rows @ rows.mT, torch.eye(10).double(), rtol=0, atol=1e-6)


def test_a_basis_of_nothing_is_plain_training():
    plain = LookingBack(OGD(basis=0), values(), batches(STEPS), [], index=1)
    end = plain.train()[-1]
    from kifuse.methods.sequential import Sequential

    expected = LookingBack(Sequential(), values(), batches(STEPS), [], index=1).train()[-1]
    assert all(torch.equal(end[n], expected[n]) for n in end)
    assert not plain.events and not OGD(basis=0).needs


@pytest.mark.parametrize("project", ["update", "gradient"])
def test_the_middle_of_a_task_is_taken_up_from_the_state_alone(project: str):
    ends = []
    for stopped in (False, True):
        method = OGD(per_task=5, basis=7, project=project)
        second = _second(method, _first(method))
        for step in second.steps():
            if step == 2 and stopped:
                state = second.method.state()
                second.method = OGD(per_task=5, basis=7, project=project)
                second.method.load_state(state)
                second.go_on()
        second.end()
        ends.append((second.values(), second.method.state().tensors))
    (one, first), (two, last) = ends
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert first.keys() == last.keys() == {"basis.rows", "basis.spread"}
    assert all(torch.equal(first[n], last[n]) for n in first)


def test_a_state_of_another_model_or_moment_is_refused():
    method = OGD(per_task=2)
    first = _first(method)
    fresh = OGD()
    fresh.load_state(method.state())
    with pytest.raises(ValueError, match="of another model"):
        begin(fresh, Bare(Parameters([("w", nn.Parameter(torch.zeros(3)))])))
    fresh.load_state(method.state())
    begin(fresh, Bare(first.params))
    with pytest.raises(ValueError, match="nothing as start"):
        fresh.go_on(method.state(), first.params)


def test_a_parameter_without_a_gradient_gets_none():
    method = OGD(per_task=3)
    first = _first(method)
    begin(method, Bare(first.params))
    for p in first.params.tensors[1:]:
        p.grad = torch.ones_like(p)
    method.on_gradients(Bare(first.params))
    assert first.params.grads[0] is None


def test_settings_and_passes():
    task = TaskInfo(0, "a", 10, batch_size=4, examples=30)
    assert OGD(per_task=10).extra_passes(task, 0) == 3
    assert OGD(per_task=99).extra_passes(task, 0) == 8
    assert OGD(basis=0).extra_passes(task, 0) == 0
    for settings in ({"per_task": 0}, {"basis": -1}, {"project": "both"}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}: found"):
            build_method("ogd", settings)
