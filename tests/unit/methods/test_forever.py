"""FOREVER by hand: model time as a pure function of the sizes of updates, and the anchored replay events."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch import Tensor

from kifuse.errors import ConfigError
from kifuse.methods.context import TaskInfo
from kifuse.methods.forever import Forever, ModelTime
from kifuse.methods.kept import MethodState
from kifuse.registry import build_method
from tests.reference import forever as reference
from tests.unit.methods.by_hand import ByHand, batches, loss, values

DAYS = (1.0, 2.0, 4.0, 7.0, 15.0, 30.0)
SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=120)


def events(sizes: list[float], day_steps: int = 24, schedule: tuple[float, ...] = DAYS) -> list[int]:
    """The steps after which a mark is reached."""
    time = ModelTime(day_steps, schedule, 0.05)
    return [step for step, size in enumerate(sizes, start=1) if time.step(size)]


@given(st.floats(1e-6, 1e6))
@effort(max_examples=30, deadline=None)
def test_updates_of_one_size_are_replayed_after_whole_days(size: float):
    assert events([size] * 800) == [24, 48, 96, 168, 360, 720]


@given(SIZES, st.integers(1, 12), st.floats(1e-4, 1e4))
@effort(max_examples=60, deadline=None)
def test_the_unit_of_the_weights_does_not_matter(sizes: list[int], day_steps: int, factor: float):
    found = events([float(s) for s in sizes], day_steps)
    assert events([s * factor for s in sizes], day_steps) == found
    assert (
        found == reference.event_steps_of([float(s) for s in sizes], day_steps, DAYS)
        or len(sizes) < day_steps
    )


@given(SIZES, st.integers(1, 12), st.floats(0.0, 4.0))
@effort(max_examples=60, deadline=None)
def test_the_anchor_stays_between_its_bounds(sizes: list[int], day_steps: int, gamma: float):
    """beta_t is in [0.5, 3] beta_base, by the equation, and beta_base at the end of the first day."""
    time = ModelTime(day_steps, DAYS, 0.05)
    for count, size in enumerate(sizes, start=1):
        time.step(float(size))
        strength = min(max(1 + gamma * (time.ratio - 1), 0.5), 3.0)
        if count < day_steps:
            assert (time.days, time.ratio) == (count / day_steps, 1.0)
        if count == day_steps:
            assert math.isclose(strength, 1.0)
        if count >= day_steps:
            wanted = reference.strength_at(
                sizes[:count], day_steps, base=1.0, gamma=gamma, smoothing=0.05, low=0.5, high=3.0
            )
            assert math.isclose(strength, wanted, rel_tol=1e-9)


def test_marks_passed_in_one_step_are_one_event():
    assert events([1.0, 100.0, 1.0], 1) == [1, 2]
    assert events([0.0] * 10, 2) == []


def test_time_goes_on_from_its_state():
    sizes = [float(1 + (7 * i) % 5) for i in range(90)]
    time, found = ModelTime(5, DAYS, 0.05), []
    for step, size in enumerate(sizes, start=1):
        if step % 7 == 0:
            fresh = ModelTime(5, DAYS, 0.05)
            fresh.load_state_dict(time.state_dict())
            time = fresh
        if time.step(size):
            found.append(step)
    assert found == events(sizes, 5)


STEPS, SETTINGS = 8, {"day_steps": 2, "anchor": 0.3, "schedule": (1.0, 2.0, 3.0), "event_steps": 2}


def trained(method: Forever, index: int = 1, steps: int = STEPS) -> ByHand:
    return ByHand(method, values(), batches(steps), batches(4, 2), index=index)


@pytest.mark.parametrize(
    "changes", [{}, {"gamma": 4.0, "smoothing": 0.6}, {"anchor": 0.0}, {"clip": (0.9, 1.0), "gamma": 9.0}]
)
def test_training_is_what_the_equations_say(changes: dict[str, Any]):
    settings = {**SETTINGS, **changes}
    training = trained(Forever(**settings))
    reached = training.train()
    low, high = settings.get("clip", (0.5, 3.0))
    expected, happened = reference.forever(
        values(),
        loss,
        batches(STEPS),
        [*batches(4, 2), *batches(4, 2)],
        rate=0.02,
        weight_decay=0.01,
        day_steps=2,
        marks=settings["schedule"],
        event_steps=2,
        base=settings["anchor"],
        gamma=settings.get("gamma", 1.0),
        smoothing=settings.get("smoothing", 0.05),
        low=low,
        high=high,
    )
    told = [event for event in training.events if event["kind"] == "replay event"]
    assert [event["step"] for event in told] == [step for step, _ in happened] and len(told) >= 2
    for event, (_, strength) in zip(told, happened, strict=True):
        assert math.isclose(event["anchor"], strength, rel_tol=1e-5)
    for found, wanted in zip(reached, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_the_first_task_has_no_event_and_remembers_nothing():
    training = trained(Forever(**SETTINGS), index=0)
    training.train()
    assert not training.memory_rates and not training.events
    assert training.method.state() == MethodState()


def test_the_anchor_pulls_at_nothing_at_a_task_s_start():
    """With the weights where they were, the gradient of beta ||Theta - Theta*||^2 is 0."""
    method = Forever(**SETTINGS)
    training = trained(method)
    training.begin()
    assert all(not away.any() for away in method._away(training.params))


def test_a_pass_over_the_memory_is_an_event_unless_it_is_longer_than_a_day():
    for size, batches_in_memory in ((2, 4), (6, 4)):
        method = Forever(day_steps=size, schedule=(1.0,))
        training = trained(method)
        training.train()
        assert len(training.memory_rates) == min(size, batches_in_memory)
        assert method.extra_passes(training.task, 4) == min(size, batches_in_memory)
    assert Forever().extra_passes(TaskInfo(0, "first", 1000), 9) == 0
    assert Forever().extra_passes(TaskInfo(1, "second", 1000), 9) == 6 * 9
    assert Forever(event_steps=2).extra_passes(TaskInfo(1, "second", 100), 9) == 3 * 2


def test_memory_steps_take_no_time():
    """As many events as without their own updates: an event does not bring the next one nearer."""
    short, long = (trained(Forever(**{**SETTINGS, "event_steps": n, "anchor": 0.0})) for n in (1, 4))
    for training in (short, long):
        training.train()
        last = training.events[-1]
        sizes = last["days"] * last["day"]
        assert last["kind"] == "model time" and sizes > 0
    steps = [[e["step"] for e in t.events if e["kind"] == "replay event"] for t in (short, long)]
    assert steps[0][0] == steps[1][0] == 2


def test_a_skipped_step_takes_no_time():
    method = Forever(**SETTINGS)
    training = trained(method)
    next(training.steps())
    elapsed = method._time.elapsed
    method.on_step(training)
    assert method._time.elapsed == elapsed and not training.memory_rates


def test_going_on_in_the_middle_ends_as_if_nothing_had_happened():
    whole = trained(Forever(**SETTINGS))
    expected = whole.train()[-1]
    for cut in range(1, STEPS):
        training = trained(Forever(**SETTINGS))
        for step in training.steps():
            if step == cut:
                fresh = Forever(**SETTINGS)
                fresh.load_state(training.method.state())
                training.method = fresh
                training.go_on()
        training.end()
        assert all(torch.equal(training.values()[n], v) for n, v in expected.items())
        assert training.events == whole.events


def test_a_state_of_another_moment_is_refused():
    training = trained(Forever(**SETTINGS))
    training.method.load_state(MethodState())
    with pytest.raises(ValueError, match="not of a task's middle"):
        training.go_on()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": [2, 1]}, "method.schedule: found the list [2, 1]"),
        ({"schedule": [0.5, 1]}, "method.schedule: found the list [0.5, 1]"),
        ({"schedule": []}, "method.schedule: found the list []"),
        ({"clip": [3, 1]}, "method.clip: found the list [3, 1]"),
        ({"day_steps": 0}, "method.day_steps: found 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        build_method("forever", settings)
    assert message in str(caught.value)


def test_the_defaults_are_those_established():
    made = Forever()
    assert (made.day_steps, made.schedule, made.anchor) == (24, DAYS, 1e-3)
    assert (made.smoothing, made.clip, made.gamma) == (0.05, (0.5, 3.0), 1.0)


def test_the_state_is_one_copy_of_the_weights():
    training = trained(Forever(**SETTINGS))
    next(training.steps())
    tensors: dict[str, Tensor] = training.method.state().tensors
    assert sum(t.numel() for t in tensors.values()) == training.params.count
