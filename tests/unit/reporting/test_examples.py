"""Examples lost, kept and gained: which are shown, and why there may be none."""

from __future__ import annotations

from pathlib import Path

import pytest

from kifuse.record.run_record import RunRecord
from kifuse.reporting.examples import SHOWN, examples
from kifuse.reporting.run_groups import Run, open_run
from tests.unit.reporting.measured_runs import write_run
from tests.unit.reporting.runs import make_record, write_predictions


def test_each_kind_is_counted_and_shown(tmp_path: Path):
    found = examples(open_run(write_run(tmp_path, make_record(tasks=["a", "b", "c"]))))
    kinds = {kind.name: kind for kind in found.kinds}
    # right at first: not every fourth of twelve; right at the end: not every third; two tasks
    assert {name: kind.total for name, kind in kinds.items()} == {"lost": 6, "kept": 12, "gained": 4}
    for kind in found.kinds:
        assert len(kind.shown) == min(kind.total, SHOWN)
        assert {example.task for example in kind.shown} == {"a", "b"}
        for example in kind.shown:
            assert (example.right_when_learned, example.right_at_end) == {
                "lost": (True, False),
                "kept": (True, True),
                "gained": (False, True),
            }[kind.name]
            assert example.expected == ["good"]


def test_a_task_without_test_examples_is_not_missed(tmp_path: Path):
    record = make_record(tasks=["a", "b", "c"])
    record.tasks[1].sizes["test"] = 0
    run = open_run(write_run(tmp_path, record))
    for after in (2, 3):
        (tmp_path / "predictions" / f"after-{after}" / "b.jsonl").unlink()
    found = examples(run)
    assert {example.task for kind in found.kinds for example in kind.shown} == {"a"}
    assert not found.notes
    record.tasks[0].sizes["test"] = 0
    record.save(tmp_path)
    assert examples(open_run(tmp_path)).reason == "No task before the last has test examples."


def test_a_very_long_input_loses_its_middle(tmp_path: Path):
    record = make_record(tasks=["a", "b"])
    record.save(tmp_path)
    text = "start " + "x" * 20_000 + " end"
    write_predictions(tmp_path, 1, "a", {text: True})
    write_predictions(tmp_path, 2, "a", {text: False})
    lost = examples(open_run(tmp_path)).kinds[0].shown[0]
    assert len(lost.input) < 7_000
    assert lost.input.startswith("start")
    assert lost.input.endswith("end")
    assert "14,010 characters left out" in lost.input


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (make_record("joint", data_class="all data"), "at once"),
        (make_record(tasks=["a"]), "one task"),
        (make_record(status="running"), "once the run is finished"),
    ],
)
def test_a_run_without_a_before_and_after_says_so(tmp_path: Path, record: RunRecord, said: str):
    record.save(tmp_path)
    assert said in examples(open_run(tmp_path)).reason


def test_a_record_without_its_run_says_so(tmp_path: Path):
    assert "without the run's predictions" in examples(Run(make_record())).reason
    make_record().save(tmp_path)
    found = examples(open_run(tmp_path))
    assert "missing" in found.reason
    assert any("after-1" in note for note in found.notes)
