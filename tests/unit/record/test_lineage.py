"""What a learner's report says to a script, and its history of a task that was refused before."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kifuse.record.lineage import LearnReport, refused_before
from kifuse.record.run_record import RunRecord

REPAIRED = {"steps": 14, "pull": 0.1}


def asked(
    max_forgetting: float | None, min_score: float | None, repair: bool, refusal: dict[str, Any]
) -> Any:
    """What is said of the task `november`, which cost 50 points, or none and reached nothing if repaired."""
    cost, own = (0.0, 0.0) if refusal.get("repair") == REPAIRED else (50.0, 50.0)
    scores = {
        "before": {"october": 50.0, "november": 0.0},
        "after": {"october": 50.0 - cost, "november": own},
    }
    entry = {"event": "refused", "task": "november", "data": "abc", "seconds": 1.0, **scores, **refusal}
    record = cast(
        RunRecord, SimpleNamespace(lineage=[{"event": "learned", "task": "october"}, entry], watched=[])
    )
    return refused_before(
        record, "november", "abc", max_forgetting, min_score, lambda n: Path(str(n)), repair
    )


@pytest.mark.parametrize(
    ("now", "then", "refused"),
    [
        ((20.0, None, False), {}, True),
        ((60.0, None, False), {}, False),  # it is allowed to cost that
        ((20.0, None, True), {}, False),  # it was never repaired
        ((20.0, 30.0, True), {"repair": REPAIRED, "max_forgetting": 20.0}, True),
        # it would not be repaired, and reach more
        ((60.0, 30.0, True), {"repair": REPAIRED, "max_forgetting": 20.0}, False),
        ((20.0, 30.0, False), {"repair": REPAIRED, "max_forgetting": 20.0}, False),
        # it was not repaired since it cost no more than was allowed, and would be now
        ((20.0, 99.0, True), {"repair": True, "max_forgetting": 60.0}, False),
        ((60.0, 99.0, True), {"repair": True, "max_forgetting": 60.0}, True),
    ],
)
def test_a_refused_task_is_tried_again_where_the_outcome_may_be_another(
    now: tuple[float, float | None, bool], then: dict[str, Any], refused: bool
) -> None:
    report = asked(*now, then)
    assert (report is not None) == refused
    if report is not None:
        repaired = then.get("repair")
        assert not report.accepted and report.repaired == (repaired if isinstance(repaired, dict) else None)


def test_a_report_says_the_same_to_a_script_and_to_people() -> None:
    report = LearnReport(
        "november", True, {"october": 80.0, "november": 0.0}, {"october": 70.0}, 1.0, Path("a")
    )
    facts = json.loads(json.dumps(report.facts()))
    assert (facts["lost"], facts["gained"], facts["adapter"]) == ({"october": 10.0}, None, "a")
    assert "october: 80.0 -> 70.0 (-10.0)" in str(report)
