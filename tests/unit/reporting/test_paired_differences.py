"""Methods on the cells that they share: what their differences say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from kifuse.reporting.comparison_pictures import sentence
from kifuse.reporting.paired_differences import Paired, differences_table
from kifuse.reporting.run_groups import Run, group_runs
from tests.unit.reporting.runs import make_record

POINTS = st.floats(-30, 30).map(lambda value: round(value, 2))


def runs_of(method: str, *drops: float, first: int = 0, **fields: object) -> list[Run]:
    """Runs over seeds; with five tasks AP is 90 - 2 * drop."""
    return [
        Run(make_record(method, drop=drop, seeds={"training": seed}, **fields))  # pyright: ignore[reportArgumentType]
        for seed, drop in enumerate(drops, start=first)
    ]


@given(st.lists(POINTS, min_size=3, max_size=9).filter(lambda values: len(set(values)) > 1))
def test_two_methods_are_apart_as_the_paired_t_test_says(values: list[float]):
    found = Paired("a", "b", values)
    test = ttest_rel(values, [0.0] * len(values))
    interval = test.confidence_interval(0.95)
    assert found.apart == (test.pvalue < 0.05)
    assert found.mean is not None and found.reach is not None
    assert found.mean - found.reach == pytest.approx(interval.low, abs=1e-9)
    assert found.mean + found.reach == pytest.approx(interval.high, abs=1e-9)
    needed = found.pairs_needed()
    assert needed is None or len(values) < needed <= 60


def test_only_shared_cells_count_and_the_best_that_learns_in_turn_is_the_reference():
    # seed 2 is replay's alone, and joint sees everything at once
    runs = [
        *runs_of("sequential", 20.0, 24.0),
        *runs_of("replay", 5.0, 8.0, 1.0),
        *runs_of("joint", 0.0, 0.0, data_class="all data"),
    ]
    table = differences_table(group_runs(runs))
    assert table is not None and table.title == "Paired differences of AP from replay"
    cells = {row[0].text: [cell.value for cell in row[1:4]] for row in table.rows}
    assert list(cells) == ["joint", "sequential"]
    # 90 - 40 and 90 - 48 against 80 and 74
    assert cells["sequential"] == pytest.approx([2, -31.0, 1.0])
    assert cells["joint"] == pytest.approx([2, 13.0, 3.0])


def test_what_is_not_apart_says_how_many_cells_would_tell():
    runs = [*runs_of("kif", 5.0, 6.0, 5.5), *runs_of("replay", 4.9, 6.2, 5.0)]
    table = differences_table(group_runs(runs))
    assert table is not None
    (note,) = table.notes
    # kif minus replay: -0.2, 0.4, -1.0; sd 0.702, and at 30 pairs 2.045 * 0.702 / sqrt(30) < 0.267
    assert note.startswith("kif and replay cannot be told apart over 3 pairs of runs: \u22120.3 points of AP")
    assert "standard error 0.4" in note and "about 30 pairs would show" in note


def test_two_pairs_that_agree_by_chance_tell_nothing():
    groups = group_runs([*runs_of("kif", 5.0, 6.0), *runs_of("replay", 4.5, 5.5)])
    table = differences_table(groups)
    assert table is not None
    assert [cell.text for cell in table.rows[0][4:]] == ["\u2013", "no"]
    assert table.notes == [
        "kif is 1.0 points of AP below replay over 2 pairs of runs; more seeds would show whether that is "
        "noise."
    ]
    assert "2 pairs of runs do not tell the first two apart: more seeds are needed." in sentence(groups)


def test_three_pairs_that_agree_need_no_caution_whatever_the_seeds_spread():
    groups = group_runs([*runs_of("kif", 5.0, 9.0, 1.0), *runs_of("replay", 4.5, 8.5, 0.6)])
    assert "apart" not in sentence(groups) and "seeds" not in sentence(groups)


def test_one_pair_has_no_error_and_none_is_not_compared():
    one = differences_table(group_runs([*runs_of("kif", 5.0), *runs_of("replay", 4.0)]))
    none = differences_table(group_runs([*runs_of("kif", 5.0), *runs_of("replay", 4.0, first=7)]))
    assert one is not None and none is not None
    assert one.notes == [
        "kif is 2.0 points of AP below replay in one pair of runs; more seeds would show whether that is "
        "noise."
    ]
    assert none.notes == ["kif and replay have no order and seed in common, so they are not compared."]


def test_other_test_examples_are_no_pair_and_another_machine_is_said():
    runs = [*runs_of("kif", 5.0, 6.0), *runs_of("replay", 1.0, 1.5, machine={"device_name": "another"})]
    table = differences_table(group_runs(runs))
    assert table is not None and any("In 2 pairs" in note for note in table.notes)
    for run in runs[:2]:
        run.record.tasks[0].hashes["test"] = "other"
    table = differences_table(group_runs(runs))
    assert table is not None and "have no order and seed in common" in table.notes[0]


def test_a_method_alone_has_nothing_to_be_compared_with():
    assert differences_table(group_runs(runs_of("kif", 1.0, 2.0))) is None
