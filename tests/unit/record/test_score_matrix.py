from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kifuse.errors import RunError
from kifuse.record.score_matrix import ScoreMatrix, needed_cells


def by_hand() -> ScoreMatrix:
    #            task:   A     B     C
    rows = {
        0: [10.0, 20.0, 30.0],
        1: [90.0, 25.0, 35.0],
        2: [95.0, 80.0, 40.0],
        3: [70.0, 60.0, 85.0],
    }
    matrix = ScoreMatrix(["A", "B", "C"])
    for after, scores in rows.items():
        for task, score in enumerate(scores):
            matrix.set(after, task, score)
    return matrix


def test_the_metrics_of_a_small_stream_by_hand() -> None:
    matrix = by_hand()
    assert matrix.average_performance().value == pytest.approx((70 + 60 + 85) / 3)
    assert matrix.forward_transfer().value == pytest.approx((25 + 40) / 2)
    assert matrix.backward_transfer().value == pytest.approx(((70 - 90) + (60 - 80)) / 2)
    assert matrix.forgetting().value == pytest.approx(((95 - 70) + (80 - 60)) / 2)


def test_the_metrics_after_the_first_two_tasks() -> None:
    matrix = by_hand()
    assert matrix.average_performance(2).value == pytest.approx((95 + 80) / 2)
    assert matrix.forward_transfer(2).value == 25.0
    assert matrix.backward_transfer(2).value == 5.0
    assert matrix.forgetting(2).value == -5.0


@given(st.integers(1, 9))
def test_the_needed_cells_are_3k_minus_2_and_enough(count: int) -> None:
    cells = needed_cells(count)
    assert len(cells) == len(set(cells)) == 3 * count - 2
    assert cells == sorted(cells)
    matrix = ScoreMatrix([str(task) for task in range(count)])
    for after, task in cells:
        matrix.set(after, task, 50.0)
    assert matrix.average_performance().value == 50.0
    if count > 1:
        assert matrix.forward_transfer().value == 50.0
        assert matrix.backward_transfer().value == 0.0


@given(st.integers(2, 7))
def test_no_needed_cell_is_superfluous(count: int) -> None:
    cells = needed_cells(count)
    for left_out in cells:
        matrix = ScoreMatrix([str(task) for task in range(count)])
        for cell in cells:
            if cell != left_out:
                matrix.set(*cell, 50.0)
        values = [matrix.average_performance(), matrix.forward_transfer(), matrix.backward_transfer()]
        assert any(metric.value is None for metric in values)


@given(st.integers(2, 7))
def test_the_full_cells_are_enough_for_forgetting(count: int) -> None:
    matrix = ScoreMatrix([str(task) for task in range(count)])
    cells = needed_cells(count, full=True)
    assert set(needed_cells(count)) <= set(cells)
    for cell in cells:
        matrix.set(*cell, 40.0)
    assert matrix.forgetting().value == 0.0


def test_a_metric_without_its_cells_names_them() -> None:
    matrix = ScoreMatrix(["A", "B", "C"])
    for after, task in needed_cells(3):
        matrix.set(after, task, 50.0)
    forgetting = matrix.forgetting()
    assert forgetting.value is None
    assert forgetting.reason == "not scored: A after task 2"
    empty = ScoreMatrix(["A", "B", "C", "D", "E"]).average_performance()
    assert empty.reason == "not scored: A after task 5, B after task 5, C after task 5 and 2 more"


def test_one_task_has_an_average_and_no_transfer() -> None:
    matrix = ScoreMatrix(["A"])
    matrix.set(1, 0, 75.0)
    assert matrix.average_performance().value == 75.0
    for metric in (matrix.forward_transfer(), matrix.backward_transfer(), matrix.forgetting()):
        assert metric.value is None
        assert metric.reason == "needs at least two tasks"


@pytest.mark.parametrize("cell", [(-1, 0), (4, 0), (0, -1), (0, 3)])
def test_cells_outside_the_matrix_are_refused(cell: tuple[int, int]) -> None:
    matrix = ScoreMatrix(["A", "B", "C"])
    with pytest.raises(RunError, match="found"):
        matrix.set(*cell, 50.0)
    with pytest.raises(RunError, match="found"):
        matrix.get(*cell)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(RunError, match="B before training is nan"):
        ScoreMatrix(["A", "B"]).set(0, 1, math.nan)


def test_streams_need_tasks_of_different_names() -> None:
    with pytest.raises(RunError, match="'A' appears twice"):
        ScoreMatrix(["A", "B", "A"])
    with pytest.raises(RunError, match="at least one task"):
        ScoreMatrix([])


def test_json_round_trip() -> None:
    matrix = by_hand()
    again = ScoreMatrix.from_json(json.loads(json.dumps(matrix.to_json())))
    assert again.to_json() == matrix.to_json()
    assert again.get(2, 1) == 80.0
    with pytest.raises(RunError, match="not a score matrix"):
        ScoreMatrix.from_json({"tasks": ["A"]})
