"""GPM: no step, not even Adam's, changes what a layer makes of earlier tasks' inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kifuse.errors import ConfigError
from kifuse.knowledge.input_directions import extended, products
from kifuse.methods.context import TaskInfo
from kifuse.methods.gpm import GPM
from kifuse.methods.parameters import Parameters
from kifuse.methods.sequential import Sequential
from kifuse.registry import build_method
from tests.reference import gpm
from tests.unit.methods.by_hand import Bare, Batch, ByHand, Values, batches, begin, values

STEPS = 4


def layer_inputs(theta: Values, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs of each matrix of `by_hand.loss`, `(rows, in)`, and what comes out at the end."""
    seen = {}
    for layer in (0, 1):
        for module in ("q", "v"):
            a, b = (f"layers.{layer}.{module}.lora_{side}.weight" for side in "AB")
            seen[a], seen[b] = x, x @ theta[a].mT
            x = x + torch.tanh(x @ theta[a].mT @ theta[b].mT)
    return seen, x


class Reading(ByHand):
    """A task driven by hand whose method may read its examples, and look into layers meanwhile."""

    output_dims = (0,) * 8

    def rows(self, count: int | None = None) -> Tensor:
        """The inputs of some of the task's examples, one in each row."""
        return torch.cat([x for x, _ in self.current])[:count]

    def task_examples(self, count: int | None = None) -> Iterator[Batch]:
        """See `kifuse.methods.context.Context`."""
        for x in self.rows(count).split(3):
            yield x, x

    def watch(self, function: Callable[[Tensor, Tensor], Tensor]) -> Reading:
        """It is its own sums."""
        self.function, self.found = function, dict[str, Tensor]()
        return self

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *error: object) -> None:
        self.sums = [self.found[name] for name in self.params.names]

    def forward(self, batch: Batch) -> None:
        """See `kifuse.methods.context.Context`."""
        for name, x in layer_inputs(self.values(), batch[0])[0].items():
            value = self.function(x, x)
            self.found[name] = self.found[name] + value if name in self.found else value


def _first(method: GPM, steps: int = STEPS) -> Reading:
    run = Reading(method, values(), batches(steps), [], index=0)
    run.train()
    return run


def _second(method: GPM, first: Reading, **changes: Any) -> Reading:
    return Reading(method, first.values(), batches(STEPS, seed=5), [], index=1, **changes)


def _bases(method: GPM) -> dict[str, Tensor]:
    tensors = method.state().tensors.items()
    return {key.removeprefix("bases."): each for key, each in tensors if key.startswith("bases.")}


def _same_space(found: Tensor, wanted: list[Tensor]) -> None:
    columns = torch.stack(wanted, dim=1)
    assert found.shape == columns.shape
    found = found.double()
    torch.testing.assert_close(found @ found.mT, columns @ columns.mT, rtol=0, atol=1e-5)
    eye = torch.eye(found.shape[1], dtype=found.dtype)
    torch.testing.assert_close(found.mT @ found, eye, rtol=0, atol=1e-6)


SHARE = st.floats(0.05, 1.0)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9), SHARE, SHARE)
def test_a_basis_grows_by_the_fewest_directions_as_the_paper_has_it(
    seed: int, size: int, tokens: int, first: float, second: float
):
    draw = torch.Generator().manual_seed(seed)
    scale = torch.rand(size, generator=draw, dtype=torch.float64)
    wanted, found = list[Tensor](), None
    for share in (first, second):
        x = torch.randn(tokens, size, generator=draw, dtype=torch.float64) * scale
        wanted = gpm.extend(wanted, list(x), share)
        before, found = found, extended(found, x.mT @ x, share)
        assert before is None or torch.equal(found[:, : before.shape[1]], before)
        if share < 0.999:
            _same_space(found, wanted)
    assert found is not None and found.shape[1] <= size


def test_all_of_a_share_is_all_that_the_inputs_have_and_no_more():
    x = torch.zeros(5, 4)
    x[:, :2] = torch.arange(10.0).view(5, 2) + 1
    basis = extended(None, products(x, x), 1.0)
    assert basis.shape == (4, 2)
    torch.testing.assert_close(basis[2:], torch.zeros(2, 2), rtol=0, atol=1e-7)
    assert torch.equal(extended(basis, products(x, x), 1.0), basis)
    assert extended(None, torch.zeros(4, 4), 1.0).shape == (4, 0)
    assert extended(basis, torch.eye(4), 1.0).shape == (4, 4)


def test_the_bases_are_those_of_what_layers_see_of_some_examples():
    method = GPM(examples=7, threshold=0.9, growth=0.05)
    first = _first(method)
    wanted = {
        name: gpm.extend([], list(x), 0.9)
        for name, x in layer_inputs(first.values(), first.rows(7))[0].items()
    }
    for name, found in _bases(method).items():
        _same_space(found, wanted[name])
    second = _second(method, first)
    second.train()
    for name, x in layer_inputs(second.values(), second.rows(7))[0].items():
        _same_space(_bases(method)[name], gpm.extend(wanted[name], list(x), 0.95))
    taken = [len(basis.mT) / len(basis) for basis in _bases(method).values()]
    torch.testing.assert_close(second.measured["taken"], torch.tensor(taken))
    event = second.events[-1]
    assert (event["kind"], event["free"]) == ("bases", 0) and 0.5 < event["taken"] <= 1.0


def test_adam_s_steps_are_orthogonal_to_earlier_inputs():
    method = GPM(threshold=0.6)
    first = _first(method)
    bases, start = _bases(method), first.values()
    second = _second(method, first)
    for _ in second.steps():
        moved = 0.0
        for name, value in second.values().items():
            step = (value - start[name]).float()
            moved = max(moved, float(step.norm()))
            assert float((step @ bases[name]).abs().max()) < 1e-5
        assert moved > 1e-3


def test_without_the_projection_of_updates_adam_leaves_the_allowed_space():
    """What makes the default necessary: the paper's rule holds for its own optimizer only."""
    found = {}
    for project in ("update", "gradient"):
        method = GPM(threshold=0.6, project=project)
        first = _first(method)
        second = _second(method, first)
        for group in second.optimizer.param_groups:
            group["weight_decay"] = 0.0
        list(second.steps())
        steps = {name: (v - first.values()[name]).float() for name, v in second.values().items()}
        found[project] = max(float((steps[n] @ m).norm()) for n, m in _bases(method).items())
    assert found["update"] < 1e-5 and found["gradient"] > 1e-2


def test_what_the_model_says_of_earlier_inputs_stays_where_all_their_directions_are_kept():
    """Two examples span two of four directions: layer by layer, what comes out is what came out."""
    changes = {}
    for threshold in (1.0, 0.0):
        method = GPM(threshold=threshold, growth=0.0)
        first = Reading(method, values(), [(x[:2], y[:2]) for x, y in batches(1)], [], index=0)
        first.train()
        _, before = layer_inputs(first.values(), first.rows())
        second = _second(method, first, rates=0.2)
        list(second.steps())
        assert any(float((v - first.values()[n]).norm()) > 0.01 for n, v in second.values().items())
        _, after = layer_inputs(second.values(), first.rows())
        changes[threshold] = float((after - before).abs().max())
    assert changes[1.0] < 1e-5 and changes[0.0] > 0.1


def test_the_gradient_is_projected_as_the_paper_has_it():
    method = GPM(threshold=0.6, project="gradient")
    first = _first(method)
    params = first.params
    for p in params.tensors[1:]:
        p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view_as(p)
    before = {name: p.grad.clone() for name, p in params.pairs if p.grad is not None}
    begin(method, Bare(params))
    method.on_gradients(Bare(params))
    assert params.grads[0] is None
    for name, g in before.items():
        wanted = gpm.project(g, list(_bases(method)[name].double().mT))
        found = first.params.grads[params.names.index(name)]
        assert found is not None
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("project", ["update", "gradient"])
def test_a_layer_without_a_direction_left_does_not_move(project: Any):
    """Adam would bring the rounding error of the projection to the size of the learning rate."""
    method = GPM(threshold=1.0, project=project)
    first = _first(method)
    assert all(basis.shape[0] == basis.shape[1] for basis in _bases(method).values())
    second = _second(method, first)
    for group in second.optimizer.param_groups:
        group["weight_decay"] = 0.0
    list(second.steps())
    assert all(torch.equal(v, first.values()[n]) for n, v in second.values().items())


def test_a_transposed_weight_and_one_of_no_linear_layer():
    params = Parameters((n, nn.Parameter(torch.ones(s))) for n, s in {"conv": (4, 4), "norm": (4,)}.items())
    x = torch.tensor([[3.0, 0.0, 0.0, 4.0]])

    class One(Reading):
        output_dims = (1, None)

        def forward(self, batch: Batch) -> None:
            self.found = {"conv": products(x, x), "norm": None}  # type: ignore[dict-item]

    method = GPM(project="gradient")
    run = One(method, {name: p.detach() for name, p in params.pairs}, batches(1), [], index=0)
    run.begin()
    run.end()
    assert run.events[-1]["free"] == 1 and _bases(method).keys() == {"conv"}
    again = GPM(project="gradient")
    again.load_state(method.state())
    begin(again, Bare(params))
    for p in params.tensors:
        p.grad = torch.arange(p.numel(), dtype=p.dtype).view_as(p) + 1
    again.on_gradients(Bare(params))
    grad = params.tensors[0].grad
    assert grad is not None and float((x @ grad).abs().max()) < 1e-4 < float((grad @ x.mT).abs().max())
    assert torch.equal(params.tensors[1].grad, torch.arange(4.0) + 1)  # type: ignore[arg-type]


def test_inputs_that_are_not_finite_are_left_out_and_told():
    method = GPM(threshold=0.6)
    second = _second(method, _first(method))
    before = {name: basis.clone() for name, basis in _bases(method).items()}
    list(second.steps())
    with torch.no_grad():
        second.params.tensors[-2].mul_(float("inf"))
    second.end()
    event = second.events[-1]
    assert event["overflowed"] == 1 and "1 layer not read" in GPM.shown.event_text("bases", event)
    name = second.params.names[-1]
    assert torch.equal(_bases(method)[name], before[name])
    assert all(torch.equal(now[:, : before[n].shape[1]], before[n]) for n, now in _bases(method).items())


@pytest.mark.parametrize("project", ["update", "gradient"])
def test_the_middle_of_a_task_is_taken_up_from_the_state_alone(project: str):
    ends = []
    for stopped in (False, True):
        method = GPM(threshold=0.6, project=project)
        second = _second(method, _first(method))
        for step in second.steps():
            if step == 2 and stopped:
                state = second.method.state()
                second.method = GPM(threshold=0.6, project=project)
                second.method.load_state(state)
                second.go_on()
        second.end()
        ends.append((second.values(), second.method.state().tensors))
    (one, first), (two, last) = ends
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert first.keys() == last.keys() and all(torch.equal(first[n], last[n]) for n in first)


def test_a_state_of_another_model_is_refused():
    method = GPM()
    _first(method)
    for name, shape in (("w", (3, 3)), ("layers.0.q.lora_A.weight", (2, 5))):
        fresh = GPM()
        fresh.load_state(method.state())
        with pytest.raises(ValueError, match="it is of another model"):
            begin(fresh, Bare(Parameters([(name, nn.Parameter(torch.zeros(shape)))])))


def test_a_share_of_nothing_is_plain_training():
    end = _second(method := GPM(threshold=0.0, growth=0.0), _first(method)).train()[-1]
    plain = Reading(Sequential(), values(), batches(STEPS), [], index=0)
    plain.train()
    expected = Reading(Sequential(), plain.values(), batches(STEPS, seed=5), [], index=1).train()[-1]
    assert all(torch.equal(end[n], expected[n]) for n in end) and not method.state().tensors


def test_settings_and_passes():
    task = TaskInfo(0, "a", 10, batch_size=4, examples=30)
    assert GPM(examples=24).extra_passes(task, 0) == 2
    assert GPM(examples=99).extra_passes(task, 0) == 2
    for settings in ({"examples": 0}, {"threshold": 1.1}, {"growth": -0.1}, {"project": "both"}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}: found"):
            build_method("gpm", settings)
