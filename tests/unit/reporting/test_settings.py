"""What a run was made of, as the page tells it."""

from __future__ import annotations

from kifuse.reporting.settings import (
    cost_table,
    data_table,
    events_table,
    facts,
    history_table,
    meta,
    notices,
    settings,
)
from tests.unit.reporting.measured_runs import kif_record, rounds_record
from tests.unit.reporting.runs import make_record


def test_the_methods_settings_are_those_that_were_used():
    record = make_record(
        "kif", config={"method": {"name": "kif"}, "training": {"epochs": 2, "nested": {"x": None}}}
    )
    record.method.settings = {"gamma": 0.7, "units": "matrix"}
    assert dict(settings(record)) == {
        "method": [("name", "kif"), ("gamma", "0.7"), ("units", "matrix")],
        "training": [("epochs", "2"), ("nested.x", "none")],
    }


def test_the_line_below_the_title_says_model_adapter_seed_and_date():
    model = {"name": "t5", "parameters": 737_000_000}
    adapter = {"model": {"adapter": {"kind": "dora", "rank": 8}}}
    assert meta(make_record(model=model, config=adapter)) == [
        "t5 (737.0 million parameters)",
        "dora, rank 8",
        "training seed 0",
        "replay-free",
        "2026-01-01",
    ]
    for kind in ("full", "osf"):
        assert meta(make_record(config={"model": {"adapter": {"kind": kind, "rank": 8}}}))[1] == kind
    assert meta(make_record(config={"model": "odd"}))[0] == "tiny"


def test_costs_add_up():
    table = cost_table(make_record(tasks=["a", "b"]))
    assert [str(cell) for cell in table.rows[0]] == [
        "1 a",
        "4",
        "\u2013",
        "3",
        "\u2013",
        "1.5",
        "\u2013",
        "\u2013",
    ]
    assert table.total is not None
    assert [cell.value for cell in table.total] == [None, 8.0, None, 6.0, None, 3.0, None, None]
    assert cost_table(make_record(tasks=["a"])).total is None


def test_what_is_kept_grows_and_is_not_added_up():
    record = make_record(tasks=["a", "b", "c"])
    record.tasks[0].kept_parameters, record.tasks[1].kept_parameters = 1200, 2400
    table = cost_table(record)
    assert [str(row[-1]) for row in table.rows] == ["1,200", "2,400", "\u2013"]
    assert table.total is not None and table.total[-1].value == 2400


def test_data_are_told_with_their_full_hashes():
    (train, test, *_) = data_table(kif_record(tasks=["a"])).rows
    assert [str(cell) for cell in train] == ["1 a", "training", "8", "exact_match", "2", "a" * 64]
    assert str(test[-1]) == "0" * 64
    assert train[4].note == "a, b"


def test_what_was_noted_is_told_in_the_methods_own_words():
    table = events_table(rounds_record(tasks=["a", "b"]))
    assert table is not None
    assert [str(cell) for cell in table.rows[0]] == [
        "2 b",
        "4",
        "fusions",
        "rounds 2; steps 2, 4; mask_overlap 0.1",
    ]
    assert events_table(make_record()) is None


def test_very_many_entries_are_counted_not_shown():
    record = make_record(tasks=["a"])
    record.tasks[0].events = [{"kind": "bad step", "step": i, "first": list(range(100))} for i in range(500)]
    table = events_table(record)
    assert table is not None
    assert len(table.rows) == 40
    assert table.notes == ["1 a: 460 more entries in the record."]
    assert "(100 in all)" in str(table.rows[0][-1])


def test_everything_to_beware_of_is_said():
    record = make_record(tasks=["a", "b"], warnings=["odd data"], notes=["a note"])
    record.overlaps = [{"task_a": "a", "split_a": "dev", "task_b": "b", "split_b": "test", "count": 13}]
    record.tasks[0].loss = [(1, None)]
    record.tasks[0].cut_test_inputs = 2
    record.tasks[1].events = [
        {"kind": "bad step"},
        {"kind": "bad step"},
        {"kind": "fp16 overflows", "skipped_steps": 3},
    ]
    record.tasks[1].notes = ["of the task"]
    assert notices(record) == [
        "odd data",
        "13 inputs of a (validation) also in b (test)",
        "a: 1 recorded loss not finite",
        "a: 2 test inputs lost their middle because they were too long",
        "b: 2 steps whose loss or gradient was not finite did not change the weights",
        "b: 3 steps skipped by an fp16 overflow",
        "b: of the task",
        "a note",
    ]
    assert notices(make_record()) == []


def test_versions_machine_and_times_are_told():
    found = dict(facts(make_record(versions={"torch": "2.13"}, machine={"memory_gb": 1_000_000})))
    assert ("torch", "2.13") in found["versions"]
    assert ("kifuse", "0.1.0") in found["versions"]
    assert ("memory_gb", "1,000,000") in found["machine"]
    assert ("finished", "not yet") in found["time"]


def test_a_history_tells_the_score_of_the_task_and_the_worst_of_the_others():
    scores = {"before": {"a": 90.0, "b": 50.0}, "after": {"a": 70.0, "b": 55.0, "c": 88.0}}
    record = make_record(lineage=[{"event": "learned", "when": "now", "task": "c", **scores}])
    table = history_table(record)
    assert table is not None
    assert [str(cell) for cell in table.rows[0]] == ["now", "learned", "c", "88.0", "a \u221220.0", ""]
    assert history_table(make_record()) is None
