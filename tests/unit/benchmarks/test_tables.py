"""The measurement pages: their tables are what the records say."""

from __future__ import annotations

import json

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


def test_what_was_measured_on_a_gpu_is_shown_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.tables.RESULTS", tmp_path)
    assert table_of("gpu: steps").splitlines()[2:] == ["| none yet |  |  |"]
    parts = {
        "steps": {"LLaMA-2-7B": {"kif": {"step_seconds": 0.5, "added_percent": 0.75}, "peak_gib": 20.25}}
    }
    (tmp_path / "gpu-a.json").write_text(json.dumps({"device": "GPU A", "parts": parts}), encoding="utf-8")
    assert table_of("gpu: steps").splitlines()[2:] == [
        "| GPU A | LLaMA-2-7B | peak gib 20.2 |",
        "| GPU A | LLaMA-2-7B, kif | step seconds 0.5, added percent 0.75 |",
    ]
    assert table_of("gpu: waits").splitlines()[2:] == []
