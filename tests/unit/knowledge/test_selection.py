"""Global selection against plain sorting."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kifuse.knowledge import (
    above,
    interpolated_fraction,
    masks,
    quantile_threshold,
    scope_groups,
    share_threshold,
    top_fraction_threshold,
)
from kifuse.knowledge import threshold as module
from tests.reference import selection as reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(params=["sorting", "counting"], scope="module", autouse=True)
def search(request):
    """Run everything here with both searches, which differ in speed alone."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "counting":
            patch.setattr(module, "_FEW", 0)
        yield request.param


def _flat(masks):
    return [mask.flatten().tolist() for mask in masks]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.2, 0.5, 0.99, 1.0])
def test_threshold_is_the_order_statistic_over_all_tensors(dtype, fraction):
    torch.manual_seed(0)
    tensors = [torch.randn(shape).to(dtype) for shape in ((7, 11), (1,), (40,), (2, 3, 4))]
    threshold = top_fraction_threshold(tensors, fraction)
    assert threshold.dtype == dtype and threshold.dim() == 0
    assert float(threshold) == reference.threshold(tensors, fraction)
    assert _flat(above(tensors, threshold)) == reference.selected(tensors, fraction)


half = st.floats(-65504, 65504, width=16) | st.sampled_from([math.inf, -math.inf, 0.0, -0.0, 1.0])


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    first=st.lists(half, min_size=1, max_size=12),
    others=st.lists(st.lists(half, max_size=12), max_size=4),
    fraction=st.floats(0, 1),
)
def test_any_values_with_ties_infinities_and_empty_tensors_match_sorting(dtype, first, others, fraction):
    tensors = [torch.tensor(part, dtype=torch.float64).to(dtype) for part in (first, *others)]
    threshold = top_fraction_threshold(tensors, fraction)
    assert float(threshold) == reference.threshold(tensors, fraction)
    chosen = sum(int(mask.sum()) for mask in above(tensors, threshold))
    assert chosen <= fraction * sum(t.numel() for t in tensors) + 1e-6


def test_float64_neighbours_are_told_apart():
    values = torch.tensor([1.0, 1.0 + 2**-52, 1.0 + 2**-51, 1.0 + 3 * 2**-52], dtype=torch.float64)
    assert above([values], top_fraction_threshold([values], 0.25))[0].tolist() == [False, False, False, True]


def test_ties_at_the_threshold_are_not_selected():
    values = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])
    assert above([values], top_fraction_threshold([values], 0.4))[0].tolist() == [True] + [False] * 4
    assert not above([torch.zeros(9)], top_fraction_threshold([torch.zeros(9)], 0.5))[0].any()


@pytest.mark.parametrize("total", [5, 10, 100, 1000, 12345])
def test_quantile_080_selects_exactly_the_top_fifth(total):
    values = torch.randperm(total, generator=torch.Generator().manual_seed(0)).float()
    mask = values > quantile_threshold(values, 0.8)
    assert int(mask.sum()) == total // 5
    assert values[mask].min() > values[~mask].max()


def test_quantile_ends():
    values = torch.tensor([0.0, 0.5, 1.0])
    assert quantile_threshold(values, 0.0) == -math.inf
    assert quantile_threshold(values, 1.0) == math.inf


def test_result_does_not_depend_on_how_the_scalars_are_cut(monkeypatch):
    torch.manual_seed(1)
    values = torch.randn(1000)
    whole = top_fraction_threshold([values], 0.37)
    monkeypatch.setattr(module, "_CHUNK", 64)
    assert top_fraction_threshold([values], 0.37) == whole
    assert top_fraction_threshold(list(values.split(17)), 0.37) == whole
    assert top_fraction_threshold([values.view(20, 50).t()], 0.37) == whole


@pytest.mark.parametrize("search", ["counting"], indirect=True)
def test_more_scalars_than_float32_can_count():
    total = (1 << 24) + 5
    values = torch.zeros(total, dtype=torch.bfloat16)  # torch.quantile refuses this many
    values[: total // 2] = 1.0
    values[-3:] = 2.0
    threshold = top_fraction_threshold([values], 4 / total)
    assert threshold == 1.0
    assert int(above([values], threshold)[0].sum()) == 3
    assert top_fraction_threshold([values], 0.6) == 0.0


def test_a_tensor_that_requires_gradients_gives_a_plain_threshold():
    threshold = top_fraction_threshold([torch.arange(4.0, requires_grad=True)], 0.5)
    assert not threshold.requires_grad and threshold == 1.0


@pytest.mark.parametrize(
    ("tensors", "fraction", "message"),
    [
        ([], 0.2, "at least one scalar"),
        ([torch.empty(0)], 0.2, "at least one scalar"),
        ([torch.ones(2)], 1.5, "fraction: found 1.5"),
        ([torch.ones(2)], math.nan, "fraction: found nan"),
        ([torch.tensor([1.0, math.nan])], 0.5, "NaN"),
        ([torch.ones(2), torch.ones(2, dtype=torch.float64)], 0.5, "one floating dtype"),
        ([torch.ones(2, dtype=torch.int64)], 0.5, "one floating dtype"),
    ],
)
def test_unusable_input_is_refused(tensors, fraction, message):
    with pytest.raises(ValueError, match=message):
        top_fraction_threshold(tensors, fraction)


def test_unusable_quantile_is_refused():
    with pytest.raises(ValueError, match=r"quantile: found -0\.1"):
        quantile_threshold(torch.ones(2), -0.1)


def _carried(tensors, chosen):
    """The sum of the selected scores and of all, in float64."""
    pairs = list(zip(tensors, chosen, strict=True))
    return sum(float(t[m].double().sum()) for t, m in pairs), sum(float(t.double().sum()) for t, _ in pairs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.9, 0.9999, 1.0])
def test_share_selects_the_fewest_that_carry_it(dtype, share):
    torch.manual_seed(0)
    tensors = [torch.rand(shape).pow(3).to(dtype) for shape in ((7, 11), (1,), (40,), (2, 3, 4))]
    threshold = share_threshold(tensors, share)
    assert threshold.dtype == dtype and threshold.dim() == 0
    chosen = above(tensors, threshold)
    assert _flat(chosen) == reference.carriers(tensors, share)
    carried, total = _carried(tensors, chosen)
    assert carried >= (share - 1e-9) * total
    if share > 0:  # what carries the share no longer does without the smallest value selected
        smallest = min(float(t[m].min()) for t, m in zip(tensors, chosen, strict=True) if m.any())
        without = sum(
            float(t[m & (t > smallest)].double().sum()) for t, m in zip(tensors, chosen, strict=True)
        )
        assert without < share * total


score = st.floats(0, 65504, width=16) | st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.0**-24])


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    first=st.lists(score, min_size=1, max_size=12),
    others=st.lists(st.lists(score, max_size=12), max_size=4),
    share=st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.5, 0.1, 1e-300]),
)
def test_any_scores_with_ties_and_zeros_match_a_running_sum(dtype, first, others, share):
    tensors = [torch.tensor(part, dtype=torch.float64).to(dtype) for part in (first, *others)]
    chosen = above(tensors, share_threshold(tensors, share))
    assert _flat(chosen) == reference.carriers(tensors, share)
    carried, total = _carried(tensors, chosen)
    assert carried >= (share - 1e-9) * total
    assert not any(bool(m[t == 0].any()) for t, m in zip(tensors, chosen, strict=True))


@settings(max_examples=30, deadline=None)
@given(first=st.floats(0, 1), second=st.floats(0, 1), seed=st.integers(0, 100))
def test_a_larger_share_selects_no_less(first, second, seed):
    scores = torch.rand(50, generator=torch.Generator().manual_seed(seed)).mul(10).round()
    low, high = sorted((first, second))
    assert torch.all((scores > share_threshold(scores, low)) <= (scores > share_threshold(scores, high)))


def test_ties_at_the_edge_of_a_share_are_selected_together():
    scores = torch.tensor([5.0, 2.0, 2.0, 1.0])
    # 5 + 2 would do for 70%, but the other 2 is like the first
    assert (scores > share_threshold(scores, 0.7)).tolist() == [True, True, True, False]
    assert (scores > share_threshold(scores, 0.5)).tolist() == [True, False, False, False]


def test_a_sum_that_is_the_share_but_for_rounding_is_enough():
    scores = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    assert float(scores[0] + scores[2]) < 0.9 * float(scores.sum())
    assert (scores > share_threshold(scores, 0.9)).tolist() == [True, False, True]


def test_equal_scores_are_alike_and_zeros_carry_nothing():
    equal, zeros = torch.full((9,), 0.25), torch.zeros(9)
    assert (equal > share_threshold(equal, 0.01)).all() and (equal > share_threshold(equal, 1.0)).all()
    assert not (equal > share_threshold(equal, 0.0)).any()
    for share in (0.0, 0.5, 1.0):
        assert not (zeros > share_threshold(zeros, share)).any()
    half = torch.cat([equal, zeros])
    assert (half > share_threshold(half, 1.0)).tolist() == [True] * 9 + [False] * 9


@pytest.mark.parametrize("value", [5e-324, 2.0**-1022, 1.7e308])
def test_share_of_the_smallest_and_largest_numbers(value):
    scores = torch.tensor([value, 0.0, value, value / 4], dtype=torch.float64)
    assert (scores > share_threshold(scores, 0.5)).tolist() == [True, False, True, False]
    assert (scores > share_threshold(scores, 0.9)).tolist() == [True, False, True, value / 4 > 0]


def test_a_share_that_is_reached_by_rounding_alone():
    scores = torch.tensor([2.0**53, 3.0, 3.0 - 2.0**-21] + [1.0] * 19998, dtype=torch.float64)
    total = 2.0**53 + 20004
    # the first two sum to 2^53 + 4 in float64, one more than they are
    share = (2.0**53 + 4) / total + 1e-12
    assert (share - 1e-12) * total == 2.0**53 + 4
    assert int((scores > share_threshold(scores, share)).sum()) == 2


def test_share_does_not_depend_on_how_the_scalars_are_cut(monkeypatch):
    torch.manual_seed(1)
    values = torch.rand(1000).pow(6)
    whole = share_threshold(values, 0.6)
    monkeypatch.setattr(module, "_CHUNK", 64)
    assert share_threshold([values], 0.6) == whole
    assert share_threshold(list(values.split(17)), 0.6) == whole
    assert share_threshold(values.flip(0).view(20, 50).t(), 0.6) == whole


@pytest.mark.parametrize("search", ["counting"], indirect=True)
def test_a_share_of_more_scalars_than_float32_can_sum():
    total = (1 << 24) + 8
    values = torch.ones(total, dtype=torch.bfloat16)  # a float32 sum would stop at 2^24
    values[: 1 << 23] = 0.5
    threshold = share_threshold([values], 0.5)
    assert int((values > threshold).sum()) == total - (1 << 23)
    assert int((values > share_threshold([values], 0.7)).sum()) == total


@pytest.mark.parametrize(
    ("scores", "share", "message"),
    [
        ([], 0.2, "at least one scalar"),
        (torch.empty(0), 0.2, "at least one scalar"),
        (torch.ones(2), 1.5, "share: found 1.5"),
        (torch.ones(2), math.nan, "share: found nan"),
        (torch.tensor([1.0, math.nan]), 0.5, "NaN"),
        (torch.tensor([1.0, math.inf]), 0.5, "from 1 to inf; expected finite"),
        ([torch.ones(3), torch.tensor([-0.5])], 0.5, "from -0.5 to 1; expected finite"),
        (torch.tensor([-math.inf, 0.0]), 0.0, "expected finite"),
        ([torch.ones(2), torch.ones(2, dtype=torch.float64)], 0.5, "one floating dtype"),
        (torch.ones(2, dtype=torch.int64), 0.5, "one floating dtype"),
    ],
)
def test_unusable_scores_have_no_share(scores, share, message):
    with pytest.raises(ValueError, match=message):
        share_threshold(scores, share)


NAMES = [
    f"base_model.model.{stack}.{layer}.{module}.lora_{side}.default.weight"
    for stack in ("encoder.block", "decoder.block")
    for layer in (0, 1)
    for module in ("q", "v")
    for side in ("A", "B")
]
SHAPES = [(2, 5), (3, 2)] * 8
RULES = [{"fraction": 0.3}, {"share": 0.6}]


def _scores(seed=0):
    torch.manual_seed(seed)
    return [torch.rand(shape).pow(2 + index) for index, shape in enumerate(SHAPES)]


def test_each_scope_has_the_groups_of_its_name():
    assert scope_groups(NAMES, SHAPES, "global") is None
    assert scope_groups(NAMES, SHAPES, "module") == tuple(index // 2 for index in range(16))
    assert scope_groups(NAMES, SHAPES, "layer") == tuple(index // 4 for index in range(16))
    with pytest.raises(ValueError, match="scope: found 'matrix', expected one of global, module, layer"):
        scope_groups(NAMES, SHAPES, "matrix")


@pytest.mark.parametrize("rule", RULES, ids=["fraction", "share"])
@pytest.mark.parametrize("scope", ["module", "layer"])
def test_a_scoped_mask_is_the_mask_of_each_group_on_its_own(rule, scope):
    scores = _scores()
    found = masks(scores, groups=scope_groups(NAMES, SHAPES, scope), **rule)
    size = 2 if scope == "module" else 4
    for start in range(0, 16, size):
        own = scores[start : start + size]
        kind = reference.selected if "fraction" in rule else reference.carriers
        assert _flat(found[start : start + size]) == kind(own, *rule.values())
    assert _flat(found) != _flat(masks(scores, **rule))


@pytest.mark.parametrize("rule", RULES, ids=["fraction", "share"])
def test_groups_need_not_be_neighbours(rule):
    scores = _scores()
    groups = [7, 0, 7, 3] * 4
    found = masks(scores, groups=groups, **rule)
    for group in (0, 3, 7):
        own = [index for index in range(16) if groups[index] == group]
        alone = masks([scores[index] for index in own], **rule)
        assert _flat([found[index] for index in own]) == _flat(alone)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), fraction=st.floats(0, 1), share=st.floats(0, 1))
def test_masks_of_the_whole_model_and_of_its_only_module_are_the_plain_selection(seed, fraction, share):
    scores = _scores(seed)
    plain = _flat(above(scores, top_fraction_threshold(scores, fraction)))
    carrying = _flat(above(scores, share_threshold(scores, share)))
    only = [f"layers.0.q.lora_{side}.{index}.weight" for index in range(8) for side in "AB"]
    one_module = scope_groups(only, SHAPES, "module")
    assert len(set(one_module)) == 1
    for groups in (None, scope_groups(NAMES, SHAPES, "global"), one_module):
        assert _flat(masks(scores, fraction=fraction, groups=groups)) == plain
        assert _flat(masks(scores, share=share, groups=groups)) == carrying


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), fraction=st.floats(0, 1), scope=st.sampled_from(["module", "layer"]))
def test_every_group_selects_at_most_its_fraction(seed, fraction, scope):
    scores, groups = _scores(seed), scope_groups(NAMES, SHAPES, scope)
    chosen = masks(scores, fraction=fraction, groups=groups)
    for group in set(groups):
        own = [index for index in range(16) if groups[index] == group]
        selected = sum(int(chosen[index].sum()) for index in own)
        assert selected <= fraction * sum(scores[index].numel() for index in own) + 1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected exactly one"),
        ({"fraction": 0.2, "share": 0.9}, "Found fraction 0.2 and share 0.9; expected exactly one"),
        ({"fraction": 0.2, "groups": [0]}, "Found 1 groups for 16 tensors"),
        ({"share": 1.2}, "share: found 1.2"),
    ],
)
def test_unusable_rules_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        masks(_scores(), **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_that_are_all_alike_are_looked_at_in_pieces_too(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    sizes: list[int] = []
    count = module._count

    def counting(digits: torch.Tensor) -> torch.Tensor:
        sizes.append(digits.numel())
        return count(digits)

    monkeypatch.setattr(module, "_FEW", 0)
    monkeypatch.setattr(module, "_CHUNK", 64)
    monkeypatch.setattr(module, "_count", counting)
    scores = [torch.full((5000,), 0.3, dtype=dtype), torch.full((7, 11), 0.3, dtype=dtype)]
    found = top_fraction_threshold(scores, 0.2)
    assert found == scores[0][0]
    assert max(sizes) <= 64
    # once for each 16 bits: nothing is left out, and nothing is kept from one pass to the next
    assert sum(sizes) == 5077 * torch.finfo(dtype).bits // 16


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-30, 30), min_size=1, max_size=60),
    quantile=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.8, 0.9, 0.99, 1.0]),
)
def test_the_interpolated_quantile_selects_what_torch_and_numpy_do(values, quantile):
    scores = torch.tensor(values, dtype=torch.float64)
    expected = scores > torch.quantile(scores, quantile)
    fraction = interpolated_fraction(len(values), quantile)
    assert masks([scores], fraction=fraction)[0].tolist() == expected.tolist()


def test_of_288_units_the_interpolated_quantile_marks_one_more():
    scores = torch.randperm(288, generator=torch.Generator().manual_seed(0)).float()
    assert int(masks([scores], fraction=interpolated_fraction(288, 0.8))[0].sum()) == 58
    assert int((scores > quantile_threshold(scores, 0.8)).sum()) == 57
