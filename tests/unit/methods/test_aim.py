"""AIMMerging by hand: the controller as a pure function of traces, the merge, and going on."""

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
from kifuse.methods.aim import AIMMerging, Intervals, _weighted
from kifuse.methods.context import TaskInfo
from kifuse.methods.kept import MethodState
from kifuse.registry import build_method
from tests.reference import aim as reference
from tests.unit.methods.by_hand import ByHand, batches, loss, values

LOSSES = st.lists(st.integers(1, 9), min_size=1, max_size=250)
MOVES = st.lists(st.integers(1, 40), min_size=125, max_size=125)


def merges(
    losses: list[float], moves: list[float], **settings: Any
) -> list[tuple[int, int, int, bool, bool, int]]:
    """(step, S, flags, forced, early, M) of each merge."""
    made, found = Intervals(**settings), []
    for step, each in enumerate(losses, start=1):
        if made.probe(step, each):
            early = step < made.due
            found.append((step, made.interval, made.flags, made.forced, early, made.memory_steps))
            made.merged(step, moves[len(found) - 1])
    return found


@given(LOSSES, MOVES, st.sampled_from([0.5, 1.0, 2.0]))
@effort(max_examples=50, deadline=None)
def test_the_controller_is_the_rule_of_the_code(losses: list[int], moves: list[int], kappa: float):
    found = merges([float(x) for x in losses], [float(x) for x in moves], threshold=kappa)
    # sums of small whole numbers, halves and doubles of them: the comparisons have no rounding
    wanted = reference.merges_of(losses, moves, kappa=kappa)
    assert [each[:4] for each in found] == wanted


@given(LOSSES, MOVES, st.floats(0.0, 4.0))
@effort(max_examples=50, deadline=None)
def test_no_interval_is_longer_than_twice_what_was_planned(losses: list[int], moves: list[int], kappa: float):
    last = 0
    found = merges([float(x) for x in losses], [float(x) for x in moves], threshold=kappa)
    for number, (step, interval, flags, forced, early, memory_steps) in enumerate(found, start=1):
        assert 0 < step - last <= 2 * interval
        assert 2 <= interval <= 128 and memory_steps == interval
        assert flags >= (3 if early else 1)
        assert not forced or step - last == 2 * interval
        if number <= 5:
            # the first four merges leave S
            assert interval == 8
        last = step
    assert len(losses) - last < 2 * (found[-1][1] if found else 8) or len(found) > 4


def test_three_alarms_force_a_merge_before_it_is_due():
    losses = [1.0] * 6 + [9.0] * 3
    # S = 12: probes 0 to 8 are collected, so that alarms may come from the tenth step on
    assert merges([1.0] * 9 + [9.0] * 9, [1.0], interval=12) == [(12, 12, 3, False, False, 8)]
    assert merges([1.0] * 11 + [99.0] * 3, [1.0], interval=16) == [(14, 16, 3, False, True, 8)]
    assert merges(losses, [1.0])[0] == (8, 8, 2, False, False, 8)


def test_without_an_alarm_a_merge_comes_at_twice_the_interval():
    assert [each[0] for each in merges([1.0] * 70, [1.0] * 9)] == [16, 32, 48, 64]
    assert all(each[2:4] == (1, True) for each in merges([1.0] * 70, [1.0] * 9))


@pytest.mark.parametrize(
    ("interval", "old", "new", "wanted"),
    [
        (8, 1.0, 2.0, 4),
        (8, 1.0, 100.0, 2),
        (8, 2.0, 1.0, 24),
        (8, 1.0, 1.0, 8),
        (63, 2.0, 1.0, 128),
        (64, 1.25, 1.0, 112),
        (100, 1.0, 1.0, 50),
        (128, 1.0, 1.9375, 33),
        (8, 1.0, 0.0, 128),
        (8, 0.0, 1.0, 2),
        (8, 0.0, 0.0, 8),
        (8, 1.0, 5e-324, 128),
    ],
)
def test_the_interval_follows_the_learning_signal(interval: int, old: float, new: float, wanted: int):
    made = Intervals()
    made.interval, made.signal, made.merges = interval, old, 4
    made.merged(100, new * interval)
    assert made.interval == wanted and made.due == 100 + wanted


@pytest.mark.parametrize(
    ("interval", "flags", "weights"),
    [
        (8, 1, (0.6, 0.4)),
        (70, 3, (0.5, 0.5)),
        (71, 2, (0.4, 0.6)),
        (71, 1, (0.5, 0.5)),
    ],
)
def test_the_weights_are_an_average(interval: int, flags: int, weights: tuple[float, float]):
    made = Intervals()
    made.interval, made.flags = interval, flags
    assert made.weights == weights == reference.fusion_weights(interval, flags)
    start, inner = [torch.randn(3, dtype=torch.float64)], [torch.randn(3, dtype=torch.float64)]
    # the memory steps moved nothing
    (alone,) = _weighted(start, inner, [torch.zeros(3, dtype=torch.float64)], weights)
    torch.testing.assert_close(alone, start[0] + weights[0] * inner[0])
    # both went the same way: not amplified
    (same,) = _weighted(start, inner, inner, weights)
    torch.testing.assert_close(same, start[0] + inner[0])


def test_a_broken_probe_is_neither_collected_nor_an_alarm():
    broken = [math.nan, math.inf, 1.0, 1.0, 1.0, 1.0, math.nan, math.inf, *[1.0] * 8]
    assert merges(broken, [1.0]) == [(16, 8, 1, True, False, 8)]
    assert merges([math.nan] * 16, [1.0]) == [(16, 8, 1, True, False, 8)]


STEPS, SETTINGS = 10, {"interval": 2, "memory_steps": 3, "threshold": 0.5}


def trained(method: AIMMerging, index: int = 1) -> ByHand:
    return ByHand(method, values(), batches(STEPS), batches(6, 2), index=index)


def test_training_is_what_the_code_does():
    training = trained(AIMMerging(**SETTINGS))
    reached = training.train()
    memory = batches(6, 2)
    expected, happened = reference.aimmerging(
        values(),
        loss,
        batches(STEPS),
        memory * 4,
        # as the passes by hand draw them: backwards, in their own turn
        [memory[-number % 6] for number in range(1, STEPS + 1)],
        rate=0.02,
        weight_decay=0.01,
        interval=2,
        memory_steps=3,
        kappa=0.5,
    )
    told = [event for event in training.events if event["kind"] == "merge"]
    assert [(e["step"], e["flags"]) for e in told] == happened and len(told) >= 3
    for found, wanted in zip(reached, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert training.events[-1]["kind"] == "intervals"
    assert training.events[-1]["alarms"] == sum(e["flags"] for e in told if not e["forced"])
    assert len(training.memory_rates) == sum(e["memory_steps"] for e in told)


def test_the_learning_signal_is_how_far_the_task_s_own_steps_went():
    training = trained(AIMMerging(**SETTINGS))
    start = training.values()
    for _ in training.steps():
        if training.before_memory:
            break
    moved = sum(float((training.before_memory[n] - start[n]).abs().sum()) for n in start)
    assert math.isclose(training.events[0]["learning_signal"], moved / 2, rel_tol=1e-9)


def test_the_first_task_is_plain_training():
    training, plain = trained(AIMMerging(**SETTINGS), index=0), trained(build_method("sequential"), index=0)
    for found, wanted in zip(training.train(), plain.train(), strict=True):
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert not training.events and not training.passes.probed
    assert training.method.state() == MethodState()


def test_the_last_unfinished_interval_stays_unmerged():
    training = trained(AIMMerging(interval=8, threshold=1e6))
    plain = trained(build_method("sequential"))
    for found, wanted in zip(training.train(), plain.train(), strict=True):
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert training.passes.probed == STEPS


def test_going_on_in_the_middle_ends_as_if_nothing_had_happened():
    whole = trained(AIMMerging(**SETTINGS))
    expected = whole.train()[-1]
    for cut in range(1, STEPS):
        training = trained(AIMMerging(**SETTINGS))
        for step in training.steps():
            if step == cut:
                fresh = AIMMerging(**SETTINGS)
                fresh.load_state(training.method.state())
                training.method = fresh
                training.go_on()
        training.end()
        assert all(torch.equal(training.values()[n], v) for n, v in expected.items())
        assert training.events == whole.events


def test_a_state_of_another_moment_is_refused():
    training = trained(AIMMerging(**SETTINGS))
    training.method.load_state(MethodState())
    with pytest.raises(ValueError, match="not of a task's middle"):
        training.go_on()


def test_the_state_is_one_copy_of_the_weights():
    training = trained(AIMMerging(**SETTINGS))
    next(training.steps())
    tensors: dict[str, Tensor] = training.method.state().tensors
    assert sum(t.numel() for t in tensors.values()) == training.params.count


def test_about_one_memory_step_and_a_third_of_a_pass_a_step():
    made = AIMMerging()
    assert made.extra_passes(TaskInfo(0, "first", 300), 4) == 0
    assert made.extra_passes(TaskInfo(1, "second", 300), 4) == 400


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"interval": 200},
            "method.interval: found 200, expected a number from shortest (2) to longest (128)",
        ),
        ({"shortest": 9}, "method.interval: found nothing, expected a number from shortest (9)"),
        ({"interval": 1}, "method.interval: found 1"),
        ({"probe": "off"}, "method.probe: found 'off'"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        build_method("aimmerging", settings)
    assert message in str(caught.value)
