"""KIF and the averages by hand: going on in a task's middle, what is kept between tasks, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from kifuse.errors import ConfigError
from kifuse.methods.base import Method
from kifuse.methods.kept import MethodState
from kifuse.methods.kif import KIF
from kifuse.methods.parameters import Parameters
from kifuse.registry import build_method
from tests.reference import per_example
from tests.unit.methods.by_hand import SHAPES, Bare, Batch, ByHand, batches, begin, loss, values

STEPS = 5
RANKS = 8
"""Rank units of the model: four modules of rank 2."""


class Learning(ByHand):
    """Offers a method the squares of single examples, as an engine does."""

    def _gradients(self, batch: Batch) -> None:
        super()._gradients(batch)
        if "squares" in self.method.needs:
            theta, (x, target) = dict(zip(self.params.names, self.params.tensors, strict=True)), batch
            shares = [
                lambda row=row: loss(theta, (x[row : row + 1], target[row : row + 1])) / len(x)
                for row in range(len(x))
            ]
            squares, _ = per_example.sum_of_squares(self.params.tensors, shares)
            self.squares = [square.float() for square in squares]


def _method(settings: Mapping[str, Any]) -> Method:
    return build_method(settings["name"], {k: v for k, v in settings.items() if k != "name"})


def _task(method: Method, index: int, theta: dict[str, Tensor] | None = None) -> Learning:
    return Learning(
        method, theta or values(), batches(STEPS, seed=10 + index), batches(2, seed=3), index=index
    )


def _through_files(state: MethodState) -> MethodState:
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    return MethodState(from_bytes(to_bytes(tensors)), json.loads(json.dumps(state.values)))


def _equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


RESUMED: dict[str, dict[str, Any]] = {
    "kif": {"name": "kif"},
    "kiflora": {"name": "kiflora"},
    "authors' timing": {"name": "kif", "reading": "after", "units": "module"},
    "single examples": {"name": "kiflora", "fisher": "per_example"},
    "by element": {"name": "kif", "units": "element", "threshold": "share", "scope": "layer"},
    "without uncertainty": {"name": "kif", "uncertainty": False, "fusion": "average", "average": 0.3},
    "without smoothing": {"name": "kif", "smoothing": False, "fusion": "none"},
    "running average": {"name": "kif", "fusion": "ema", "ema_decay": 0.8},
    "kif-m": {"name": "kif-m", "quantile": 0.5},
    "kiflora-m": {"name": "kiflora-m", "quantile": 0.5},
    "weight-ensemble": {"name": "weight-ensemble", "average": 0.3},
    "ema": {"name": "ema", "decay": 0.8},
}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_going_on_after_any_step_is_bit_identical(settings: dict[str, Any], index: int):
    earlier = _method(settings)
    if index:
        first = _task(earlier, 0)
        first.train()
        theta, past = first.values(), _through_files(earlier.state())
    else:
        theta, past = values(), MethodState()

    def learner() -> Method:
        method = _method(settings)
        method.load_state(past)
        return method

    whole = _task(learner(), index, theta)
    expected = whole.train()
    at_end = whole.method.state()
    for stop in range(1, STEPS + 1):
        training = _task(learner(), index, theta)
        for step in training.steps():
            if step == stop:
                saved = _through_files(training.method.state())
                training.method = _method(settings)
                training.method.load_state(saved)
                # what a checkpoint written before the first step after it would hold
                again = training.method.state()
                assert again.values == saved.values
                _equal(again.tensors, saved.tensors)
                training.go_on()
            if step >= stop:
                _equal(training.values(), expected[step - 1])
        training.end()
        _equal(training.values(), whole.values())
        assert training.events == whole.events
        _equal(training.measured, whole.measured)
        found = training.method.state()
        assert found.values == at_end.values
        _equal(found.tensors, at_end.tensors)


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_snapshot_is_not_changed_by_going_on(settings: dict[str, Any]):
    training = _task(_method(settings), 1)
    for step in training.steps():
        if step == 2:
            state = training.method.state()
            kept = _through_files(state)
    _equal(state.tensors, kept.tensors)


@pytest.mark.parametrize(("units", "count"), [("matrix", 8), ("rank", RANKS), ("element", 64), ("layer", 2)])
def test_two_scores_per_unit_outlive_a_task_however_many_there_were(units: str, count: int):
    method, theta = _method({"name": "kif", "units": units}), values()
    for index in range(4):
        training = _task(method, index, theta)
        training.train()
        theta = training.values()
        state = method.state()
        assert {name: tuple(t.shape) for name, t in state.tensors.items()} == {
            "history": (count,),
            "current": (count,),
        }
        assert state.values == {"units": units, "parameters": list(SHAPES)}
        # apart in memory, as a file of tensors wants them
        assert state.tensors["history"].data_ptr() != state.tensors["current"].data_ptr()
        if index == 0:
            assert torch.equal(state.tensors["history"], state.tensors["current"])


@pytest.mark.parametrize("name", ["weight-ensemble", "ema"])
def test_averages_keep_nothing_between_tasks(name: str):
    method = _method({"name": name})
    training = _task(method, 1)
    training.train()
    assert method.state() == MethodState()


@pytest.mark.parametrize(
    ("plain", "kif"),
    [
        ({"name": "weight-ensemble", "average": 0.3}, {"fusion": "average", "average": 0.3}),
        ({"name": "ema", "decay": 0.8}, {"fusion": "ema", "ema_decay": 0.8}),
    ],
)
def test_an_average_by_itself_is_kif_with_that_fusion(plain: dict[str, Any], kif: dict[str, Any]):
    methods, reached = [_method(plain), _method({"name": "kif", **kif})], []
    for method in methods:
        theta = values()
        for index in range(3):
            training = _task(method, index, theta)
            training.train()
            theta = training.values()
        reached.append((theta, training.measured["moved"], training.measured["weight_of_previous"]))
    for one, other in zip(reached[0][1:], reached[1][1:], strict=True):
        assert torch.equal(one, other)
    _equal(reached[0][0], reached[1][0])


@pytest.mark.parametrize("settings", [{"name": "weight-ensemble"}, {"name": "ema"}])
def test_an_average_of_the_first_task_is_the_task_alone(settings: dict[str, Any]):
    training = _task(_method(settings), 0)
    reached = training.train()
    _equal(training.values(), reached[-1])
    assert training.events == [] and training.measured.keys() == {"moved"}


def test_averages_follow_their_equations():
    start = values()
    ensemble = _task(_method({"name": "weight-ensemble", "average": 0.3}), 1)
    last = ensemble.train()[-1]
    for name, value in ensemble.values().items():
        torch.testing.assert_close(value, 0.3 * start[name] + 0.7 * last[name])
    average = _task(_method({"name": "ema", "decay": 0.8}), 1)
    expected = start
    for reached in average.train():
        expected = {name: 0.8 * value + 0.2 * reached[name] for name, value in expected.items()}
    _equal_within(average.values(), expected)
    assert average.events[0]["mean_weight_of_previous"] == pytest.approx(0.8**STEPS)


def _equal_within(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("settings", [{"name": "kif"}, {"name": "ema"}, {"name": "weight-ensemble"}])
def test_going_on_from_another_moment_is_refused(settings: dict[str, Any]):
    training = _task(_method(settings), 1)
    next(training.steps())
    saved = _through_files(training.method.state())
    fresh = _method(settings)
    smaller = Parameters([(next(iter(SHAPES)), nn.Parameter(torch.zeros(3, 4)))])
    begin(fresh, Bare(smaller))
    with pytest.raises(ValueError, match="expected shape"):
        fresh.go_on(saved, smaller)
    training.end()
    again = _task(fresh, 1)
    fresh.load_state(_through_files(training.method.state()))
    with pytest.raises(ValueError, match="not of a task's middle"):
        again.go_on()


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_new_task_forgets_the_middle_of_another(settings: dict[str, Any]):
    training = _task(_method(settings), 1)
    next(training.steps())
    fresh = _method(settings)
    fresh.load_state(_through_files(training.method.state()))
    one, other = _task(fresh, 1), _task(_method(settings), 1)
    one.train()
    other.train()
    _equal(one.values(), other.values())
    assert one.events == other.events


def test_a_history_of_other_units_is_refused():
    method = _method({"name": "kif"})
    method.load_state(MethodState({"history": torch.rand(5)}))
    training = _task(method, 1)
    with pytest.raises(ValueError, match="the history has 5 skill units, the model 8"):
        training.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"fisher": "per_example"},
            "method.fisher: found 'per_example' (text), expected 'batch' with order 'first'",
        ),
        (
            {"threshold": "share", "fusion": "adaptive"},
            "method.threshold: found 'share' (text), expected 'quantile' with fusion 'adaptive' and no",
        ),
        (
            {"scope": "layer", "fusion": "ema"},
            "method.scope: found 'layer' (text), expected 'global' with fusion 'ema' and no replay stage",
        ),
        (
            {"scope": "module", "units": "module"},
            "method.scope: found 'module' (text), expected 'global' with units 'module': a module holds",
        ),
        (
            {"scope": "layer", "units": "layer"},
            "units only of the levels element, rank, matrix, module",
        ),
        ({"scope": "module", "units": "layer"}, "method.scope: found 'module'"),
        ({"ema_decay": 1.0}, "method.ema_decay: found 1.0, expected a number of at least 0 and below 1"),
        ({"importance_share": 1.5}, "method.importance_share: found 1.5"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        build_method("kif", settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"fisher": "per_example", "order": "second"},
        {"threshold": "share", "fusion": "adaptive", "replay_epochs": 1},
        {"scope": "layer", "fusion": "none", "replay_epochs": 1},
        {"scope": "layer", "units": "module"},
    ],
)
def test_settings_that_mean_something_together_are_taken(settings: dict[str, Any]):
    made = build_method("kif", settings)
    assert isinstance(made, KIF)
    assert {key: getattr(made, key) for key in settings} == settings


def test_a_step_that_is_not_finite_leaves_importance_as_it_was():
    training = _task(_method({"name": "kiflora", "fisher": "per_example"}), 0)
    for step in training.steps():
        if step == 2:
            before = {k: v for k, v in training.method.state().tensors.items() if "bar" in k}
            training.squares[3][0, 0] = torch.inf
            for p in training.params.tensors:
                p.grad = torch.ones_like(p)
            training.method.on_gradients(training)
            training.optimizer.zero_grad()
            after = {k: v for k, v in training.method.state().tensors.items() if "bar" in k}
            _equal(after, before)
    training.end()
    assert training.events[0] == {"kind": "importance", "step": STEPS, "skipped_steps": 1}
