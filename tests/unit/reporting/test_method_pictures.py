"""The pictures of importance, drift, masks and movement: their values, and how they degrade."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kifuse.methods.average import EMA, WeightEnsemble
from kifuse.methods.ewc import EWC
from kifuse.methods.kif import KIF
from kifuse.methods.recurrent_kif import RecurrentKIF
from kifuse.methods.shown import Event, Series, Shown
from kifuse.record.former_names import FORMER
from kifuse.record.run_record import RunRecord
from kifuse.reporting.method_pictures import fused_units, moved_beside_importance, rank_correlation, views
from kifuse.reporting.plots import Curves, Heatmap, Shares, Timeline
from kifuse.reporting.run_groups import fusions
from kifuse.reporting.run_pictures import Missing, losses
from tests.unit.reporting.measured_runs import kif_record, llama_names, rounds_record
from tests.unit.reporting.runs import make_record


def test_every_series_on_record_is_a_heatmap_of_tasks_by_layers():
    found = views(kif_record(tasks=["a", "b", "c"]))
    assert [plot.name for plot in found] == [
        "importance",
        "history",
        "history-after",
        "history-after-drift",
        "weight-of-previous",
        "moved",
    ]
    for plot in found:
        assert isinstance(plot, Heatmap)
        assert [panel.title for panel in plot.panels][:2] == ["encoder, query", "encoder, value"]
        assert plot.panels[0].columns == ["0", "1", "2"]
        assert plot.meaning.endswith(".")


def test_rows_are_scaled_by_their_largest_value():
    record = rounds_record(tasks=["a", "b"])
    names = llama_names(layers=2)
    values = [1.0, 3.0, 0.0, 0.0, 6.0, 10.0, 2.0, 2.0]
    record.tasks[1].per_tensor = {"names": names, "series": {"importance": values}}
    (plot,) = views(record)
    assert isinstance(plot, Heatmap)
    # modules have the means 2, 0, 8, 2, of which 8 is the largest; the first task has no row
    assert plot.rows == ["2 b"]
    assert {panel.title: panel.values for panel in plot.panels} == {
        "query": [[0.25, 1.0]],
        "value": [[0.0, 0.25]],
    }


def test_drift_is_the_later_share_minus_the_earlier():
    record = rounds_record(tasks=["a", "b", "c"])
    names = llama_names(layers=1)
    for task, values in zip(record.tasks[1:], ([2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 4.0, 4.0]), strict=True):
        task.per_tensor = {"names": names, "series": {"outer_importance": values}}
    importance, drift = views(record)
    assert isinstance(importance, Heatmap)
    assert isinstance(drift, Heatmap)
    assert drift.rows == ["3 c"]
    assert [panel.values for panel in drift.panels] == [[[0.25 - 1.0]], [[1.0 - 0.5]]]
    assert (drift.low, drift.high, drift.diverging) == (-0.75, 0.75, True)


def test_small_shares_are_not_drowned_by_a_scale_up_to_one():
    plots = {plot.name: plot for plot in views(rounds_record(tasks=["a", "b"]))}
    masks, weights = plots["mask-in"], views(kif_record(tasks=["a", "b"]))[-2]
    assert isinstance(masks, Heatmap)
    assert isinstance(weights, Heatmap)
    assert masks.high == pytest.approx(0.2)
    assert weights.high == 1.0


def test_movement_beside_importance_has_a_dot_for_each_module():
    plot = moved_beside_importance(kif_record(tasks=["a", "b"]))
    assert isinstance(plot, Curves)
    assert [panel.title for panel in plot.panels] == ["1 a", "2 b"]
    # 3 layers, encoder and decoder and cross-attention, query and value
    assert sum(len(line.points) for line in plot.panels[0].lines) == 18
    # what moved is ten times the importance everywhere
    assert {panel.remark for panel in plot.panels} == {"rank correlation 1.00"}
    assert [line.group for line in plot.panels[0].lines] == [0, 1, 2, 3, 4, 5]


def test_counted_units_become_shares_of_the_whole():
    plot = fused_units(kif_record(tasks=["a", "b"]))
    assert isinstance(plot, Shares)
    assert plot.rows == ["2 b"]
    assert dict(zip(plot.parts, plot.values[0], strict=True)) == {
        "kept from before": 25.0,
        "shared": 10.0,
        "overwritten by the task": 15.0,
        "neither": 50.0,
    }
    assert "skill units" in plot.unit


def test_masks_become_shares_of_the_parameters():
    plot = fused_units(rounds_record(tasks=["a", "b"]))
    assert isinstance(plot, Shares)
    assert plot.values[0] == pytest.approx([20.0, 10.0, 10.0, 60.0])
    assert "parameters" in plot.unit


def test_masks_are_weighted_by_the_size_of_a_tensor_where_it_is_known():
    record = rounds_record(tasks=["a", "b"])
    series = {"mask_in": [1.0, 0.0], "mask_out": [0.0, 0.0], "mask_both": [0.0, 0.0]}
    record.tasks[1].per_tensor = {"names": ["x.0.q", "x.0.v"], "series": series, "sizes": [3, 1]}
    plot = fused_units(record)
    assert isinstance(plot, Shares)
    assert plot.values[0] == pytest.approx([0.0, 0.0, 75.0, 25.0])


def test_a_record_without_measurements_says_why_in_a_sentence():
    record = make_record("sequential")
    for plot in (*views(record), moved_beside_importance(record), fused_units(record)):
        assert isinstance(plot, Missing)
        assert "sequential" in plot.reason
        assert plot.reason.endswith(".")


def test_fusions_that_were_only_counted_are_told_from_none():
    record = make_record("recurrent-kif")
    record.tasks[1].events = [{"kind": "fusions", "rounds": 3, "mask_overlap": 0.1}]
    plot = fused_units(record)
    assert isinstance(plot, Missing)
    assert "says how many fusions" in plot.reason


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"names": ["x"]},
        {"names": None, "series": {"importance": [1.0]}},
        {"names": ["x", "y"], "series": {"importance": [1.0]}},
        {"names": ["x"], "series": {"importance": "none"}},
        {"names": ["x"], "series": [1.0]},
        {"names": ["x"], "series": {"importance": [None], "mask_in": [None]}},
    ],
)
def test_measurements_that_make_no_sense_are_no_picture(broken: dict):
    record = make_record("kif")
    record.tasks[0].per_tensor = broken
    assert all(isinstance(plot, Missing) for plot in views(record))


def test_importance_of_nothing_at_all_is_drawn_as_nothing():
    record = make_record("kif", tasks=["a", "b"])
    record.tasks[0].per_tensor = {"names": ["m.0.q.weight"], "series": {"importance": [0.0], "moved": [0.0]}}
    (importance, _) = views(record)
    assert isinstance(importance, Heatmap)
    assert importance.panels[0].values == [[0.0]]


def literal_ranks(values: list[float]) -> list[float]:
    """Mean rank of each value, by counting."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=12))
def test_rank_correlation_is_pearsons_of_the_ranks(points: list[tuple[int, int]]):
    xs = literal_ranks([float(x) for x, _ in points])
    ys = literal_ranks([float(y) for _, y in points])
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    sx = math.sqrt(sum((x - mx) ** 2 for x in xs))
    sy = math.sqrt(sum((y - my) ** 2 for y in ys))
    found = rank_correlation([(float(x), float(y)) for x, y in points])
    if sx == 0 or sy == 0:
        assert found is None
    else:
        assert found == pytest.approx(sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sx / sy)


def test_two_points_have_no_rank_correlation():
    assert rank_correlation([(0.0, 0.0), (1.0, 1.0)]) is None


def test_a_record_shows_what_its_own_method_declares(tmp_path: Path):
    record = rounds_record(tasks=["a", "b", "c"])
    names = llama_names(layers=1)
    record.method.shown = Shown(
        series=(
            Series("surprise", "Surprise", "How odd the task was.", unit="nats", drift_from="surprise"),
            Series("unsaid"),
        ),
        events=(Event("joined", fusion_of="heads"),),
    )
    for k, task in enumerate(record.tasks):
        values = [float(k)] * len(names)
        task.per_tensor = {"names": names, "series": {"surprise": values, "unsaid": values, "moved": values}}
        counts = {"kept": 1, "shared": 1, "overwritten": 2, "neither": 0}
        task.events = [{"kind": "joined", "step": 3, **counts}, {"kind": "fusion", "step": 1}]
    record.save(tmp_path)
    record = RunRecord.load(tmp_path)
    surprise, drift = views(record)
    assert isinstance(surprise, Heatmap) and isinstance(drift, Heatmap)
    assert (surprise.title, surprise.unit, drift.title) == ("Surprise", "nats", "Drift")
    assert surprise.panels[0].values == [[0.0], [1.0], [2.0]]
    fused = fused_units(record)
    assert isinstance(fused, Shares)
    assert fused.values[0] == [25.0, 25.0, 50.0, 0.0] and "heads" in fused.unit
    timeline = losses(record)
    assert isinstance(timeline, Timeline)
    assert timeline.marks == [3, 7, 11]
    assert fusions(record) == 3


def test_what_methods_declare_now_is_what_their_names_meant_before():
    """So that a page looks the same whether its record is from before the declarations or from after."""
    declared = [KIF.shown, RecurrentKIF.shown, EWC.shown, EMA.shown, WeightEnsemble.shown]
    former = {series.name: series for series in FORMER.series}
    for shown in declared:
        assert all(former[series.name] == series for series in shown.series)
        places = [list(former).index(series.name) for series in shown.series]
        assert places == sorted(places)
    kinds = {event.kind: event.fusion_of for shown in declared for event in shown.events if event.fusion_of}
    assert kinds == {event.kind: event.fusion_of for event in FORMER.events}
