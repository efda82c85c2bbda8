"""Parts of a comparison that need no run: the time left, the classes, the order of methods."""

from __future__ import annotations

import io
from typing import get_args

import pytest
from rich.console import Console

from kifuse import method_catalog
from kifuse.methods import base
from kifuse.record.run_record import MethodRecord
from kifuse.reporting.run_groups import Run, group_runs
from kifuse.reporting.terminal_tables import ranked, ranking_table
from kifuse.running.progress import Plan
from kifuse.terminal import progress as terminal_progress
from kifuse.terminal.progress import ConsoleProgress, Pace
from tests.unit.reporting.runs import make_record


class Clock:
    """Ten seconds pass whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 10.0
        return self.now


def test_the_time_left_for_all_runs_is_told_from_the_runs_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(terminal_progress, "time", clock)
    out, pace = io.StringIO(), Pace(seconds=1000.0, work=100.0)
    told = ConsoleProgress(
        Console(file=out, width=200),
        title="2/3 replay, order 1, seed 0",
        label="2/3 replay",
        later=500.0,
        pace=pace,
    )
    told.begin("replay", Plan(20, 0), Plan(0, 0))
    told.training("colour", 20)
    for step in range(1, 11):
        told.step("colour", step, 20, None)
    text = out.getvalue()
    assert "2/3 replay, order 1, seed 0: 20 steps" in text
    # 510 passes at about ten seconds each: 1:25:00
    assert " left for all runs" in text and "about 1:2" in text
    told.stop()
    told.stop()  # after an error it is called again
    assert pace.work == 110 and pace.seconds > 1000


def test_the_last_run_has_no_time_of_others() -> None:
    assert Pace().seconds_for(100, seconds=10, done=1) is None
    assert Pace().seconds_for(100, seconds=10, done=10) == 100


def test_classes_are_the_same_in_methods_catalog_and_records() -> None:
    classes = get_args(base.DataClass)
    assert classes == (
        "replay-free",
        "real replay",
        "generated replay",
        "generic replay",
        "task id given",
        "all data",
    )
    assert get_args(method_catalog.DataClass) == classes
    assert get_args(MethodRecord.model_fields["data_class"].annotation) == classes


def test_methods_come_in_the_order_of_their_average_and_unfinished_ones_last() -> None:
    records = [make_record(name) for name in ("sequential", "kif", "replay")]
    for cell in records[1].scores:
        cell.score = 99.0
    records[2].status = "running"
    groups = group_runs([Run(record, None, record.method.name) for record in records])
    assert [group.label for group in ranked(groups)] == ["kif", "sequential", "replay"]
    out = io.StringIO()
    Console(file=out, width=120).print(ranking_table(groups))
    text = out.getvalue()
    assert text.index("kif") < text.index("sequential") < text.index("replay ")
    assert "replay-free" in text and "replay: 1 run not finished yet" in text


def test_rows_of_a_comparison_keep_their_labels_and_are_never_mixed() -> None:
    record = make_record("kif")
    runs = [Run(record, None, name, label) for name, label in (("1", "a"), ("2", "b"), ("3", "a"))]
    assert [(group.label, len(group.runs)) for group in group_runs(runs)] == [("a", 2), ("b", 1)]


def test_a_terminal_of_80_columns_shows_every_column() -> None:
    runs = [Run(make_record("recurrent-kif", drop=drop), None, str(drop)) for drop in (5.0, 15.0)]
    out = io.StringIO()
    Console(file=out, width=80).print(ranking_table(group_runs(runs)))
    head = next(line for line in out.getvalue().splitlines() if "method" in line and "AP" in line)
    names = ["method", "class", "runs", "AP", "BWT", "FWT", "replayed", "extra", "train,", "s"]
    assert head.split() == names and "±" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80
