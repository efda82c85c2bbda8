"""Global selection against plain sorting."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kifuse.knowledge import above, quantile_threshold, selection, top_fraction_threshold
from tests.reference import selection as reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(params=["sorting", "counting"], scope="module", autouse=True)
def search(request):
    """Run everything here with both searches, which differ in speed alone."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "counting":
            patch.setattr(selection, "_FEW", 0)
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
    monkeypatch.setattr(selection, "_CHUNK", 64)
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
