"""EWC: the penalty of its papers, in constant memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.errors import ConfigError
from kifuse.methods.context import TaskInfo
from kifuse.methods.ewc import EWC
from kifuse.methods.kept import MethodState
from kifuse.methods.parameters import Parameters
from kifuse.registry import build_method
from tests.reference import ewc
from tests.unit.methods.by_hand import Bare, Values, batches, begin, values
from tests.unit.methods.looking_back import LookingBack

STEPS = 4


class Tasks:
    """Some tasks one after another, with what a literal EWC would have kept of each."""

    def __init__(self, method: EWC, count: int = 3) -> None:
        self.method = method
        self.fishers: list[Values] = []
        self.anchors: list[Values] = []
        self.runs: list[LookingBack] = []
        theta = values()
        for index in range(count):
            run = LookingBack(method, theta, batches(STEPS, seed=index + 1), [], index=index)
            run.train()
            theta = run.values()
            self.runs.append(run)
            found = run.squared_gradients(method.examples)
            self.fishers.append(dict(zip(run.params.names, found, strict=True)))
            self.anchors.append(theta)

    def pull(self, theta: Values) -> Values:
        """What `on_gradients` adds to a gradient of 0."""
        params = Parameters((n, torch.nn.Parameter(t.clone())) for n, t in theta.items())
        for p in params.tensors:
            p.grad = torch.zeros_like(p)
        ctx = Bare(params, TaskInfo(9, "next", STEPS))
        begin(self.method, ctx)
        self.method.on_gradients(ctx)
        return {n: g for n, g in zip(params.names, params.grads, strict=True) if g is not None}

    def literal(self, theta: Values) -> Values:
        """The same, of the sum over all earlier tasks, or of the running sum."""
        weight, found = self.method.penalty, {}
        for name in theta:
            fishers, anchors = [f[name] for f in self.fishers], [a[name] for a in self.anchors]
            if self.method.online:
                fishers, anchors = [ewc.running(fishers, self.method.gamma)], anchors[-1:]
            found[name] = ewc.pull(theta[name], fishers, anchors, weight)
        return found


def _elsewhere(theta: Values) -> Values:
    return {name: t + 0.1 * torch.sin(torch.arange(t.numel())).view_as(t) for name, t in theta.items()}


@pytest.mark.parametrize(
    "settings",
    [{}, {"examples": 7}, {"online": True}, {"online": True, "gamma": 0.3}, {"penalty": 0.5}],
    ids=str,
)
def test_the_pull_is_that_of_one_term_for_each_earlier_task(settings: dict[str, Any]):
    tasks = Tasks(EWC(**settings))
    theta = _elsewhere(tasks.anchors[-1])
    found, wanted = tasks.pull(theta), tasks.literal(theta)
    assert max(float(w.abs().max()) for w in wanted.values()) > 0.01
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=2e-5, atol=1e-6 * tasks.method.penalty)


@pytest.mark.parametrize("online", [False, True])
def test_the_penalty_and_its_pull_are_zero_where_a_single_task_has_ended(online: bool):
    tasks = Tasks(EWC(online=online), count=1)
    # the anchors are float32, the toy's parameters float64
    rounded = {name: t.float().double() for name, t in tasks.anchors[-1].items()}
    assert all(not g.any() for g in tasks.pull(rounded).values())
    params = Parameters((n, torch.nn.Parameter(t)) for n, t in rounded.items())
    assert tasks.method._size(params, tasks.method._fisher or []) == 0.0


def test_with_one_earlier_task_online_and_separate_agree():
    apart, online = Tasks(EWC(), count=1), Tasks(EWC(online=True), count=1)
    theta = _elsewhere(apart.anchors[-1])
    for a, b in zip(apart.pull(theta).values(), online.pull(theta).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_the_value_on_record_is_that_of_all_terms():
    tasks = Tasks(EWC(penalty=2.0))
    event = next(e for e in tasks.runs[-1].events if e["kind"] == "fisher")
    wanted = sum(
        float(ewc.penalty(t, [f[n] for f in tasks.fishers[:2]], [a[n] for a in tasks.anchors[:2]], 2.0))
        for n, t in tasks.anchors[2].items()
    )
    assert event["weighted_penalty"] == pytest.approx(wanted, rel=1e-4) and wanted > 0
    assert "weighted_penalty" not in tasks.runs[0].events[0]
    mean = sum(float(f.sum()) for f in tasks.fishers[2].values()) / tasks.runs[2].params.count
    assert event["mean"] == pytest.approx(mean, rel=1e-5)
    measured = tasks.runs[2].measured
    before = [sum(f[n] for f in tasks.fishers[:2]).mean() for n in tasks.fishers[0]]  # type: ignore[union-attr]
    torch.testing.assert_close(measured["history"].tolist(), [float(b) for b in before], rtol=1e-5, atol=0)
    assert measured.keys() == {"importance", "history", "history_after"}


@pytest.mark.parametrize("online", [False, True])
def test_what_is_kept_does_not_grow(online: bool):
    sizes = [
        sum(t.numel() for t in Tasks(EWC(online=online), count=count).method.state().tensors.values())
        for count in (1, 3)
    ]
    assert sizes == [2 * sum(t.numel() for t in values().values())] * 2


def test_a_parameter_that_mattered_stays_and_another_moves():
    method = EWC(penalty=1e6)
    run = LookingBack(method, values(), batches(STEPS), [], index=0)
    run.train()
    state = method.state()
    fisher = {n: torch.zeros_like(t) for n, t in state.tensors.items() if n.startswith("fisher")}
    first = next(iter(fisher))
    fisher[first].fill_(1.0)
    method.load_state(MethodState({**state.tensors, **fisher}, state.values))
    start = run.values()
    again = LookingBack(method, start, batches(30, seed=7), [], index=1, rates=1e-3)
    for group in again.optimizer.param_groups:
        group["weight_decay"] = 0.0
    again.train()
    moved = {n: float((t - start[n]).abs().max()) for n, t in again.values().items()}
    held = first.removeprefix("fisher.")
    assert moved[held] < 0.2 * min(v for n, v in moved.items() if n != held)


def test_an_example_without_part_in_the_loss_leaves_the_centre_alone():
    """Where no task had any Fisher information, the weighted mean has no weights."""
    method = EWC()
    fisher = [torch.zeros(2), torch.tensor([0.0, 1.0])]
    method._fisher, method._centre = [fisher[0].clone()], [torch.tensor([5.0, 6.0])]
    method._fold(method._fisher, [fisher[1]], [torch.tensor([7.0, 8.0])])
    assert method._centre[0].tolist() == [5.0, 8.0] and method._spread == 0.0


def test_the_middle_of_a_task_is_taken_up_from_the_state_alone():
    whole, cut = EWC(), EWC()
    theta = Tasks(whole, count=2).anchors[-1]
    cut.load_state(whole.state())
    ends = []
    for method in (whole, cut):
        run = LookingBack(method, theta, batches(STEPS, seed=5), [], index=2)
        for step in run.steps():
            if step == 2:
                fresh = EWC()
                fresh.load_state(run.method.state())
                if method is cut:
                    run.method = fresh
                    run.go_on()
        run.end()
        ends.append((run.values(), run.method.state()))
    (one, first), (two, second) = ends
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert all(torch.equal(t, second.tensors[n]) for n, t in first.tensors.items())
    assert first.values == second.values


def test_a_state_of_another_model_is_refused():
    method = EWC()
    method.load_state(MethodState({"fisher.other": torch.zeros(2)}, {}))
    params = Parameters([("w", torch.nn.Parameter(torch.zeros(2)))])
    with pytest.raises(ValueError, match=r"nothing as fisher\.w"):
        begin(method, Bare(params))


def test_a_parameter_without_a_gradient_is_passed_over():
    method = EWC()
    method._fisher, method._centre = [torch.ones(2), torch.ones(2)], [torch.zeros(2), torch.zeros(2)]
    params = Parameters((n, torch.nn.Parameter(torch.ones(2))) for n in "ab")
    params.tensors[1].grad = torch.zeros(2)
    method.on_gradients(Bare(params))
    second: Tensor | None = params.grads[1]
    assert params.grads[0] is None and second is not None and second.tolist() == [100.0, 100.0]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ewc", {"gamma": 0.5}, "gamma: found 0.5"),
        ("online-ewc", {"gamma": 1.5}, "gamma: found 1.5"),
        ("ewc", {"penalty": -1}, "penalty: found -1"),
        ("ewc", {"examples": 0}, "examples: found 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        build_method(name, settings)
    assert build_method("online-ewc", {"gamma": 0.5}).settings()["online"] is True


def test_the_pass_over_the_examples_is_counted_ahead():
    task = TaskInfo(0, "a", 10, batch_size=4, examples=30)
    assert EWC().extra_passes(task, 0) == 8
    assert EWC(examples=10).extra_passes(task, 0) == 3
    assert EWC(examples=99).extra_passes(task, 0) == 8
