"""A grid of runs: the same bits as single runs, what is shared, what fails, what goes on, what is shown."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from kifuse.benchmarks import catalog
from kifuse.cli import app
from kifuse.comparing.grid import load_grid
from kifuse.io.lock import exclusive
from kifuse.models.loading import Backbone
from kifuse.record.run_record import RunRecord
from kifuse.reporting.run_groups import group_runs, open_runs
from kifuse.running import shared_by_runs as sharing
from kifuse.running.engine import Engine
from kifuse.running.runner import run
from tests.runs import TASKS

ORDERS = {1: TASKS, 2: (TASKS[0], TASKS[2], TASKS[1]), 3: TASKS[::-1]}
METHODS: list[Any] = [
    "sequential",
    "kiflora",
    {"label": "two-steps", "name": "recurrent-kif", "inner_steps": 2},
    {"label": "low-rate", "name": "replay", "set": {"training.learning_rate": 1e-3}},
]
"""The second and the last share no first task with the first; the third does."""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def said(result: Result) -> str:
    """What a call printed, on one line."""
    return " ".join(result.output.split())


class Loads:
    """Counts how often a model is loaded."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.load = sharing.open_backbone
        patch.setattr(sharing, "open_backbone", self)

    def __call__(self, *arguments: Any) -> Backbone:
        self.count += 1
        return self.load(*arguments)


@pytest.fixture(autouse=True, scope="module")
def tiny_benchmark() -> Any:
    """The tiny stream as a benchmark with three orders, of which two begin with the same task."""
    orders = catalog.Benchmark("tiny", "For tests.", "jsonl", ORDERS, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.BENCHMARKS, "tiny", orders)
        yield


@pytest.fixture(scope="module")
def plain(tiny_folder_llama: Path, tiny_stream: Path) -> dict[str, Any]:
    """What the runs of a grid have in common."""
    return {
        "model": {"name": str(tiny_folder_llama), "precision": "fp32", "adapter": {"rank": 2, "alpha": 8}},
        "data": {"benchmark": "tiny", "path": str(tiny_stream), "max_input": 64, "max_target": 8},
        "memory": {"per_task": 3},
        "training": {"learning_rate": 1e-2, "epochs": 1, "batch_size": 4},
        "evaluation": {"max_new_tokens": 2},
    }


def write(file: Path, plain: dict[str, Any], **more: Any) -> Path:
    file.write_text(yaml.safe_dump({**plain, **more}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def grid(
    tmp_path_factory: pytest.TempPathFactory, plain: dict[str, Any], quick: None
) -> tuple[Path, Result, int]:
    """The folder of a finished grid, what the call came to, and how many models were loaded."""
    folder = tmp_path_factory.mktemp("grid")
    section = {"methods": METHODS, "orders": [1, 2], "seeds": [0]}
    file = write(folder / "grid.yaml", plain, compare=section, output=str(folder / "out"))
    with pytest.MonkeyPatch.context() as patch:
        loads = Loads(patch)
        result = call(file)
    return folder / "out", result, loads.count


def files(run: Path) -> dict[str, bytes]:
    """The weights and states that a run left, byte by byte."""
    return {
        each.relative_to(run).as_posix(): each.read_bytes()
        for kind in ("adapter_model.safetensors", "method.safetensors", "memory.json")
        for each in run.rglob(kind)
    }


def test_every_run_is_in_its_own_folder(grid: tuple[Path, Result, int]) -> None:
    folder, result, _ = grid
    assert result.exit_code == 0, result.output
    for label in ("sequential", "kiflora", "two-steps", "low-rate"):
        for order in (1, 2):
            record = RunRecord.load(folder / label / f"order{order}-seed0")
            assert record.status == "finished"
            assert tuple(task.name for task in record.tasks) == ORDERS[order]


def test_two_comparisons_in_one_folder_are_refused(plain: dict[str, Any], tmp_path: Path) -> None:
    file = write(
        tmp_path / "grid.yaml", plain, compare={"methods": ["sequential"]}, output=str(tmp_path / "out")
    )
    with exclusive(tmp_path / "out"):
        result = call(file)
    assert result.exit_code == 2
    assert "written to by another process" in said(result)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock"]


@pytest.mark.parametrize(
    ("label", "order"), [("kiflora", 1), ("two-steps", 1), ("two-steps", 2), ("low-rate", 2)]
)
def test_a_run_of_a_grid_is_bit_identical_to_a_run_alone(
    grid: tuple[Path, Result, int], tmp_path: Path, label: str, order: int, quick: None
) -> None:
    folder, _, _ = grid
    found = load_grid(folder / "compare.yaml", {})
    cell = next(c for c in found.runs if (c.variant.label, c.order) == (label, order))
    alone = run(cell.config.model_copy(update={"output": tmp_path / "alone"}))
    assert len(files(tmp_path / "alone")) == 9
    assert files(tmp_path / "alone") == files(cell.folder)
    theirs = {(s.after, s.task): s.score for s in RunRecord.load(cell.folder).scores}
    assert {(s.after, s.task): s.score for s in alone.scores} == theirs


def test_the_base_model_is_loaded_once(grid: tuple[Path, Result, int]) -> None:
    assert grid[2] == 1


def test_the_first_task_is_shared_over_methods_and_orders_that_agree(grid: tuple[Path, Result, int]) -> None:
    folder, _, _ = grid
    notes = {
        f"{file.parts[-3]}/{file.parts[-2]}": " ".join(RunRecord.load(file.parent).notes)
        for file in folder.glob("*/*/record.json")
    }
    shared = {name for name, note in notes.items() if "taken over" in note}
    assert shared == {
        "two-steps/order1-seed0",
        "sequential/order2-seed0",
        "two-steps/order2-seed0",
        "low-rate/order2-seed0",
    }


def test_a_shared_first_task_brings_its_scores_and_predictions_to_their_places(
    grid: tuple[Path, Result, int],
) -> None:
    folder, _, _ = grid
    for order, second in ((1, "fruit"), (2, "weather")):
        run = folder / "sequential" / f"order{order}-seed0"
        early = {(s.after, s.task) for s in RunRecord.load(run).scores if s.after == 1}
        assert early == {(1, 0), (1, 1)}
        found = {file.stem for file in (run / "predictions" / "after-1").iterdir()}
        assert found == {"colour", second}


def test_page_tables_and_terminal_show_methods_with_their_class(grid: tuple[Path, Result, int]) -> None:
    folder, result, _ = grid
    with (folder / "tables" / "methods.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    assert {name: row["class"] for name, row in rows.items()} == {
        "sequential": "replay-free",
        "kiflora": "replay-free",
        "two-steps": "real replay",
        "low-rate": "real replay",
    }
    assert {row["runs"] for row in rows.values()} == {"2"}
    assert int(rows["two-steps"]["extra passes"]) > int(rows["sequential"]["extra passes"]) == 0
    page = (folder / "comparison.html").read_text("utf-8")
    for name in rows:
        assert name in page and name in result.output
    assert "real replay" in page and "extra passes" in page
    for name in ("methods", "tasks", "runs"):
        for ending in ("csv", "md", "tex"):
            assert (folder / "tables" / f"{name}.{ending}").is_file()


def test_runs_of_one_row_are_one_line_with_their_spread(grid: tuple[Path, Result, int]) -> None:
    groups = {group.label: group for group in group_runs(open_runs([grid[0]]))}
    assert list(groups) == ["kiflora", "low-rate", "sequential", "two-steps"]
    mean = groups["sequential"].mean(lambda record: float(record.replayed() + len(record.tasks)))
    assert mean is not None and (mean.value, mean.deviation, mean.values) == (3.0, 0.0, [3.0, 3.0])


def test_a_finished_grid_runs_nothing_again(
    grid: tuple[Path, Result, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = grid
    loads = Loads(monkeypatch)
    before = files(folder)
    (folder / "comparison.html").unlink()
    result = call(folder / "compare.yaml")
    assert result.exit_code == 0 and "8 of them finished" in said(result)
    assert loads.count == 0 and files(folder) == before
    assert (folder / "comparison.html").is_file()


def test_a_dry_run_counts_and_runs_nothing(plain: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path / "grid.yaml", plain, output=str(tmp_path / "out"))
    result = call(file, "--methods", "sequential,joint", "--orders", "1,3", "--seeds", "0,1,2", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "2 methods, 2 orders, 3 seeds: 12 runs" in said(result)
    # three tasks of 12 examples in batches of 4; joint training scores nothing but the end
    assert "To do: 12 runs, at most 108 forward and backward passes" in said(result)
    assert re.search(r"sequential\s+6\s+0\s+9\s+21", result.output)
    assert re.search(r"joint\s+6\s+0\s+9\s+9", result.output)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def failing(
    tmp_path_factory: pytest.TempPathFactory, plain: dict[str, Any], quick: None
) -> tuple[Path, Result]:
    """A grid whose second run fails in its second task, for a reason that nobody foresaw."""
    folder = tmp_path_factory.mktemp("failing")
    write(folder / "grid.yaml", plain, output=str(folder / "out"))
    learn = Engine.learn

    def fail(engine: Engine, k: int, *arguments: Any, **more: Any) -> None:
        if engine.config.method.name == "replay" and k == 2:
            raise ZeroDivisionError("a [bold]strange[/bold] reason\nin two lines")
        learn(engine, k, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "learn", fail)
        return folder, call(folder / "grid.yaml", "--methods", "sequential,replay,ema")


def test_after_a_failure_the_others_go_on_and_the_exit_code_tells(failing: tuple[Path, Result]) -> None:
    folder, failed = failing
    assert failed.exit_code == 1
    assert RunRecord.load(folder / "out" / "ema" / "order1-seed0").status == "finished"
    assert RunRecord.load(folder / "out" / "replay" / "order1-seed0").status == "running"


def test_the_reason_of_a_failure_and_its_log_are_told_in_one_line(failing: tuple[Path, Result]) -> None:
    folder, failed = failing
    log = folder / "out" / "replay" / "order1-seed0" / "log.txt"
    reason = "ZeroDivisionError: a [bold]strange[/bold] reason in two lines"
    line = f"replay, order 1, seed 0: {reason} (log: {log})"
    assert line in failed.output
    assert "Traceback" in log.read_text("utf-8") and "Traceback" not in failed.output


def test_the_table_leaves_a_failed_run_out(failing: tuple[Path, Result]) -> None:
    assert "replay: 1 run not finished yet, left out of the means." in said(failing[1])


def test_the_same_call_goes_on_with_the_failed_run_alone(
    failing: tuple[Path, Result], tmp_path: Path, quick: None
) -> None:
    folder, _ = failing
    out = folder / "out"
    others = {name: files(out / name) for name in ("sequential", "ema")}
    result = call(folder / "grid.yaml", "--methods", "sequential,replay,ema")
    assert result.exit_code == 0, result.output
    assert "going on after task 1" in result.output
    assert {name: files(out / name) for name in others} == others
    cell = load_grid(folder / "grid.yaml", {}, methods=["replay"]).runs[0]
    run(cell.config.model_copy(update={"output": tmp_path / "alone"}))
    assert files(tmp_path / "alone") == files(cell.folder)


def test_ctrl_c_stops_the_grid_and_the_same_call_goes_on(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    file = write(tmp_path / "grid.yaml", plain, output=str(tmp_path / "out"))
    arguments = (file, "--methods", "sequential,ema")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "learn", _interrupted)
        result = call(*arguments)
    assert result.exit_code == 130
    assert not (tmp_path / "out" / "ema").exists()
    assert call(*arguments).exit_code == 0
    assert RunRecord.load(tmp_path / "out" / "ema" / "order1-seed0").status == "finished"


def _interrupted(*arguments: Any, **more: Any) -> None:
    raise KeyboardInterrupt


def test_a_later_grid_may_add_runs_but_not_change_settings(
    grid: tuple[Path, Result, int], plain: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    out = tmp_path / "out"
    shutil.copytree(grid[0], out)
    file = write(tmp_path / "more.yaml", plain, output=str(out))
    result = call(file, "--methods", "sequential,ema", "--orders", "1")
    assert result.exit_code == 0, result.output
    kept = yaml.safe_load((out / "compare.yaml").read_text("utf-8"))["compare"]
    assert [row["label"] for row in kept["methods"]] == [
        "sequential",
        "kiflora",
        "two-steps",
        "low-rate",
        "ema",
    ]
    assert kept["orders"] == [1, 2]
    assert "kiflora" in result.output  # all that is in the folder is shown

    changed = call(file, "--methods", "sequential", "--set", "training.epochs=2")
    assert changed.exit_code == 2 and "training.epochs (1 there, 2 here)" in said(changed)
    section = {"methods": [{"label": "two-steps", "name": "recurrent-kif", "inner_steps": 3}]}
    other = call(write(tmp_path / "other.yaml", plain, output=str(out), compare=section))
    assert other.exit_code == 2 and "two-steps" in said(other) and "its own label" in said(other)


def test_a_folder_of_something_else_is_left_alone(plain: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear", encoding="utf-8")
    result = call(write(tmp_path / "grid.yaml", plain, output=str(tmp_path / "out")), "--methods", "replay")
    assert result.exit_code == 2 and "holds no comparison" in said(result)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["letter.txt"]


def test_a_configuration_alone_is_a_grid_of_seeds(plain: dict[str, Any], tmp_path: Path) -> None:
    own = {**plain, "data": {**plain["data"], "benchmark": None}}
    method = {"name": "recurrent-kif", "inner_steps": 2}
    file = write(tmp_path / "run.yaml", own, method=method, output=str(tmp_path / "out"))
    grid = load_grid(file, {}, seeds=[3, 4])
    assert [cell.folder.relative_to(tmp_path / "out").as_posix() for cell in grid.runs] == [
        "recurrent-kif/seed3",
        "recurrent-kif/seed4",
    ]
    assert all(cell.config.method.settings == {"inner_steps": 2} for cell in grid.runs)
    named = load_grid(file, {}, methods=["recurrent-kif", "replay"], seeds=[3])
    assert [cell.config.method.settings for cell in named.runs] == [{"inner_steps": 2}, {}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "replya"], "--methods: method.name: found 'replya' (text)"),
        (["--methods", "replay,replay"], "--methods: found 'replay' twice"),
        (["--methods", ","], "--methods: found no name"),
        ([], "found no methods"),
        (
            ["--methods", "replay", "--orders", "7"],
            "--orders: data.order: found 7, expected one of the orders",
        ),
        (["--methods", "replay", "--orders", "one"], "--orders: found 'one', expected whole numbers"),
        (["--methods", "replay", "--seeds", "0,x"], "--seeds: found '0,x', expected whole numbers"),
        (["--methods", "replay", "--seeds", "1,1"], "--seeds: found '1,1', expected each number once"),
        (["--methods", "replay", "--seeds", "99999999999"], "--seeds: training.seed: found 99999999999"),
        (["--methods", "replay", "--set", "training.seed=1"], "expected --seeds"),
        (["--methods", "replay", "--set", "method.name=kif"], "expected --methods"),
        (["--methods", "replay", "--set", "model.name=x", "--model", "y"], "--model: found --set model.name"),
    ],
)
def test_wrong_options_give_one_message(
    plain: dict[str, Any], tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = call(write(tmp_path / "grid.yaml", plain, output=str(tmp_path / "out")), *arguments)
    assert result.exit_code == 2
    assert message in said(result)
    assert said(result).count("error:") == 1 and len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[replay]", "grid.yaml:1: compare: found the list ['replay']"),
        ("{methods: replay}", "compare.methods: found 'replay' (text), expected a list of methods"),
        ("{method: [replay]}", "grid.yaml:1: compare.method: found the unknown key 'method'"),
        ("{methods: [[replay]]}", "compare.methods.0: found the list"),
        ("{methods: [replay, Replay]}", "the row 'Replay' twice"),
        ("{methods: [{label: a/b, name: replay}]}", "compare.methods.0.label: found 'a/b' (text)"),
        ("{methods: [{label: tables, name: replay}]}", "a comparison's folder already holds tables"),
        ("{methods: [{name: replay, set: {training: {epochs: 2}}}]}", "keys of the configuration such as"),
        ("{methods: [{name: replay, set: {training.epochs: none}}]}", "grid.yaml:1: training.epochs: found"),
        ("{methods: [{name: recurrent-kif, rounds: 0}]}", "grid.yaml:1: method.rounds: found 0"),
        ("{methods: [replay], seeds: [a]}", "compare.seeds: found the list ['a'], expected a list of whole"),
        ("{methods: [replay], orders: [true]}", "compare.orders: found the list [True]"),
    ],
)
def test_a_wrong_section_is_refused_with_its_line(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"compare: {section}\n{yaml.safe_dump({**plain, 'output': 'out'})}"
    Path("grid.yaml").write_text(text, encoding="utf-8")
    result = call("grid.yaml")
    assert result.exit_code == 2, result.output
    assert message in said(result)


class TestShared:
    """A model goes to the next run only as it was loaded."""

    @pytest.fixture
    def config(self, plain: dict[str, Any], tmp_path: Path) -> Any:
        file = write(tmp_path / "run.yaml", plain, output=str(tmp_path / "out"))
        return load_grid(file, {}, methods=["sequential"]).runs[0].config

    def lend(self, shared: sharing.Shared, config: Any) -> tuple[Backbone, Any]:
        from kifuse.adapters.kinds import add_adapter

        backbone = shared.backbone(config, lambda _: None)
        return backbone, add_adapter(backbone.model, config.model.adapter, encoder_decoder=False, seed=0)

    def test_it_is_the_same_again_bit_for_bit(self, config: Any) -> None:
        shared = sharing.Shared()
        backbone, model = self.lend(shared, config)
        before = {
            name: p.clone() for name, p in sharing.open_backbone(config, print).model.named_parameters()
        }
        backbone.model.config.use_cache = False
        model.train()
        shared.give_back(backbone, model)
        again = shared.backbone(config, lambda _: None)
        assert again is backbone and again.model.config.use_cache and not again.model.training
        after = dict(again.model.named_parameters())
        assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
        assert not hasattr(again.model, "peft_config")

    @pytest.mark.parametrize("what", ["weight", "buffer", "hook", "module"])
    def test_one_that_was_changed_is_loaded_anew(self, config: Any, what: str) -> None:
        shared = sharing.Shared()
        backbone, model = self.lend(shared, config)
        inner = backbone.model.model
        if what == "weight":
            inner.norm.weight.data[3] += 1e-3  # what no version counter sees
        elif what == "buffer":
            inner.rotary_emb.inv_freq[0] *= 2
        elif what == "hook":
            inner.norm.register_forward_hook(lambda *_: None)
        else:
            inner.layers[0].mlp.act_fn = torch.nn.ReLU()
        shared.give_back(backbone, model)
        assert shared.backbone(config, lambda _: None) is not backbone

    def test_one_that_was_not_given_back_is_loaded_anew(self, config: Any) -> None:
        shared = sharing.Shared()
        backbone, _ = self.lend(shared, config)
        assert shared.backbone(config, lambda _: None) is not backbone

    @pytest.mark.parametrize("change", [{"adapter": "full"}, {"adapter": "osf"}, {"precision": "bf16"}])
    def test_runs_that_change_the_base_share_none(self, config: Any, change: dict[str, str]) -> None:
        kind = change.pop("adapter", "lora")
        own = config.model.model_copy(
            update={**change, "adapter": config.model.adapter.model_copy(update={"kind": kind})}
        )
        config = config.model_copy(update={"model": own})
        shared = sharing.Shared()
        backbone, model = self.lend(shared, config)
        shared.give_back(backbone, model)
        assert shared.backbone(config, lambda _: None) is not backbone
