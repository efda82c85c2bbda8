"""Properties of units and fusion that hold for any partition, any number of units and any scores."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kifuse.knowledge import (
    SkillUnits,
    adaptive_weights,
    blend,
    case_weights,
    cumulative,
    important_units,
    min_max,
    static_weights,
)
from kifuse.knowledge.skill_units import FINER_THAN
from tests.reference import fusion as reference
from tests.reference import units as reference_units

LEVELS = ["matrix", "rank", "element", "module", "layer"]


@st.composite
def models(draw):
    """Names and shapes of trainable parameters: LoRA pairs, whole layers and loose tensors, shuffled."""
    shapes = {}
    places = [f"{stack}.{layer}." for stack in ("encoder.block", "decoder.block") for layer in (0, 1, 10)]
    for place in draw(st.lists(st.sampled_from([*places, ""]), min_size=1, max_size=4, unique=True)):
        for module in draw(st.lists(st.sampled_from(["q", "v", "wo"]), min_size=1, unique=True)):
            size = st.integers(1, 3)
            into, out, rank = draw(size), draw(size), draw(size)
            if draw(st.booleans()):
                shapes[f"{place}{module}.lora_A.default.weight"] = (rank, into)
                shapes[f"{place}{module}.lora_B.default.weight"] = (out, rank)
            else:
                shapes[f"{place}{module}.weight"] = (out, into)
                if draw(st.booleans()):
                    shapes[f"{place}{module}.bias"] = (out,)
    names = draw(st.permutations(list(shapes)))
    return {name: shapes[name] for name in names}


few = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0])
"""Scores with many ties and zeros."""
scores_of = st.one_of(few, st.floats(0, 2.0**60, width=32))
quantiles = st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])
quick = settings(max_examples=60, deadline=None)


def _build(shapes, level):
    return SkillUnits.build(list(shapes), list(shapes.values()), level)


def _literal_units(shapes, level):
    """Each unit's scalars, in the order in which the parameters first touch the units."""
    units = {}
    for name, shape in shapes.items():
        lora = re.search(r"^(.*)\.lora_([AB])\.", name)
        module = lora[1] if lora else name.rpartition(".")[0]
        layer = re.match(r".*?block\.\d+", name)
        for index in (tuple(i) for i in torch.ones(shape).nonzero().tolist()):
            owner = {"matrix": name, "module": module, "layer": layer[0] if layer else name}.get(level)
            if level == "element":
                owner = (name, index)
            if level == "rank":
                owner = (module, index[0 if lora[2] == "A" else 1]) if lora else name
            units.setdefault(owner, []).append((name, index))
    if level != "rank":
        return list(units.values())
    # all ranks of a pair stand where its first tensor does
    order = list(dict.fromkeys(owner[0] if isinstance(owner, tuple) else owner for owner in units))
    place = {owner: order.index(owner[0] if isinstance(owner, tuple) else owner) for owner in units}
    ranked = sorted(units, key=lambda owner: (place[owner], owner[1] if isinstance(owner, tuple) else 0))
    return [units[owner] for owner in ranked]


def _draw_scores(data, shapes):
    return [
        torch.tensor(
            data.draw(st.lists(scores_of, min_size=math.prod(shape), max_size=math.prod(shape)))
        ).view(shape)
        for shape in shapes.values()
    ]


@quick
@given(shapes=models(), level=st.sampled_from(LEVELS), data=st.data())
def test_every_scalar_is_in_one_unit_and_a_unit_scores_the_mean_of_its_own(shapes, level, data):
    units, literal = _build(shapes, level), _literal_units(shapes, level)
    assert units.count == len(literal) == len(units.labels)
    assert units.sizes.tolist() == [len(unit) for unit in literal]
    full = [
        e.expand(s) for e, s in zip(units.expand(torch.arange(units.count)), shapes.values(), strict=True)
    ]
    by_name = dict(zip(shapes, full, strict=True))
    for number, unit in enumerate(literal):
        assert {int(by_name[name][index]) for name, index in unit} == {number}
    scores = _draw_scores(data, shapes)
    wanted = reference_units.mean_importance(dict(zip(shapes, scores, strict=True)), literal)
    torch.testing.assert_close(units.reduce(scores), torch.tensor(wanted), rtol=1e-5, atol=0)


@quick
@given(shapes=models(), level=st.sampled_from(LEVELS))
def test_blocks_lay_out_all_units_in_their_order(shapes, level):
    units = _build(shapes, level)
    assert [u for block in units.blocks.values() for u in range(block.start, block.stop)] == list(
        range(units.count)
    )
    places = dict(zip(shapes, units.expand(torch.arange(units.count)), strict=True))
    for name, block in units.blocks.items():
        assert set(places[name].flatten().tolist()) == set(range(block.start, block.stop))


@quick
@given(
    shapes=models(),
    level=st.sampled_from(LEVELS),
    scope=st.sampled_from(["global", "module", "layer"]),
    rule=st.one_of(
        st.fixed_dictionaries({"fraction": quantiles}),
        st.fixed_dictionaries({"share": st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0])}),
    ),
    data=st.data(),
)
def test_important_units_are_those_of_their_scope(shapes, level, scope, rule, data):
    units, literal = _build(shapes, level), _literal_units(shapes, level)
    values = torch.tensor(data.draw(st.lists(scores_of, min_size=units.count, max_size=units.count)))
    if level not in FINER_THAN[scope]:
        with pytest.raises(ValueError, match=f"scope: found '{scope}'"):
            important_units(units, values, scope=scope, **rule)
        return
    groups = [0] * units.count
    if scope != "global":
        coarse = _literal_units(shapes, scope)
        groups = [next(g for g, group in enumerate(coarse) if unit[0] in group) for unit in literal]
    expected = reference.important(values, groups=groups, **rule)
    assert important_units(units, values, scope=scope, **rule).tolist() == expected


@quick
@given(rows=st.lists(st.tuples(few, few), min_size=1, max_size=30), gamma=st.floats(0, 1), quantile=quantiles)
def test_static_weights_with_ties_are_those_of_the_four_cases(rows, gamma, quantile):
    p, c = (torch.tensor(column) for column in zip(*rows, strict=True))
    expected = torch.tensor(reference.static_weights(p, c, gamma, quantile))
    torch.testing.assert_close(static_weights(p, c, gamma=gamma, quantile=quantile), expected)
    marks = [torch.tensor(reference.important(x, 1 - quantile)) for x in (p, c)]
    torch.testing.assert_close(case_weights(*marks, gamma=gamma), expected)


@quick
@given(count=st.integers(1, 50), value=st.floats(0, 1e6, width=32), tau=st.floats(0.01, 10))
def test_constant_importance_gives_the_mean_of_both_models(count, value, tau):
    constant = min_max(torch.full((count,), value))
    assert constant.tolist() == [0.0] * count
    assert static_weights(constant, constant).tolist() == [0.5] * count
    assert adaptive_weights(constant, constant, tau=tau).tolist() == [0.5] * count
    assert cumulative(constant, constant).tolist() == [0.0] * count


@quick
@given(
    shapes=models(), level=st.sampled_from(LEVELS), quantile=quantiles, adaptive=st.booleans(), data=st.data()
)
def test_a_fused_scalar_lies_between_its_two_and_a_unit_has_one_weight(
    shapes, level, quantile, adaptive, data
):
    units = _build(shapes, level)
    history, current = (units.reduce(_draw_scores(data, shapes)) for _ in range(2))
    p, c = min_max(history), min_max(current)
    weights = adaptive_weights(p, c) if adaptive else static_weights(p, c, quantile=quantile)
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    old, new = ([torch.randn(shape, generator=draw) for shape in shapes.values()] for _ in range(2))
    fused = dict(zip(shapes, blend(old, new, units.expand(weights)), strict=True))
    before, after = dict(zip(shapes, old, strict=True)), dict(zip(shapes, new, strict=True))
    for name in shapes:
        low, high = torch.minimum(before[name], after[name]), torch.maximum(before[name], after[name])
        assert bool(((fused[name] >= low) & (fused[name] <= high)).all())
    for unit, weight in zip(_literal_units(shapes, level), weights.tolist(), strict=True):
        for name, index in unit:
            expected = weight * float(before[name][index]) + (1 - weight) * float(after[name][index])
            assert float(fused[name][index]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    same = blend(old, [value.clone() for value in old], units.expand(weights))
    assert all(torch.equal(a, b) for a, b in zip(same, old, strict=True))


@quick
@given(
    rows=st.lists(st.tuples(few, few), min_size=1, max_size=20),
    power=st.integers(-20, 20),
    quantile=quantiles,
)
def test_the_scale_of_the_loss_does_not_change_a_fusion(rows, power, quantile):
    p, c = (torch.tensor(column) for column in zip(*rows, strict=True))
    # a power of two, so that nothing is rounded
    scaled = [min_max(x * 2.0**power) for x in (p, c)]
    plain = [min_max(x) for x in (p, c)]
    assert torch.equal(static_weights(*scaled, quantile=quantile), static_weights(*plain, quantile=quantile))
    assert torch.equal(adaptive_weights(*scaled), adaptive_weights(*plain))


@pytest.mark.parametrize("broken", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("level", LEVELS)
def test_infinite_importance_is_refused(level, broken):
    shapes = {"block.0.q.lora_A.default.weight": (2, 3), "block.0.q.lora_B.default.weight": (3, 2)}
    units = _build(shapes, level)
    scores = [torch.rand(shape) for shape in shapes.values()]
    scores[1][2, 1] = broken
    values = units.reduce(scores)
    for use in (min_max, lambda x: cumulative(torch.rand(units.count), x), lambda x: cumulative(x, values)):
        with pytest.raises(ValueError, match="non-finite importance"):
            use(values)
    with pytest.raises(ValueError, match=r"contain NaN|expected finite numbers of at least 0"):
        important_units(units, values, share=0.5)


def test_values_that_do_not_fit_the_units_are_refused():
    units = _build({"a": (2, 2), "b": (2,)}, "matrix")
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2,\)"):
        important_units(units, torch.rand(3), fraction=0.5)
