from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kifuse import __version__
from kifuse.errors import KifuseError, RunError
from kifuse.record.run_record import RunRecord, ScoreRecord
from tests.unit.reporting.runs import make_record


def edit(folder: Path, **fields: Any) -> None:
    file = folder / "record.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["seal"]  # as of an earlier kifuse
    content.update(fields)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    record = make_record(warnings=["überlappt"], memory={"examples": 12})
    record.tasks[0].loss = [(1, 2.5), (2, 1.25)]
    record.tasks[0].events = [{"kind": "fusion", "step": 3, "weights": [0.5, None], "note": "as it likes"}]
    record.save(tmp_path)
    assert RunRecord.load(tmp_path) == record


def test_numbers_that_json_lacks_are_written_as_null(tmp_path: Path) -> None:
    record = make_record()
    record.tasks[0].loss = [(1, math.nan), (2, math.inf), (3, 0.5)]
    record.tasks[0].events = [{"kind": "fusion", "values": {"a": [math.nan, 1.0]}}]
    record.save(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "record.json").read_text(encoding="utf-8"), parse_constant=refuse)
    again = RunRecord.load(tmp_path)
    assert again.tasks[0].loss == [(1, None), (2, None), (3, 0.5)]
    assert again.tasks[0].events[0]["values"] == {"a": [None, 1.0]}


def test_a_score_must_be_a_number() -> None:
    with pytest.raises(ValidationError):
        ScoreRecord(after=1, task=0, score=math.nan, n=3, seconds=0.1)


@pytest.mark.parametrize("odd", [object(), "half a pair \ud800", b"\xff"])
def test_what_json_cannot_hold_is_refused_and_the_old_record_stays(tmp_path: Path, odd: object) -> None:
    record = make_record()
    record.save(tmp_path)
    before = (tmp_path / "record.json").read_bytes()
    record.memory = {"odd": odd}
    with pytest.raises(RunError, match=r"record\.json: cannot be written"):
        record.save(tmp_path)
    assert (tmp_path / "record.json").read_bytes() == before


def test_a_newer_schema_is_refused_with_file_and_versions(tmp_path: Path) -> None:
    make_record().save(tmp_path)
    edit(tmp_path, schema_version=2, kifuse_version="9.9")
    with pytest.raises(RunError) as caught:
        RunRecord.load(tmp_path)
    for part in (
        str(tmp_path / "record.json"),
        "found 2",
        "kifuse 9.9",
        "expected 1",
        __version__,
        "update kifuse",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("version", [None, 0, "1"])
def test_another_schema_is_refused(tmp_path: Path, version: Any) -> None:
    make_record().save(tmp_path)
    edit(tmp_path, schema_version=version)
    with pytest.raises(RunError, match="schema_version: found"):
        RunRecord.load(tmp_path)


def test_a_damaged_record_names_the_field(tmp_path: Path) -> None:
    make_record().save(tmp_path)
    edit(tmp_path, tasks=[{"name": "yelp"}])
    with pytest.raises(RunError, match=r"record\.json: tasks\.0\.metric"):
        RunRecord.load(tmp_path)


def test_a_folder_without_a_run_and_a_file_without_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        RunRecord.load(tmp_path)
    (tmp_path / "record.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunError, match="expected an object"):
        RunRecord.load(tmp_path)
    (tmp_path / "record.json").write_text('{"a":\n', encoding="utf-8")
    with pytest.raises(KifuseError, match=r"record\.json:2"):
        RunRecord.load(tmp_path)


def test_the_summary_is_computed_from_the_scores() -> None:
    summary = make_record(drop=10.0, full=True).summary()
    assert {name: metric.value for name, metric in summary.items()} == pytest.approx(
        {"AP": 70.0, "FWT": 20.0, "BWT": -25.0, "forgetting": 25.0}
    )


def test_an_undefined_metric_says_what_would_define_it() -> None:
    forgetting = make_record().summary()["forgetting"]
    assert forgetting.value is None
    assert "evaluation.full_matrix" in str(forgetting.reason)


def test_an_unfinished_run_has_no_average_yet() -> None:
    record = make_record(status="running")
    record.tasks[3].train_steps = record.tasks[4].train_steps = None
    assert record.learned() == 3
    for metric in record.summary().values():
        assert metric.value is None
        assert metric.reason == "the run has learned 3 of its 5 tasks"


def test_joint_training_has_an_average_but_no_transfer() -> None:
    record = make_record("joint", data_class="all data", full=True)
    summary = record.summary()
    assert summary["AP"].value == 70.0
    assert {summary[name].reason for name in ("FWT", "BWT", "forgetting")} == {
        "all tasks are trained at once"
    }


def test_costs_and_valid_outputs_are_added_up() -> None:
    record = make_record()
    assert record.train_seconds() == 7.5
    assert record.replayed() == 15
    assert record.valid_share() == 98.0
    for score in record.scores:
        score.valid = None
    assert record.valid_share() is None


LEARNED = {"event": "learned", "when": "2026-10-01T10:00:00", "task": "b", "data": "0", "seconds": 1.0}
LEARNED |= {"before": {"a": 1.0, "b": 0.0}, "after": {"a": 1, "b": 5.0}}


@pytest.mark.parametrize(
    "change",
    [
        {"event": "[/bold]"},
        {"event": "rolled back"},
        {"event": "rolled back", "tasks": [1]},
        {"when": 5},
        {"task": ["b"]},
        {"before": None},
        {"before": {}},
        {"after": {"b": "5"}},
        {"after": {"b": True}},
        {"seconds": "long"},
    ],
)
def test_a_history_that_is_none_is_refused_by_its_place(tmp_path: Path, change: dict[str, Any]) -> None:
    make_record(lineage=[LEARNED, {"event": "rolled back", "when": "", "to": 0, "tasks": ["b"]}]).save(
        tmp_path
    )
    assert RunRecord.load(tmp_path).lineage[0] == LEARNED
    edit(tmp_path, lineage=[LEARNED, LEARNED | change])
    with pytest.raises(RunError, match=r"record\.json: lineage\.1: .* not what a learner writes there"):
        RunRecord.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"name": 5}, {"given": "no"}, {"files": "x"}, {"files": {"a": 5}}, {"files": {"a": {}}}]
)
def test_a_base_model_that_is_none_is_refused_by_its_place(tmp_path: Path, change: dict[str, Any]) -> None:
    record = make_record()
    record.save(tmp_path)
    edit(tmp_path, model={**record.model, **change})
    with pytest.raises(RunError, match=rf"record\.json: model: .*{next(iter(change))}"):
        RunRecord.load(tmp_path)
