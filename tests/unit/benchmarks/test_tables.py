"""The measurement pages: their tables are what the records say."""

from __future__ import annotations

import pytest
from benchmarks.tables import PAGES, table_of, written


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_table_of_a_page_is_what_the_records_say(page):
    text = page.read_text("utf-8")
    assert written(text) == text, f"{page.name}: run python benchmarks/tables.py"


def test_a_cell_is_a_measure_of_a_record_and_empty_where_there_is_none():
    table = table_of(
        "records: bench-regime\nrows: {replay: mixed, joint: all}\ncolumns: {AP: AP 0 1, "
        "order 3: AP 0 order 3, BWT: BWT 0 1 mean, steps: steps 0, class: class 0}"
    )
    assert table.splitlines()[2:] == [
        "| `replay` | mixed | 62.2, 61.6 | 64.9 | -6.4 (2.0) | 360 | real replay |",
        "| `joint` | all | 66.4 |  | - | 300 | all data |",
    ]


def test_a_ratio_that_was_not_measured_is_named():
    with pytest.raises(KeyError, match="training has no 'a step with nothing'"):
        table_of("speed: {training: {a step with nothing: nothing}}")
