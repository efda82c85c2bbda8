from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from kifuse.errors import RunError
from kifuse.record.run_record import RunRecord
from kifuse.reporting.comparison_tables import side_by_side
from kifuse.reporting.terminal_tables import comparison_table, matrix_table
from tests.unit.reporting.runs import make_record


def shown(table: Any, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


def markdown_of(records: list[RunRecord]) -> str:
    return side_by_side(records).md()


def row(text: str, title: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.strip().startswith(title))
    return re.findall(r"-?\d[\d.]*(?: \(was [\d.]+\))?|-(?= |$)", line.split(title, 1)[1])


def test_two_runs_of_five_tasks_fit_80_columns_without_wrapping_a_row() -> None:
    text = shown(comparison_table([make_record("sequential"), make_record("recurrent-kif", drop=1.0)]))
    assert row(text, "yelp") == ["50.0 (was 90.0)", "86.0 (was 90.0)"]
    assert row(text, "copa") == ["90.0", "90.0"]
    assert row(text, "AP, average at the end") == ["70.0", "88.0"]
    assert row(text, "FWT, before training") == ["20.0", "20.0"]
    assert row(text, "BWT, change since learned") == ["-25.0", "-2.5"]
    assert row(text, "valid outputs, %") == ["98.0", "98.0"]
    assert row(text, "trained, seconds") == ["7.5", "7.5"]
    assert row(text, "replayed examples") == ["15", "15"]


def test_the_data_a_method_may_use_is_shown() -> None:
    text = shown(comparison_table([make_record(), make_record("replay", data_class="real replay")]))
    assert "replay-free" in text
    assert "real replay" in text


def test_a_missing_value_is_a_dash_with_a_note() -> None:
    joint = make_record("joint", data_class="all data")
    text = shown(comparison_table([make_record(), joint]))
    assert row(text, "forgetting, from best") == ["-", "-"]
    assert row(text, "FWT, before training") == ["20.0", "-"]
    flat = " ".join(text.split())
    assert "joint: no FWT, BWT, forgetting: all tasks are trained at once" in flat
    assert "sequential: no forgetting: needs the scores after each task" in flat


def test_runs_with_the_same_gap_share_a_note() -> None:
    markdown = markdown_of([make_record("kif"), make_record("replay")])
    assert markdown.count(r"evaluation.full\_matrix") == 1
    assert "kif and replay: no forgetting" in markdown


def test_an_unfinished_run_shows_what_it_has() -> None:
    record = make_record(status="running")
    record.scores = [score for score in record.scores if score.after <= 2]
    for task in record.tasks[2:]:
        task.train_steps = None
    text = shown(comparison_table([record]))
    assert "- (was 90.0)" in text
    assert "the run has learned 2 of its 5 tasks" in " ".join(text.split())


def test_different_streams_are_pointed_out() -> None:
    markdown = markdown_of([make_record(tasks=["yelp", "cb"]), make_record("kif", tasks=["yelp", "copa"])])
    assert "| cb | 90.0 | \u2013 |" in markdown
    assert "kif: not in its stream: cb" in markdown
    assert "not over the same tasks" in markdown


def test_different_test_examples_are_pointed_out() -> None:
    one, other = make_record(), make_record("kif")
    one.tasks[2].hashes, other.tasks[2].hashes = {"test": "aa"}, {"test": "bb"}
    assert "The runs were scored on different test examples of mnli." in markdown_of([one, other])


def test_runs_of_one_method_are_told_apart() -> None:
    heads = markdown_of(
        [make_record("kif"), make_record("kif", seeds={"training": 1}), make_record("kif"), make_record()]
    ).splitlines()[0]
    assert heads == "|  | kif seed 0 | kif seed 1 | kif seed 0 (2) | sequential |"


def test_labels_replace_the_names_of_methods() -> None:
    text = shown(comparison_table([make_record(), make_record()], ["before", "after"]))
    assert "before" in text
    assert "sequential" not in text
    with pytest.raises(RunError, match="found 1 labels for 2 runs"):
        comparison_table([make_record(), make_record()], ["before"])


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(RunError, match="nothing to compare"):
        comparison_table([])


def test_names_are_shown_literally() -> None:
    record = make_record("a|b", tasks=["[bold]odd[red]", "x|y"])
    assert "[bold]odd[red]" in shown(comparison_table([record]))
    assert "[bold]odd[red]" in shown(matrix_table(record))
    lines = markdown_of([record]).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")} == {3}


def test_a_change_too_small_to_show_has_no_minus_sign() -> None:
    assert row(shown(comparison_table([make_record(drop=0.001)])), "BWT, change since learned") == ["0.0"]


def test_the_matrix_has_a_row_for_each_moment() -> None:
    text = shown(matrix_table(make_record(full=True)))
    assert row(text, "after 2 amazon") == ["80.0", "90.0", "20.0", "-", "-"]
    assert row(text, "after 5 copa") == ["50.0", "60.0", "70.0", "80.0", "90.0"]
    assert "before training" not in text
    assert "- not scored" in text


def test_the_matrix_of_fifteen_tasks_fits_80_columns() -> None:
    text = shown(matrix_table(make_record(tasks=[f"task{i}_with_a_long_name" for i in range(15)], drop=3.0)))
    assert row(text, "15 task14_w") == [str(48 + 3 * i) for i in range(15)]


def test_the_matrix_of_a_run_that_has_scored_nothing_says_so() -> None:
    assert "nothing has been scored yet" in shown(matrix_table(make_record(scores=[])))
