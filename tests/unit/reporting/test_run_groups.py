"""Runs of one method as one: which belong together, what they are called, their mean and spread."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from kifuse.errors import KifuseError, RunError
from kifuse.record.run_record import RunRecord
from kifuse.reporting.run_groups import (
    COMPARISON_FILE,
    Run,
    comparison_runs,
    folder_for,
    fusions,
    group_runs,
    open_run,
    open_runs,
)
from tests.unit.reporting.measured_runs import kif_record, rounds_record
from tests.unit.reporting.runs import make_record


def run(method: str = "kif", seed: int = 0, drop: float = 10.0, **fields: Any) -> Run:
    return Run(make_record(method, drop=drop, seeds={"training": seed}, **fields))


def with_settings(**settings: Any) -> Run:
    found = run()
    found.record.method.settings = settings
    return found


def test_seeds_and_orders_of_one_method_are_one_group_with_a_spread():
    runs = [
        run(
            seed=seed,
            drop=drop,
            config={"training": {"seed": seed}, "data": {"order": order}},
            stream=f"cl {order}",
        )
        for seed, order, drop in ((0, 1, 10.0), (1, 1, 12.0), (0, 2, 20.0))
    ]
    (group,) = group_runs(runs)
    values = [r.record.summary()["AP"].value for r in runs]
    found = group.mean(lambda record: record.summary()["AP"].value)
    assert found is not None
    assert found.value == pytest.approx(mean(v for v in values if v is not None))
    assert found.deviation == pytest.approx(stdev(v for v in values if v is not None))
    assert found.values == values
    assert group.made_of() == "3 runs, seeds 0 and 1, 2 orders"


def test_a_single_run_has_no_spread():
    (group,) = group_runs([run()])
    found = group.mean(lambda record: 1.0)
    assert found is not None
    assert found.deviation is None
    assert str(found) == "1.0"
    assert group.made_of() == "1 run, seed 0"


def test_settings_tell_groups_of_one_method_apart():
    runs = [with_settings(gamma=0.7, tau=0.1), with_settings(gamma=0.5, tau=0.1), run("sequential")]
    assert [group.label for group in group_runs(runs)] == ["kif (gamma=0.7)", "kif (gamma=0.5)", "sequential"]


def test_other_parts_of_the_configuration_tell_groups_apart_too():
    runs = [run(config={"training": {"learning_rate": rate}}) for rate in (1e-3, 1e-4)]
    labels = [group.label for group in group_runs(runs)]
    assert labels == ["kif (learning_rate=0.001)", "kif (learning_rate=0.0001)"]


def test_many_differences_do_not_make_a_long_name():
    runs = [with_settings(**{f"key{i}": value for i in range(9)}) for value in (1, 2)]
    assert group_runs(runs)[0].label == "kif (key0=1, key1=1, key2=1 and 6 more)"


def test_labels_are_never_the_same():
    runs = [with_settings(a=1), with_settings(a=1, b=None), with_settings(a=1, c=None)]
    labels = [group.label for group in group_runs(runs)]
    assert len(set(labels)) == len(labels)


def test_an_unfinished_run_is_left_out_of_the_mean():
    going_on = run(seed=1, status="running")
    (group,) = group_runs([run(), going_on])
    found = group.mean(lambda record: record.train_seconds())
    assert found is not None
    assert len(found.values) == 1


def test_fusions_are_counted_once_a_task_or_by_rounds():
    assert fusions(kif_record(tasks=["a", "b", "c"])) == 2
    assert fusions(rounds_record(tasks=["a", "b", "c"])) == 4
    assert fusions(make_record()) == 0


def test_a_folder_a_record_file_and_a_kept_copy_are_all_runs(tmp_path: Path):
    make_record("kif").save(tmp_path / "run")
    kept = tmp_path / "kif.seed0.json"
    kept.write_bytes((tmp_path / "run" / "record.json").read_bytes())
    for path, folder, name in (
        (tmp_path / "run", tmp_path / "run", "run"),
        (tmp_path / "run" / "record.json", tmp_path / "run", "run"),
        (kept, None, "kif.seed0"),
    ):
        found = open_run(path)
        assert (found.record.method.name, found.folder, found.name) == ("kif", folder, name)


def test_a_run_that_is_named_twice_is_read_once(tmp_path: Path):
    for name in ("a", "b"):
        make_record(name).save(tmp_path / name)
    runs = open_runs([tmp_path / "b", tmp_path / "a", tmp_path / "a" / ".." / "b"])
    assert [each.record.method.name for each in runs] == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"schema_version": 99}', "schema_version 99"),
        ("[]", "schema_version None"),
        ("{", "not valid JSON"),
        ('{"schema_version": 1}', "damaged"),
    ],
)
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: str, expected: str):
    file = tmp_path / "other.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(KifuseError, match=expected) as caught:
        open_run(file)
    assert "other.json" in str(caught.value)


def test_a_damaged_record_in_a_comparison_is_refused_and_never_left_out_in_silence(tmp_path: Path):
    (tmp_path / COMPARISON_FILE).write_text("{}", encoding="utf-8")
    for seed in (0, 1):
        make_record("kif", seeds={"training": seed}).save(tmp_path / "kif" / f"seed{seed}")
    damaged = tmp_path / "kif" / "seed1" / "record.json"
    damaged.write_text(damaged.read_text("utf-8").replace('"kif"', '"kif2"', 1), encoding="utf-8")
    with pytest.raises(RunError, match=r"seed1.record\.json"):
        open_runs([tmp_path])
    left_out: list[str] = []
    assert [each.seed for each in comparison_runs(tmp_path, left_out=left_out)] == [0]
    assert len(left_out) == 1 and str(damaged) in left_out[0]


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(RunError, match="no such run"):
        open_run(tmp_path / "nothing")
    with pytest.raises(RunError, match="Name at least one"):
        open_runs([])


def test_the_page_of_several_runs_belongs_where_they_all_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folders = [Path("runs/demo/a"), Path("runs/demo/b"), Path("runs/c/d")]
    runs = [Run(make_record(), folder) for folder in folders]
    assert folder_for(runs[:1]) == folders[0]
    assert folder_for(runs[:2]) == Path("runs/demo")
    assert folder_for(runs) == Path("runs")
    # a run is never overwritten by the page of several
    assert folder_for([runs[0], Run(make_record())]) == Path("runs/demo")
    with pytest.raises(RunError, match="--output"):
        folder_for([Run(make_record())])


def test_a_copy_of_a_record_says_the_same(tmp_path: Path):
    record = kif_record()
    record.save(tmp_path)
    again = RunRecord.load(tmp_path)
    assert group_runs([Run(record), Run(again)])[0].made_of().startswith("2 runs")
