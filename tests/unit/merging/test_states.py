"""Fusion of plain state dicts against literal references, its invariants, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kifuse.errors import ConfigError, ModelError
from kifuse.merging import Importance, fuse, fuse_masked
from tests.reference import fusion as literal
from tests.reference import units as literal_units
from tests.reference.importance import min_max
from tests.reference.selection import threshold

A, B = "layers.0.q_proj.lora_A.weight", "layers.0.q_proj.lora_B.weight"
C, D = "layers.1.q_proj.lora_A.weight", "layers.1.q_proj.lora_B.weight"
BIAS = "layers.1.norm.weight"
SHAPES = {A: (3, 5), B: (4, 3), C: (3, 5), D: (4, 3), BIAS: (6,)}


def state(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) * scale for name, shape in SHAPES.items()}


def scores(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=draw) for name, shape in SHAPES.items()}


def expected(
    old: dict[str, Tensor],
    new: dict[str, Tensor],
    before: dict[str, Tensor],
    now: dict[str, Tensor],
    level: str,
    weigh: Any,
) -> dict[str, list[float]]:
    """Fuse by the written-out equations, with units as explicit lists of scalars."""
    if level == "matrix":
        units = literal_units.matrix_units(SHAPES)
    else:
        units = literal_units.rank_units(A, SHAPES[A], B, SHAPES[B])
        units += literal_units.rank_units(C, SHAPES[C], D, SHAPES[D])
        units += literal_units.matrix_units({BIAS: SHAPES[BIAS]})
    p, c = (
        torch.tensor(min_max(literal_units.mean_importance(s, units)), dtype=torch.float32)
        for s in (before, now)
    )
    weights = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for unit, weight in zip(units, weigh(p, c), strict=True):
        for name, index in unit:
            weights[name][index] = weight
    return {name: literal.blend(old[name], new[name], weights[name]) for name in SHAPES}


@pytest.mark.parametrize("level", ["matrix", "rank"])
@pytest.mark.parametrize(
    ("settings", "weigh"),
    [
        (
            {"fusion": "static", "gamma": 0.6, "quantile": 0.5},
            lambda p, c: literal.static_weights(p, c, 0.6, 0.5),
        ),
        ({"fusion": "adaptive", "tau": 0.3}, lambda p, c: literal.adaptive_weights(p, c, 0.3)),
    ],
    ids=["static", "adaptive"],
)
def test_fusion_follows_the_written_out_equations(level: str, settings: dict[str, Any], weigh: Any):
    old, new, before, now = state(1), state(2), scores(3), scores(4)
    found = fuse(old, new, Importance(before, now), units=level, unit_score="mean", **settings)  # type: ignore[arg-type]
    wanted = expected(old, new, before, now, level, weigh)
    for name, values in wanted.items():
        torch.testing.assert_close(found[name].flatten(), torch.tensor(values))
    assert list(found) == list(new)


def test_the_outer_score_of_a_rank_is_the_mean_of_the_outer_product():
    old, new, before, now = state(1), state(2), scores(3), scores(4)
    found = fuse(old, new, Importance(before, now), units="rank", fusion="adaptive", tau=0.2)
    sides = []
    for side in (before, now):
        values = literal_units.outer_importance(side[A], side[B])
        values += literal_units.outer_importance(side[C], side[D])
        values += [float(side[BIAS].mean())]
        sides.append(torch.tensor(min_max(values)))
    weights = literal.adaptive_weights(*sides, 0.2)
    wanted = weights[0] * old[A][0] + (1 - weights[0]) * new[A][0]
    torch.testing.assert_close(found[A][0], wanted)
    wanted = weights[4] * old[D][:, 1] + (1 - weights[4]) * new[D][:, 1]
    torch.testing.assert_close(found[D][:, 1], wanted)


def test_average_needs_no_importance():
    old, new = state(1), state(2)
    for name, value in fuse(old, new, fusion="average", average=0.3).items():
        torch.testing.assert_close(value, 0.3 * old[name] + 0.7 * new[name])


@given(
    seed=st.integers(0, 10_000),
    fusion=st.sampled_from(["static", "adaptive", "average"]),
    level=st.sampled_from(["matrix", "rank", "element", "module", "layer"]),
)
def test_each_value_lies_between_its_sources_and_equal_models_stay(seed: int, fusion: Any, level: Any):
    old, new = state(seed), state(seed + 1)
    importance = Importance(scores(seed + 2), scores(seed + 3))
    for name, value in fuse(old, new, importance, fusion=fusion, units=level).items():
        assert bool((value >= torch.minimum(old[name], new[name])).all())
        assert bool((value <= torch.maximum(old[name], new[name])).all())
    for name, value in fuse(new, new, importance, fusion=fusion, units=level).items():
        assert torch.equal(value, new[name])


def test_scores_may_broadcast_and_need_no_scale():
    old, new = state(1), state(2)
    flat = Importance(
        {name: torch.tensor(float(i)) for i, name in enumerate(SHAPES)},
        {name: torch.tensor(float(-i)) for i, name in enumerate(SHAPES)},
    )
    large = Importance(
        {name: torch.full(shape, 50.0 * i) for i, (name, shape) in enumerate(SHAPES.items())},
        {name: torch.full(shape, -9.0 * i) for i, (name, shape) in enumerate(SHAPES.items())},
    )
    a, b = fuse(old, new, flat, fusion="adaptive"), fuse(old, new, large, fusion="adaptive")
    for name in SHAPES:
        torch.testing.assert_close(a[name], b[name])


def test_names_of_a_model_and_of_an_adapter_file_meet():
    old, new, before, now = state(1), state(2), scores(3), scores(4)
    inside = {name: name.replace(".weight", ".default.weight") for name in SHAPES if "lora" in name}
    rename = {inside.get(name, name): name for name in SHAPES}
    importance = Importance(
        {name: before[plain] for name, plain in rename.items()},
        {name: now[plain] for name, plain in rename.items()},
    )
    plain = fuse(old, new, Importance(before, now), units="rank")
    for name, value in fuse(old, new, importance, units="rank").items():
        assert torch.equal(value, plain[name])


@pytest.mark.parametrize("level", ["matrix", "rank"])
def test_one_value_per_unit_is_counted_in_the_given_order(level: Any):
    old, new, before, now = state(1), state(2), scores(3), scores(4)
    order = [BIAS, C, D, A, B]
    shuffled = (
        {name: old[name] for name in (B, D, A, C, BIAS)},
        {name: new[name] for name in (C, A, B, BIAS, D)},
    )
    from kifuse.knowledge import SkillUnits

    units = SkillUnits.build(order, [SHAPES[name] for name in order], level)
    vectors = [units.reduce([side[name] for name in order]) for side in (before, now)]
    by_unit = Importance(vectors[0], vectors[1], tuple(order), level)
    wanted = fuse(old, new, Importance(before, now), units=level, unit_score="mean", fusion="adaptive")
    for name, value in fuse(*shuffled, by_unit, fusion="adaptive").items():
        torch.testing.assert_close(value, wanted[name])


def test_what_has_no_score_passes_through_when_it_did_not_change():
    old, new, before, now = state(1), state(2), scores(3), scores(4)
    frozen = {"embed.weight": torch.randn(4, 4), "positions": torch.arange(5)}
    found = fuse({**old, **frozen}, {**new, **frozen}, Importance(before, now))
    plain = fuse(old, new, Importance(before, now))
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert torch.equal(found["embed.weight"], frozen["embed.weight"])
    assert torch.equal(found["positions"], frozen["positions"])
    with pytest.raises(ModelError, match=r"no scores of 'embed\.weight', which training has changed"):
        fuse({**old, "embed.weight": torch.zeros(4, 4)}, {**new, "embed.weight": torch.ones(4, 4)},
             Importance(before, now))  # fmt: skip


def test_tied_weights_stay_tied():
    def tied(seed: int) -> dict[str, Tensor]:
        return {**(made := state(seed)), "head.weight": made[A]}

    found = fuse(tied(1), tied(2), Importance(scores(3), scores(4)))
    assert found["head.weight"] is found[A]
    assert torch.equal(found[A], fuse(state(1), state(2), Importance(scores(3), scores(4)))[A])


def test_half_precision_keeps_its_dtype():
    old = {name: value.bfloat16() for name, value in state(1).items()}
    new = {name: value.bfloat16() for name, value in state(2).items()}
    found = fuse(old, new, Importance(scores(3), scores(4)), fusion="adaptive")
    assert all(value.dtype == torch.bfloat16 for value in found.values())


@pytest.mark.parametrize("rule", ["paper", "published"])
def test_masked_fusion_follows_the_written_out_equations(rule: Any):
    base, inner, outer, i_in, i_out = state(1), state(2), state(3), scores(4), scores(5)
    found = fuse_masked(base, inner, outer, i_in, i_out, quantile=0.7, rule=rule)
    limits = [threshold(list(side.values()), 1 - 0.7) for side in (i_in, i_out)]
    both, neither = {"paper": ((1, 1), (0, 0)), "published": ((0.4, 0.6), (0.5, 0.5))}[rule]
    for name in SHAPES:
        values = literal.masked_sum(
            base[name],
            inner[name] - base[name],
            outer[name] - inner[name],
            i_in[name] > limits[0],
            i_out[name] > limits[1],
            both,
            1,
            1,
            neither,
        )
        torch.testing.assert_close(found[name].flatten(), torch.tensor(values))


def test_masked_fusion_with_every_scalar_important_is_the_end_of_the_outer_loop():
    base, inner, outer = state(1), state(2), state(3)
    found = fuse_masked(base, inner, outer, scores(4), scores(5), quantile=0.0)
    for name in SHAPES:
        torch.testing.assert_close(found[name], outer[name])
    found = fuse_masked(base, inner, outer, scores(4), scores(5), quantile=1.0)
    assert all(torch.equal(found[name], base[name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(A), f"current: does not hold '{A}', which previous does"),
        (lambda s: s.update(new=torch.zeros(2)), "previous: does not hold 'new', which current does"),
        (lambda s: s.update({B: torch.zeros(3, 4)}), rf"'{B}' has shape \(4, 3\) in previous and \(3, 4\)"),
        (lambda s: s.update({B: s[B].double()}), rf"'{B}' is torch.float32 in previous and torch.float64"),
        (
            lambda s: s[B][0].fill_(float("nan")),
            rf"'{B}' holds 3 numbers that are NaN or infinite",
        ),
        (lambda s: s[B][0, :1].fill_(float("inf")), rf"'{B}' holds 1 numbers that are NaN or infinite"),
    ],
)
def test_two_models_that_differ_are_refused(change: Any, words: str):
    new = state(2)
    change(new)
    with pytest.raises(ModelError, match=words):
        fuse(state(1), new, fusion="average")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(BIAS), rf"no scores of '{BIAS}', which training has changed"),
        (lambda s: s.update(other=torch.zeros(2)), "another model: it scores 'other'"),
        (
            lambda s: s.update({A: torch.zeros(2, 5)}),
            rf"scores of '{A}' have shape \(2, 5\), expected \(3, 5\)",
        ),
        (lambda s: s.update({A: torch.full((3, 5), float("nan"))}), "current: Found a non-finite importance"),
    ],
)
def test_an_importance_that_does_not_fit_is_refused(change: Any, words: str):
    before, now = scores(3), scores(4)
    change(now)
    if "other" in now:
        before["other"] = now["other"]
    with pytest.raises(ModelError, match=words):
        fuse(state(1), state(2), Importance(before, now))


def test_a_wrong_number_of_units_says_which_level_fits():
    importance = Importance(torch.rand(7), torch.rand(7))
    with pytest.raises(ModelError, match=r"found 7 values, but there are 5 skill units .* fits level 'rank'"):
        fuse(state(1), state(2), importance)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fusion": "statik"}, "fusion: found 'statik', expected one of static, adaptive, average. Did you"),
        ({"units": "ranks"}, "units: found 'ranks', expected one of matrix, rank"),
        ({"unit_score": "max"}, "unit_score: found 'max'"),
        ({"gamma": 1.5}, "gamma: found 1.5"),
        ({"quantile": -1.0}, "quantile: found -1.0"),
        ({"fusion": "adaptive", "tau": 0.0}, "tau: found 0.0"),
        ({"fusion": "average", "average": 2.0}, "average: found 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        fuse(state(1), state(2), Importance(scores(3), scores(4)), **settings)


def test_settings_that_contradict_the_importance_are_refused():
    importance = Importance(torch.rand(5), torch.rand(5), tuple(SHAPES), "matrix")
    with pytest.raises(ConfigError, match="units: found 'rank', expected 'matrix'"):
        fuse(state(1), state(2), importance, units="rank")
    with pytest.raises(ConfigError, match="'static' needs an importance"):
        fuse(state(1), state(2))
    with pytest.raises(ConfigError, match="rule: found 'code', expected one of paper, published"):
        fuse_masked(state(1), state(2), state(3), scores(4), scores(5), rule="code")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=f"outer: does not hold '{A}'"):
        fuse_masked(state(1), state(2), {k: v for k, v in state(3).items() if k != A}, scores(4), scores(5))
