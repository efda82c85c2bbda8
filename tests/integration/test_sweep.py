"""`kifuse compare --vary`: values are chosen on dev, and only the chosen one is ever scored on test."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from kifuse.cli import app
from kifuse.comparing.grid import load_grid
from kifuse.comparing.tried_settings import open_sweep
from kifuse.errors import RunError
from kifuse.record.run_record import RunRecord
from kifuse.running.engine import Engine
from kifuse.running.runner import run
from tests.runs import learned_files

RATES = "training.learning_rate=1e-6,3e-2"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def said(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def plain(tiny_folder_llama: Path, tiny_stream: Path) -> dict[str, Any]:
    """What the runs have in common; the last task has no dev split."""
    return {
        "model": {"name": str(tiny_folder_llama), "precision": "fp32", "adapter": {"rank": 2, "alpha": 8}},
        "data": {"path": str(tiny_stream), "max_input": 64, "max_target": 8},
        "training": {"epochs": 2, "batch_size": 4},
        "evaluation": {"max_new_tokens": 2, "full_matrix": True},
        "memory": {"per_task": 3},
    }


@pytest.fixture(scope="module")
def without_dev(tiny_stream: Path) -> Any:
    """The tiny stream, whose last task has no dev split."""
    file = tiny_stream / "weather" / "dev.jsonl"
    text = file.read_text("utf-8")
    file.unlink()
    yield
    file.write_text(text, encoding="utf-8")


def write(file: Path, plain: dict[str, Any], **more: Any) -> Path:
    file.write_text(yaml.safe_dump({**plain, "output": str(file.parent / "out"), **more}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, plain: dict[str, Any], without_dev: None, quick: None
) -> tuple[Path, Result]:
    file = write(tmp_path_factory.mktemp("sweep") / "run.yaml", plain)
    result = call(
        *(file, "--methods", "recurrent-kif", "--seeds", "0,1"),
        *("--vary", RATES, "--choose-on", "dev"),
    )
    assert result.exit_code == 0, result.output
    return file.parent / "out", result


def answered(folder: Path) -> set[str]:
    """Ids of the examples of which there are predictions."""
    lines = [line for file in folder.rglob("*.jsonl") for line in file.read_text("utf-8").splitlines()]
    return {json.loads(line)["id"] for line in lines}


def test_the_best_mean_on_dev_is_chosen_for_each_method(swept: tuple[Path, Result]) -> None:
    folder, result = swept
    sweep = open_sweep(folder)
    assert sweep is not None
    for method in ("recurrent-kif",):
        means = {}
        for rate in ("1e-06", "0.03"):
            place = folder / method / "on-dev" / f"training.learning_rate={rate}"
            records = [RunRecord.load(place / f"seed{seed}") for seed in (0, 1)]
            final = [[s.score for s in r.scores if s.after == 3] for r in records]
            assert all(len(each) == 3 for each in final)
            means[float(rate)] = sum(sum(each) / 3 for each in final) / 2
        best = max(means, key=lambda rate: means[rate])
        chosen = sweep.chosen(method)
        assert chosen is not None and chosen.values == (best,)
        for seed in (0, 1):
            tested = RunRecord.load(folder / method / f"seed{seed}")
            assert tested.config["training"]["learning_rate"] == best
            assert tested.config["data"]["scored_on"] == "test"
        assert f"{method}: learning_rate {best} is chosen" in said(result)


def test_no_test_example_is_answered_but_by_the_chosen_value(swept: tuple[Path, Result]) -> None:
    folder, _ = swept
    for method in ("recurrent-kif",):
        on_dev = answered(folder / method / "on-dev")
        assert {f"colour-dev-{i}" for i in range(2)} <= on_dev
        assert not any("-test-" in each for each in on_dev)
        # a task without dev examples is scored on a training example of each seed that is not trained on
        held_out = {each for each in on_dev if each.startswith("weather")}
        assert len(held_out) <= 2 and all("-train-" in each for each in held_out)
        for seed in (0, 1):
            assert all("-test-" in each for each in answered(folder / method / f"seed{seed}"))
            record = RunRecord.load(folder / method / f"seed{seed}")
            assert [task.sizes["train"] for task in record.tasks] == [12, 12, 11]
            assert any("1 training example was set aside as its dev set" in w for w in record.warnings)


def test_the_chosen_states_are_those_of_a_run_that_is_scored_on_test(
    swept: tuple[Path, Result], tmp_path: Path, quick: None
) -> None:
    folder, _ = swept
    tested = next(
        planned
        for planned in load_grid(folder / "compare.yaml", {}).runs
        if (planned.variant.label, planned.seed) == ("recurrent-kif", 1)
        and planned.tested().config.training.learning_rate
        == RunRecord.load(folder / "recurrent-kif" / "seed1").config["training"]["learning_rate"]
    )
    there = RunRecord.load(tested.tested().folder)
    assert learned_files(tested.tested().folder) == learned_files(tested.folder)
    alone = run(tested.tested().config.model_copy(update={"output": tmp_path / "alone"}))
    cells = [{(s.after, s.task, s.score) for s in record.scores} for record in (alone, there)]
    # the full matrix with the scores before learning, each from the state of its time
    assert cells[0] == cells[1] and len(cells[0]) == len(alone.scores) >= 8
    assert any("taken over from seed1, which was scored on dev" in note for note in there.notes)
    assert [t.seal for t in there.tasks] == [t.seal for t in alone.tasks]


def test_page_table_and_terminal_show_the_curve_on_dev(swept: tuple[Path, Result], tmp_path: Path) -> None:
    folder, result = swept
    page = (folder / "comparison.html").read_text("utf-8")
    assert 'id="figure-sweep"' in page and "AP on dev (0 to 100)" in page and "learning_rate" in page
    assert "Settings chosen on dev" in page
    with (folder / "tables" / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["learning_rate"] for row in rows] == ["1e-06", "0.03"]
    assert sum(row["chosen"] == "chosen" for row in rows) == 1
    assert "Settings tried, scored on dev" in result.output
    done = CliRunner().invoke(app, ["report", str(folder), "-o", str(tmp_path / "again.html")])
    assert done.exit_code == 0, done.output
    assert 'id="figure-sweep"' in (tmp_path / "again.html").read_text("utf-8")
    on_dev = next((folder / "recurrent-kif" / "on-dev").glob("*/seed0/report.html"))
    assert "They are on dev examples; no test example was used." in on_dev.read_text("utf-8")


def test_the_same_call_does_nothing_and_one_with_more_values_chooses_anew(
    swept: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    folder, _ = swept
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "learn", None)
        patch.setattr(Engine, "score", None)
        assert call(folder / "compare.yaml").exit_code == 0
    score = Engine.score

    def perfect(engine: Engine, after: int, index: int, task: Any) -> Any:
        """Every answer on dev is right with the new rate."""
        cell = score(engine, after, index, task)
        if cell and (engine.config.training.learning_rate, engine.config.data.scored_on) == (1e-4, "dev"):
            engine.record.scores[-1].score = 100.0
        return cell

    monkeypatch.setattr(Engine, "score", perfect)
    before = RunRecord.load(folder / "recurrent-kif" / "seed0")
    file = folder.parent / "run.yaml"
    more = call(file, "--methods", "recurrent-kif", "--vary", "training.learning_rate=1e-4,3e-2")
    assert more.exit_code == 0, more.output
    # over the seeds and values that are there already
    assert "1 method, 3 values, 2 seeds: 6 runs, 4 of them finished" in said(more)
    assert "recurrent-kif: learning_rate 0.0001 is chosen" in said(more)
    for seed in (0, 1):
        after = RunRecord.load(folder / "recurrent-kif" / f"seed{seed}")
        assert after.config["training"]["learning_rate"] == 1e-4
    assert RunRecord.load(folder / "recurrent-kif" / "no-longer-chosen" / "seed0") == before
    assert before.config["training"]["learning_rate"] != 1e-4


def test_a_kill_while_the_chosen_states_are_scored_is_made_good(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    file = write(tmp_path / "run.yaml", plain)
    arguments = (file, "--methods", "sequential", "--vary", "training.epochs=1,2", "--vary", RATES)
    score = Engine.score

    def stop(engine: Engine, after: int, index: int, task: Any) -> Any:
        if engine.config.data.scored_on == "test" and after == 1:
            raise KeyboardInterrupt
        return score(engine, after, index, task)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "score", stop)
        assert call(*arguments).exit_code == 130
    page = (tmp_path / "out" / "comparison.html").read_text("utf-8")
    assert "Settings tried so far" in page and 'id="figure-sweep"' in page
    assert "on-dev/training.epochs%3D2" in page and "./sequential/seed0" not in page
    begun = RunRecord.load(tmp_path / "out" / "sequential" / "seed0")
    assert not begun.scores and begun.learned() == 3
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "learn", None)  # nothing is trained again
        done = call(*arguments)
    assert done.exit_code == 0, done.output
    assert "1 method, 4 values, 1 seed: 4 runs, 4 of them finished" in said(done)
    record = RunRecord.load(tmp_path / "out" / "sequential" / "seed0")
    assert record.status == "finished" and {s.after for s in record.scores} == {1, 2, 3}
    assert 'id="figure-sweep"' in (tmp_path / "out" / "comparison.html").read_text("utf-8")


def test_a_value_whose_run_fails_is_not_chosen(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    file = write(tmp_path / "run.yaml", plain)
    learn = Engine.learn

    def fail(engine: Engine, *arguments: Any, **more: Any) -> None:
        if engine.config.training.scheduler == "linear":
            raise RunError("it diverged")
        learn(engine, *arguments, **more)

    monkeypatch.setattr(Engine, "learn", fail)
    done = call(file, "--methods", "sequential", "--vary", "training.scheduler=linear,constant")
    assert done.exit_code == 1 and "it diverged" in said(done)
    assert "sequential: scheduler constant is chosen" in said(done)
    assert (
        RunRecord.load(tmp_path / "out" / "sequential" / "seed0").config["training"]["scheduler"]
        == "constant"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "training.learning_rat=1,2"], "--vary training.learning_rat: found the unknown key"),
        (["--vary", "training.learning_rat=1,2"], "Did you mean 'learning_rate'?"),
        (["--vary", "method.outer_stepz=1,2"], "outer_steps"),
        (["--vary", "training.epochs=1"], "expected two values or more. One value is set by --set"),
        (["--vary", "training.epochs=1,1"], "expected each value once"),
        (["--vary", "training.epochs=1,x"], "training.epochs: found 'x'"),
        (["--vary", "training.epochs"], "expected KEY=VALUE,VALUE"),
        (["--vary", "training.seed=1,2"], "expected --seeds"),
        (["--vary", "data.path=a,b"], "a key that changes what is scored"),
        (["--vary", RATES, "--set", "training.learning_rate=1"], "found the key in --set as well"),
        (["--vary", RATES, "--choose-on", "test"], "measured on the same examples"),
        (["--choose-on", "dev"], "found 'dev' without a key to try"),
    ],
)
def test_what_cannot_be_varied_is_refused(
    plain: dict[str, Any], tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = call(write(tmp_path / "run.yaml", plain), "--methods", "recurrent-kif", *arguments)
    assert result.exit_code == 2, result.output
    assert message in said(result) and len(result.output.strip().splitlines()) == 1


def test_a_sweep_and_a_comparison_without_one_do_not_mix(plain: dict[str, Any], tmp_path: Path) -> None:
    section = {"methods": ["sequential"], "vary": {"training.epochs": [1, 2]}, "choose_on": "dev"}
    file = write(tmp_path / "run.yaml", plain, compare=section)
    assert call(file, "--dry-run").exit_code == 0
    assert not (tmp_path / "out").exists()
    assert (
        call(write(tmp_path / "wrong.yaml", plain, compare={"vary": {"training.epochs": 1}})).exit_code == 2
    )
