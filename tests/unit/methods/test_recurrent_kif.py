"""Recurrent-KIF by hand: every switch against Algorithm 1 written out, and going on in a task's middle."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch import Tensor, nn

from kifuse.errors import ConfigError
from kifuse.methods.kept import MethodState
from kifuse.methods.parameters import Parameters
from kifuse.methods.recurrent_kif import RecurrentKIF
from kifuse.registry import build_method
from tests.reference.recurrent import Round, recurrent_kif
from tests.unit.methods.by_hand import Bare, ByHand, Values, batches, begin, loss, values

RATE, OUTER_RATE, Q, M, STEPS = 0.02, 0.01, 3, 2, 8
ROUNDS = -(-STEPS // Q)  # the last one is short


def _module(name: str) -> str:
    return name.rpartition(".lora_")[0]


def _layer(name: str) -> str:
    return name.split(".")[1]


PUBLISHED = {"fusion": "published", "score": "uncertainty", "alpha_inner": 0.85, "alpha_outer": 0.15}
LITERAL_PUBLISHED = {"both": (0.4, 0.6), "neither": (0.5, 0.5), "importance": "uncertainty"}

SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": ({}, {}),
    "published": (PUBLISHED, LITERAL_PUBLISHED),
    "static outer importance": ({"outer_importance": "static"}, {"static_outer": True}),
    "no masks": ({"masks": "none"}, {"masks": "none"}),
    "one weight for all": ({"masks": "global"}, {"masks": "global"}),
    "soft masks": ({"masks": "soft"}, {"masks": "soft"}),
    "soft masks, other tau": ({"masks": "soft", "tau": 0.6}, {"masks": "soft", "tau": 0.6}),
    "without sharing": ({"share": False, "quantile": 0.4}, {"share": False, "fraction": 0.6}),
    "published without sharing": (
        {**PUBLISHED, "share": False, "quantile": 0.4},
        {**LITERAL_PUBLISHED, "share": False, "fraction": 0.6},
    ),
    "gradient": ({"importance": "gradient"}, {"importance": "gradient"}),
    "second order": ({"importance": "second"}, {"importance": "second"}),
    "magnitude": ({"importance": "magnitude"}, {"importance": "magnitude"}),
    "last step": ({"smoothing": False}, {"importance": "last"}),
    "other averages": ({"alpha_inner": 0.3, "alpha_outer": 0.8}, {"alpha1": 0.3, "alpha2": 0.8}),
    "a share of the importance": ({"threshold": "share", "importance_share": 0.7}, {"carry": 0.7}),
    "by module": ({"scope": "module"}, {"group_of": _module}),
    "by layer": ({"scope": "layer", "quantile": 0.5}, {"group_of": _layer, "fraction": 0.5}),
    "a share of each module": (
        {"threshold": "share", "scope": "module"},
        {"carry": 0.9, "group_of": _module},
    ),
    "one fusion": ({"rounds": "one"}, {}),
    "one fusion, static, soft": (
        {"rounds": "one", "outer_importance": "static", "masks": "soft"},
        {"static_outer": True, "masks": "soft"},
    ),
    "reset moments": ({"moments": "reset"}, {"forget_moments": True}),
}
EVERY = pytest.mark.parametrize("name", SWITCHES)


def _method(**settings: Any) -> RecurrentKIF:
    return RecurrentKIF(**{"inner_steps": Q, "outer_steps": M, **settings})


def _by_hand(method: RecurrentKIF, seed: int = 0, **options: Any) -> ByHand:
    given = {"rates": RATE, **options}
    return ByHand(method, values(seed), batches(STEPS, seed + 1), batches(ROUNDS * M, seed + 2), **given)


def _literal(once: bool = False, steps: int = STEPS, **options: Any) -> list[Round]:
    inner = [batches(STEPS, 1)[start : min(start + Q, steps)] for start in range(0, steps, Q)]
    outer = [batches(ROUNDS * M, 2)[i * M : (i + 1) * M] for i in range(len(inner))]
    if once:
        inner, outer = ([[batch for part in parts for batch in part]] for parts in (inner, outer))
    return recurrent_kif(
        values(), loss, inner, outer, rate_in=RATE, optimizer="adamw", weight_decay=0.01, **options
    )


def _close(found: Values, expected: Values) -> None:
    # scores, and with them soft weights, are float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@EVERY
@pytest.mark.parametrize("optimizer", ["shared", "own"])
def test_every_round_ends_where_the_algorithm_ends(name: str, optimizer: str):
    settings, options = SWITCHES[name]
    once = settings.get("rounds") == "one"
    share = optimizer == "shared"
    rounds = _literal(once, rate_out=OUTER_RATE, share_optimizer=share, **options)
    outer = {} if share else {"outer_optimizer": "own", "outer_lr": OUTER_RATE}
    reached = _by_hand(_method(**settings, **outer)).train()
    ends = [STEPS] if once else [Q, 2 * Q, STEPS]
    assert len(rounds) == len(ends)
    for round_, step in zip(rounds, ends, strict=True):
        _close(reached[step - 1], round_.theta_next)


@EVERY
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    whole = _by_hand(_method(**SWITCHES[name][0]))
    expected = whole.train()[-1]
    monkeypatch.setattr("kifuse.knowledge.chunks.SMALLEST", 5)
    pieces = _by_hand(_method(**SWITCHES[name][0]))
    found = pieces.train()[-1]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@EVERY
def test_every_switch_changes_the_result(name: str):
    if name == "paper":
        return
    found = _by_hand(_method(**SWITCHES[name][0])).train()[-1]
    plain = _by_hand(_method()).train()[-1]
    assert any(not torch.allclose(found[key], plain[key], rtol=1e-4) for key in plain)


@effort(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 100),
    outer=st.integers(0, 3),
    once=st.booleans(),
    moments=st.sampled_from(["keep", "reset"]),
)
def test_without_masks_fusion_is_the_identity(seed: int, outer: int, once: bool, moments: str):
    rounds = "one" if once else "many"
    method = _method(outer_steps=outer, masks="none", rounds=rounds, moments=moments)
    training = _by_hand(method, seed)
    for _ in training.steps():
        if training.before_memory:  # memory steps were taken: a round has ended
            _equal(training.values(), training.after_memory)
    assert len(training.memory_rates) == ROUNDS * outer


def _equal(found: Values, expected: Values) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def _first_round(seed: int, **settings: Any) -> tuple[Values, Values, Values, Values]:
    """The values at the start of a round, after its inner loop, after its outer loop, and after it."""
    training = _by_hand(_method(**settings), seed)
    for step in training.steps():
        if step == Q:
            break
    return values(seed), training.before_memory, training.after_memory, training.values()


@effort(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), quantile=st.sampled_from([0.0, 0.3, 0.5, 0.8]))
def test_without_sharing_no_inner_change_is_added_where_both_select(seed: int, quantile: float):
    start, theta_q, theta_m, shared = _first_round(seed, quantile=quantile)
    *same, alone = _first_round(seed, quantile=quantile, share=False)
    for other, one in zip(same, (start, theta_q, theta_m), strict=True):
        _equal(other, one)
    for key in start:
        tau_in, tau_out = theta_q[key] - start[key], theta_m[key] - theta_q[key]
        both = (shared[key] - alone[key]).abs() > 1e-12
        torch.testing.assert_close(alone[key][both], (start[key] + tau_out)[both])
        torch.testing.assert_close(shared[key][both], (start[key] + tau_in + tau_out)[both])
        assert quantile > 0.0 or both.all()


@effort(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    quantile=st.floats(0, 1),
    scope=st.sampled_from(["global", "module", "layer"]),
)
def test_masks_select_no_more_than_their_fraction(seed: int, quantile: float, scope: str):
    training = _by_hand(_method(quantile=quantile, scope=scope), seed)
    training.train()
    sizes = torch.tensor([float(p.numel()) for p in training.params.tensors])
    for series in ("mask_in", "mask_out", "mask_both"):
        selected = float((training.measured[series] * sizes).sum())
        assert selected <= (1.0 - quantile) * float(sizes.sum()) + 1e-3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.03, 0.03, 0.06, 0.06, 0.08, 0.08]),
        ({"rounds": "one"}, [0.03, 0.03, 0.06, 0.06, 0.08, 0.08]),
        ({"rounds": "one", "outer_lr": 0.5}, [0.5] * 6),
        ({"outer_lr": "next"}, [0.04, 0.04, 0.07, 0.07, 0.0, 0.0]),
        ({"rounds": "one", "outer_lr": "next"}, [0.04, 0.04, 0.07, 0.07, 0.0, 0.0]),
        ({"outer_lr": 0}, [0.0] * 6),
        ({"rounds": "one", "outer_steps": 0}, []),
    ],
)
def test_one_fusion_takes_the_memory_steps_of_many(settings: dict[str, Any], expected: list[float]):
    training = _by_hand(_method(**settings), rates=[0.01 * (i + 1) for i in range(STEPS)])
    training.train()
    assert training.memory_rates == pytest.approx(expected)
    steps = [STEPS] if "rounds" in settings else [3, 6, 8]
    assert [event["steps"] for event in training.events] == [steps]


@pytest.mark.parametrize("rounds", ["many", "one"])
@pytest.mark.parametrize("stop", [5, 6])
def test_training_that_ends_early_is_fused_at_its_end(rounds: str, stop: int):
    method = _method(rounds=rounds)
    training = ByHand(
        method, values(), batches(STEPS, 1)[:stop], batches(ROUNDS * M, 2), rates=RATE, total_steps=STEPS
    )
    training.train()
    expected = _literal(rounds == "one", stop, rate_out=RATE, share_optimizer=True)
    _close(training.values(), expected[-1].theta_next)
    (event,) = training.events
    assert event["steps"] == ([stop] if rounds == "one" else [3, stop])
    assert len(training.memory_rates) == 2 * M


@pytest.mark.parametrize("stop", [2, 5, STEPS])
def test_a_last_round_that_is_left_is_not_fused(stop: int):
    method = _method(last_round="left")
    training = ByHand(
        method, values(), batches(STEPS, 1)[:stop], batches(ROUNDS * M, 2), rates=RATE, total_steps=STEPS
    )
    before: Values = {}
    for step in training.steps():
        if step == stop - stop % Q:
            before = training.values()
    moved = training.values()
    training.end()
    _equal(training.values(), moved)
    assert not before or any(not torch.equal(moved[name], before[name]) for name in moved)
    assert [event["steps"] for event in training.events] == ([[3, 6][: stop // Q]] if stop >= Q else [])
    assert len(training.memory_rates) == stop // Q * M
    assert method.extra_passes(training.task, 4) == STEPS // Q * M
    assert _method().extra_passes(training.task, 4) == ROUNDS * M


def test_memory_steps_at_the_rate_0_only_measure():
    training = _by_hand(_method(outer_lr=0.0, outer_optimizer="own"))
    for step in training.steps():
        if step == Q:
            _equal(training.before_memory, training.after_memory)
    training.end()
    assert bool(training.measured["outer_importance"].all())


@pytest.mark.parametrize("name", ["paper", "by layer", "a share of each module", "static outer importance"])
def test_the_record_holds_what_the_rounds_were(name: str):
    settings, options = SWITCHES[name]
    training = _by_hand(_method(**settings))
    reached = training.train()
    rounds = _literal(rate_out=RATE, share_optimizer=True, **options)
    names, last = values(), rounds[-1]

    def over_rounds(selected: Callable[[Round, str], Tensor]) -> list[float]:
        each = [[selected(r, name).double().mean().item() for r in rounds] for name in names]
        return [sum(shares) / ROUNDS for shares in each]

    both = over_rounds(lambda r, name: r.mask_in[name] & r.mask_out[name])
    expected = {
        "inner_importance": [last.importance_in[name].mean().item() for name in names],
        "outer_importance": [last.importance_out[name].mean().item() for name in names],
        "mask_in": over_rounds(lambda r, name: r.mask_in[name]),
        "mask_out": over_rounds(lambda r, name: r.mask_out[name]),
        "mask_both": both,
        "moved": [(reached[-1][name] - start).abs().mean().item() for name, start in names.items()],
    }
    assert training.measured.keys() == expected.keys()
    for series, numbers in expected.items():
        assert training.measured[series].tolist() == pytest.approx(numbers, rel=1e-5)
    (event,) = training.events
    # all tensors are of one size
    assert event["mask_overlap"] == pytest.approx(sum(both) / len(both), rel=1e-5)
    assert (event["rounds"], event["steps"]) == (ROUNDS, [3, 6, 8])
    assert event["skipped_inner"] == event["skipped_outer"] == 0


@pytest.mark.parametrize("masks", ["none", "global", "soft"])
def test_masks_that_do_not_select_are_recorded_as_weights(masks: str):
    training = _by_hand(_method(masks=masks))
    training.train()
    first, second, both = (training.measured[f"mask_{which}"] for which in ("in", "out", "both"))
    if masks == "none":
        assert first.tolist() == second.tolist() == both.tolist() == [1.0] * len(first)
        return
    torch.testing.assert_close(first + second, torch.ones_like(first))
    assert bool(((both > 0) & (both < 0.25)).all())
    assert (first.unique().numel() == 1) == (masks == "global")


@pytest.mark.parametrize("options", [{"index": 0}, {"memory": []}])
def test_without_earlier_data_it_is_plain_training(options: dict[str, Any]):
    memory = options.pop("memory", batches(3, 2))
    method = _method()
    training = ByHand(method, values(), batches(STEPS, 1), memory, rates=RATE, **options)
    reached = training.train()[-1]
    plain = ByHand(build_method("sequential"), values(), batches(STEPS, 1), memory, rates=RATE)
    _equal(reached, plain.train()[-1])
    assert not training.events and not training.measured and not training.memory_rates


def _through_files(state: MethodState) -> MethodState:
    """What a checkpoint gives back."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors.items()}
    return MethodState(tensors, json.loads(json.dumps(state.values)))


RESUMED = {
    **{name: settings for name, (settings, _) in SWITCHES.items()},
    "own optimizer": {"outer_optimizer": "own", "outer_lr": OUTER_RATE, "moments": "reset"},
    "published code": {
        **PUBLISHED,
        "reading": "after",
        "outer_lr": "next",
        "outer_loss_weight": 0.25,
        "last_round": "left",
        "threshold": "interpolated",
    },
    "no memory steps": {"outer_steps": 0, "quantile": 0.0},
    "rounds of one step": {"inner_steps": 1, "outer_steps": 1},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_going_on_after_any_step_is_bit_identical(settings: dict[str, Any]):
    whole = _by_hand(_method(**settings))
    expected = whole.train()
    for stop in range(1, STEPS + 1):
        training = _by_hand(_method(**settings))
        for step in training.steps():
            if step == stop:
                saved = _through_files(training.method.state())
                training.method = _method(**settings)
                training.method.load_state(saved)
                # what a checkpoint written before the first step after it would hold
                again = _through_files(training.method.state())
                assert again.values == saved.values and again.tensors.keys() == saved.tensors.keys()
                training.go_on()
            if step >= stop:
                _equal(training.values(), expected[step - 1])
        training.end()
        assert training.events == whole.events
        _equal(training.measured, whole.measured)


def test_a_snapshot_is_not_changed_by_going_on():
    training = _by_hand(_method())
    for step in training.steps():
        if step == 4:
            state = training.method.state()
            kept = _through_files(state)
    assert state.values == kept.values
    _equal(state.tensors, kept.tensors)


def test_nothing_is_kept_at_the_end_of_a_task():
    training = _by_hand(_method())
    for step in training.steps():
        state = training.method.state()
        assert state.values["gathered"]["fused_at"] == [end for end in (3, 6, 8) if end <= step]
    training.end()
    assert training.method.state() == MethodState()


def test_the_first_task_goes_on_without_a_state():
    method = _method()
    method.load_state(MethodState())
    _by_hand(method, index=0).go_on()
    assert method.state() == MethodState()


def test_going_on_from_another_moment_is_refused():
    training = _by_hand(_method())
    next(training.steps())
    saved = _through_files(training.method.state())
    training.method.load_state(MethodState())
    with pytest.raises(ValueError, match="not of a task's middle"):
        training.go_on()
    smaller = Parameters([("layers.0.q.lora_A.weight", nn.Parameter(torch.zeros(2, 4)))])
    fresh = _method()
    begin(fresh, Bare(smaller))
    with pytest.raises(ValueError, match="expected"):
        fresh.go_on(saved, smaller)


def test_a_new_task_forgets_the_middle_of_another():
    training = _by_hand(_method())
    next(training.steps())
    fresh = _method()
    fresh.load_state(_through_files(training.method.state()))
    training.method = fresh
    expected = _by_hand(_method())
    training.params.assign(list(values().values()))
    training.begin()
    expected.begin()
    state, other = fresh.state(), expected.method.state()
    assert state.values == other.values
    _equal(state.tensors, other.tensors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"score": "uncertainty", "smoothing": False},
            "method.smoothing: found false (a truth value), expected true with score 'uncertainty'",
        ),
        ({"masks": "soft", "fusion": "published"}, "method.masks: found 'soft' (text), expected 'hard' with"),
        (
            {"masks": "global", "share": False},
            "method.share: found false (a truth value), expected true with",
        ),
        (
            {"masks": "none", "threshold": "share"},
            "method.threshold: found 'share' (text), expected 'quantile' with masks 'none'",
        ),
        ({"masks": "soft", "scope": "layer"}, "method.scope: found 'layer' (text), expected 'global' with"),
        (
            {"rounds": "one", "last_round": "left"},
            "method.last_round: found 'left' (text), expected 'fused' with rounds 'one'",
        ),
        ({"outer_lr": -1.0}, "method.outer_lr: found -1.0, expected"),
        ({"outer_lr": "last"}, "method.outer_lr: found 'last' (text), expected"),
        ({"outer_loss_weight": 0.0}, "method.outer_loss_weight: found 0.0, expected a number above 0"),
        ({"tau": 0.0}, "method.tau: found 0.0, expected a number above 0"),
        ({"importance_share": 1.1}, "method.importance_share: found 1.1, expected a number"),
        ({"masks": "medium"}, "method.masks: found 'medium' (text), expected one of"),
        ({"alpha_inner": 1.0}, "method.alpha_inner: found 1.0"),
        ({"alpha_outer": 0.0}, "method.alpha_outer: found 0.0"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        build_method("recurrent-kif", settings)
    assert message in str(caught.value)


def test_settings_without_effect_beside_others_are_no_mistake():
    build_method("recurrent-kif", {"tau": 0.3, "importance_share": 0.5})
    build_method("recurrent-kif", {"masks": "soft", "quantile": 0.5})


def test_a_broken_gradient_is_counted_and_changes_no_importance():
    training = _by_hand(_method())
    broken = [torch.full_like(p, torch.nan) for p in training.params.tensors]
    for step in training.steps():
        if step == 4:
            before = _through_files(training.method.state()).tensors["gathered.inner.ibar"]
            for p, grad in zip(training.params.tensors, broken, strict=True):
                p.grad = grad
            training.method.on_gradients(training)
            training.optimizer.zero_grad()
            after: Tensor = training.method.state().tensors["gathered.inner.ibar"]
            assert torch.equal(before, after) and bool(before.any())
    training.end()
    assert [event["skipped_inner"] for event in training.events] == [1]
