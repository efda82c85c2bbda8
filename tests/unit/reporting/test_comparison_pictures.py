"""The pictures of several runs, and the sentence above them."""

from __future__ import annotations

import pytest

from kifuse.reporting.comparison_pictures import (
    cost_and_quality,
    learned_and_kept,
    methods,
    model_size,
    number_of_fusions,
    progress,
    sentence,
    task_differences,
)
from kifuse.reporting.plots import Cloud, Curves, Heatmap, Strips
from kifuse.reporting.run_groups import Group, Run, group_runs
from kifuse.reporting.run_pictures import Missing
from tests.unit.reporting.measured_runs import rounds_record
from tests.unit.reporting.runs import make_record


def groups_of(*methods: tuple[str, float, int], full: bool = False) -> list[Group]:
    """Groups by (method, loss a task, runs); the loss grows by one from run to run."""
    return group_runs(
        [
            Run(make_record(name, drop=drop + seed, full=full, seeds={"training": seed}))
            for name, drop, count in methods
            for seed in range(count)
        ]
    )


def test_methods_stand_beside_each_other_with_their_spread():
    plot = methods(groups_of(("sequential", 20.0, 3), ("kif", 4.0, 1)))
    assert isinstance(plot, Strips)
    assert plot.rows == ["sequential", "kif"]
    (_, ap), (_, bwt) = plot.panels
    assert ap[0] is not None
    assert ap[1] is not None
    # 90 - 2 * drop
    assert (ap[0].value, ap[0].deviation, ap[1].deviation) == (pytest.approx(48.0), pytest.approx(2.0), None)
    assert bwt[0] is not None
    assert bwt[0].value == pytest.approx(-2.5 * 21)


def test_differences_are_from_the_group_of_reference():
    plot = task_differences(groups_of(("sequential", 10.0, 1), ("kif", 4.0, 1)))
    assert isinstance(plot, Heatmap)
    assert plot.panels[0].columns == ["kif"]
    assert [row[0] for row in plot.panels[0].values] == pytest.approx([24.0, 18.0, 12.0, 6.0, 0.0])
    assert (plot.low, plot.high) == (pytest.approx(-24.0), pytest.approx(24.0))


def test_what_was_learned_stands_beside_what_was_kept_and_joint_training():
    groups = groups_of(("sequential", 10.0, 1))
    joint = Group("joint", [Run(make_record("joint", drop=0.0, data_class="all data"))])
    plot = learned_and_kept([*groups, joint])
    assert isinstance(plot, Heatmap)
    first, second = plot.panels
    assert (first.title, first.columns) == ("sequential", ["learned", "at the end"])
    assert [row[0] for row in first.values] == pytest.approx([90.0] * 5)
    assert [row[1] for row in first.values] == pytest.approx([50.0, 60.0, 70.0, 80.0, 90.0])
    assert second.columns == ["joint"] and [len(row) for row in second.values] == [1] * 5


def test_quality_is_shown_against_the_size_of_the_model():
    records = [make_record("kif", drop=drop) for drop in (10.0, 5.0)]
    for record, size in zip(records, (60_000_000, 220_000_000), strict=True):
        record.model["parameters"] = size
    plot = model_size(group_runs([Run(record) for record in records]))
    assert isinstance(plot, Curves) and plot.log
    assert plot.panels[0].lines[0].points == [(60.0, 70.0), (220.0, 80.0)]
    assert isinstance(model_size(group_runs([Run(records[0])])), Missing)


def test_cost_stands_against_quality():
    plot = cost_and_quality(groups_of(("sequential", 10.0, 2), ("kif", 4.0, 1)))
    assert isinstance(plot, Cloud)
    assert [(group, label, x.value) for group, label, x, _ in plot.points] == [
        (0, "sequential", pytest.approx(0.125)),
        (1, "kif", pytest.approx(0.125)),
    ]


def test_unlike_machines_are_pointed_out():
    groups = groups_of(("sequential", 10.0, 1), ("kif", 4.0, 1))
    groups[1].runs[0].record.machine = {"device_name": "other", "threads": 4}
    plot = cost_and_quality(groups)
    assert isinstance(plot, Cloud)
    assert "different machines" in plot.meaning


def test_progress_needs_the_scores_in_between():
    some = progress(groups_of(("sequential", 10.0, 1), ("kif", 4.0, 1)))
    assert isinstance(some, Missing)
    assert "full_matrix" in some.reason
    plot = progress(groups_of(("sequential", 10.0, 1), ("kif", 4.0, 1), full=True))
    assert isinstance(plot, Curves)
    first = plot.panels[0].lines[0]
    assert first.points == [(1, 90.0), (2, 85.0), (3, 80.0), (4, 75.0), (5, 70.0)]


def test_quality_is_shown_against_the_number_of_fusions():
    records = [rounds_record(drop=drop) for drop in (10.0, 5.0)]
    for task in records[1].tasks[1:]:
        task.events[0]["rounds"] = 4
    plot = number_of_fusions(group_runs([Run(record) for record in records]))
    assert isinstance(plot, Curves)
    assert [panel.title for panel in plot.panels] == ["AP", "BWT"]
    assert plot.panels[0].lines[0].points == [(8, 70.0), (16, 80.0)]
    assert isinstance(number_of_fusions(group_runs([Run(records[0])])), Missing)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (groups_of(("sequential", 20.0, 1), ("kif", 4.0, 1)), "kif is best, with an average of 82.0"),
        (groups_of(("sequential", 20.0, 1), ("kif", 4.0, 1)), "sequential reaches 50.0."),
        (groups_of(("replay", 4.5, 2), ("kif", 4.0, 2)), "more seeds are needed"),
        (groups_of(("replay", 4.0, 1), ("kif", 4.0, 1)), "reaches 82.0. The first two are level."),
        (groups_of(("sequential", 20.0, 1), ("kif", 4.0, 1)), "may be chance"),
        (groups_of(("kif", 4.0, 3)), "kif reaches an average of 80.0"),
    ],
)
def test_the_sentence_says_what_came_out(groups: list[Group], said: str):
    assert said in sentence(groups)


def test_a_clear_lead_asks_for_no_more_seeds():
    said = sentence(groups_of(("sequential", 20.0, 3), ("kif", 4.0, 3)))
    assert "more seeds" not in said
    assert "chance" not in said


def test_joint_training_is_a_reference_not_a_winner():
    joint = Run(make_record("joint", drop=0.0, data_class="all data"))
    runs = [joint, *(run for group in groups_of(("kif", 4.0, 1), ("replay", 9.0, 1)) for run in group.runs)]
    said = sentence(group_runs(runs))
    assert said.startswith("kif is best")
    assert said.endswith("Training on all tasks at once (joint) reaches 90.0.")


def test_runs_that_are_not_finished_are_no_picture():
    groups = groups_of(("kif", 4.0, 1), ("sequential", 4.0, 1))
    for group in groups:
        group.runs[0].record.status = "running"
    pictures = [methods, progress, task_differences, cost_and_quality, number_of_fusions]
    pictures += [model_size, learned_and_kept]
    assert all(isinstance(picture(groups), Missing) for picture in pictures)
