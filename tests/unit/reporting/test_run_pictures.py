"""The pictures that every record has: their values, and why some are missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kifuse.record.run_record import RunRecord
from kifuse.reporting.plots import Curves, Heatmap, Timeline
from kifuse.reporting.run_pictures import (
    Missing,
    forgetting_curves,
    learning_rates,
    losses,
    numbered,
    score_matrix,
)
from tests.unit.reporting.measured_runs import kif_record, rounds_record
from tests.unit.reporting.runs import make_record


def heatmap(record: RunRecord) -> Heatmap:
    plot = score_matrix(record)
    assert isinstance(plot, Heatmap)
    return plot


def test_the_matrix_has_a_row_for_each_moment_and_frames_what_was_just_learned():
    plot = heatmap(make_record(tasks=["a", "b", "c"], full=True))
    assert plot.rows == ["after 1 a", "after 2 b", "after 3 c"]
    assert plot.panels[0].values == [[90.0, 20.0, None], [80.0, 90.0, 20.0], [70.0, 80.0, 90.0]]
    assert plot.marked == {(0, 0), (1, 1), (2, 2)}


def test_joint_training_has_one_moment_and_no_frame():
    record = make_record("joint", ["a", "b"], data_class="all data")
    record.scores = [s for s in record.scores if s.after == 2]
    plot = heatmap(record)
    assert plot.rows == ["after all tasks"]
    assert not plot.marked
    assert isinstance(forgetting_curves(record), Missing)


def test_a_curve_begins_before_its_task_and_ends_at_the_last():
    plot = forgetting_curves(make_record(tasks=["a", "b", "c"], full=True))
    assert isinstance(plot, Curves)
    second = plot.panels[1]
    assert second.title == "2 b"
    assert second.remark == "90.0 → 80.0"
    (own,) = [line for line in second.lines if not line.faint]
    assert own.points == [(1.0, 20.0), (2.0, 90.0), (3.0, 80.0)]
    # behind it the others are seen from the moment on when they were learned
    assert [line.points[0][0] for line in second.lines if line.faint and line.points] == [1.0, 3.0]
    assert "a fell the most, from 90.0 to 70.0." in plot.meaning


def test_the_meaning_says_so_where_nothing_fell():
    plot = forgetting_curves(make_record(tasks=["a", "b"], drop=-1.0))
    assert isinstance(plot, Curves)
    assert "No task scores lower at the end" in plot.meaning


def test_losses_follow_each_other_over_the_stream_with_fusions_marked():
    plot = losses(rounds_record(tasks=["a", "b", "c"]))
    assert isinstance(plot, Timeline)
    assert [span[1:] for span in plot.spans] == [(0, 4), (4, 8), (8, 12)]
    assert [line.points for line in plot.lines][1] == [(5, 2.0), (8, 0.05)]
    assert plot.marks == [6, 8, 10, 12]
    assert plot.log


def test_losses_that_were_not_finite_are_left_out_and_counted():
    plot = losses(kif_record(tasks=["a", "b"]))
    assert isinstance(plot, Timeline)
    assert [line.points for line in plot.lines] == [[(1, 3.0), (4, 1.0)], [(5, 3.0), (8, 1.0)]]
    assert "2 of the recorded losses" in plot.meaning
    assert plot.marks == [8]
    assert not plot.log


def test_fusions_without_steps_on_record_are_mentioned_not_drawn():
    record = rounds_record(tasks=["a", "b"])
    del record.tasks[1].events[0]["steps"]
    plot = losses(record)
    assert isinstance(plot, Timeline)
    assert plot.marks == []
    assert "does not say at which steps" in plot.meaning


def test_an_unrecorded_learning_rate_is_told_from_the_settings():
    settings = {"learning_rate": 3e-4, "scheduler": "linear", "warmup_steps": 5}
    plot = learning_rates(make_record(config={"training": settings}))
    assert isinstance(plot, Missing)
    assert "0.0003" in plot.reason
    assert "linear" in plot.reason
    assert "5 steps of warm-up" in plot.reason


@pytest.mark.parametrize(
    ("place", "name", "shown"),
    [(1, "yelp", "1 yelp"), (1, "01-queue", "01-queue"), (2, "01-queue", "2 01-queue"), (3, "3", "3 3")],
)
def test_a_number_is_not_said_twice(place: int, name: str, shown: str):
    assert numbered(place, name) == shown


@pytest.mark.parametrize("picture", [score_matrix, forgetting_curves, losses])
def test_a_record_without_anything_gives_reasons(picture: Callable[[RunRecord], object]):
    empty = make_record(tasks=["a"], scores=[])
    none = empty.model_copy(update={"tasks": []})
    for record in (empty, none):
        found = picture(record)
        assert isinstance(found, Missing)
        assert found.reason.endswith(".")


def test_many_tasks_are_drawn_without_the_others_behind_each():
    few, many = ([f"t{i}" for i in range(count)] for count in (20, 21))
    plot = forgetting_curves(make_record(tasks=few, full=True))
    assert isinstance(plot, Curves) and len(plot.panels[4].lines) == 20 and "grey" in plot.meaning
    plot = forgetting_curves(make_record(tasks=many, full=True))
    assert isinstance(plot, Curves) and len(plot.panels) == 21 and "grey" not in plot.meaning
    assert all(len(panel.lines) == 1 for panel in plot.panels)
