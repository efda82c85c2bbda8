"""The whole protocol on tiny models: what a run folder holds, and that its numbers are what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse import __version__
from kifuse.answering.evaluator import Cell
from kifuse.config import load_config
from kifuse.errors import RunError
from kifuse.page_refresh import run
from kifuse.record.run_record import RunRecord
from kifuse.record.score_matrix import needed_cells
from kifuse.running import engine
from kifuse.running import run_start as opening
from kifuse.running.progress import Plan, Progress
from kifuse.tasks import read_stream
from tests.runs import LABELS, METHODS, TASKS, StopIn, Stopped, adapter, make_config

pytestmark = pytest.mark.usefixtures("quick")


def _learning(family: Path) -> dict[str, Any]:
    """Sections with which a tiny random model learns to answer, so that scores differ from zero."""
    # what a random model says is settled by its head more than by its attention
    queries = ["q", "v"] if "t5" in family.name else ["q_proj", "v_proj"]
    adapter = {"rank": 8, "alpha": 32, "dropout": 0.0, "target_modules": [*queries, "lm_head"]}
    training = {"learning_rate": 1e-2, "epochs": 30, "batch_size": 4}
    return {"model": {"adapter": adapter}, "training": training, "evaluation": {"max_new_tokens": 8}}


@pytest.fixture(scope="module", params=["llama", "t5"])
def family(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_folder_{request.param}")


@pytest.fixture(scope="module")
def learned(
    family: Path, tiny_stream: Path, tmp_path_factory: pytest.TempPathFactory, quick: None
) -> tuple[Path, RunRecord]:
    folder = tmp_path_factory.mktemp("protocol") / "run"
    return folder, run(make_config(family, tiny_stream, folder, METHODS["sequential"], **_learning(family)))


@pytest.fixture
def go(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path) -> Callable[..., RunRecord]:
    """Runs a method on the decoder-only model, in the folder `run` unless told otherwise."""

    def start(method: dict[str, Any], folder: str = "run", **rest: Any) -> RunRecord:
        asked = {key: rest.pop(key) for key in ("progress", "reuse") if key in rest}
        return run(make_config(tiny_folder_llama, tiny_stream, tmp_path / folder, method, **rest), **asked)

    return start


def _rows(folder: Path, after: int, task: str) -> list[dict[str, Any]]:
    text = (folder / "predictions" / f"after-{after}" / f"{task}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _by_hand(folder: Path, after: int, task: int) -> float:
    """The score of a cell, from the words in its predictions file alone."""
    rows = _rows(folder, after, TASKS[task])
    right = [row["prediction"].strip().lower() in row["references"] for row in rows]
    return 100 * sum(right) / len(right)


def test_exactly_the_cells_of_the_metrics_are_scored(learned: tuple[Path, RunRecord]):
    folder, record = learned
    cells = [(s.after, s.task) for s in record.scores]
    assert len(cells) == len(set(cells)) == 3 * len(TASKS) - 2
    assert sorted(cells) == sorted(needed_cells(len(TASKS)))
    files = {p.relative_to(folder / "predictions").as_posix() for p in folder.rglob("after-*/*.jsonl")}
    assert files == {f"after-{after}/{TASKS[task]}.jsonl" for after, task in cells}


def test_scores_and_metrics_follow_from_the_predictions(learned: tuple[Path, RunRecord]):
    folder, record = learned
    found = {(s.after, s.task): s.score for s in record.scores}
    expected = {cell: _by_hand(folder, *cell) for cell in found}
    assert found == pytest.approx(expected)
    assert len(set(found.values())) > 1, "a stream on which nothing is ever right shows nothing"
    summary = record.summary()
    assert summary["AP"].value == pytest.approx(sum(expected[3, i] for i in range(3)) / 3)
    assert summary["FWT"].value == pytest.approx((expected[1, 1] + expected[2, 2]) / 2)
    bwt = ((expected[3, 0] - expected[1, 0]) + (expected[3, 1] - expected[2, 1])) / 2
    assert summary["BWT"].value == pytest.approx(bwt)


def test_the_last_task_is_learned_and_its_labels_are_the_answers(learned: tuple[Path, RunRecord]):
    folder, _ = learned
    answers = [row["prediction"].strip() for row in _rows(folder, 3, "weather")]
    assert sum(answer in LABELS["weather"] for answer in answers) >= 2


def test_predictions_hold_what_was_asked_and_answered(learned: tuple[Path, RunRecord], tiny_stream: Path):
    folder, record = learned
    for task in read_stream(tiny_stream):
        rows = _rows(folder, 3, task.name)
        assert [row["id"] for row in rows] == [example.id for example in task.test]
        assert [row["input"] for row in rows] == [example.input for example in task.test]
        assert [tuple(row["references"]) for row in rows] == [example.references for example in task.test]
        for row in rows:
            assert row["valid"] == (row["prediction"].strip().lower() in LABELS[task.name])
    valid = {s.task: s.valid for s in record.scores if s.after == 3}
    for index, name in enumerate(TASKS):
        shares = [row["valid"] for row in _rows(folder, 3, name)]
        assert valid[index] == pytest.approx(100 * sum(shares) / len(shares))


def test_the_record_says_what_was_run(learned: tuple[Path, RunRecord], family: Path, tiny_stream: Path):
    folder, record = learned
    assert RunRecord.load(folder) == record
    assert (record.status, record.kifuse_version) == ("finished", __version__)
    assert record.finished is not None and record.created <= record.finished
    assert record.config["model"]["name"] == str(family) and "output" not in record.config
    assert record.model["encoder_decoder"] == (record.model["family"] == "t5")
    assert record.method.name == "sequential" and record.method.data_class == "replay-free"
    assert record.versions["torch"] == torch.__version__
    assert record.machine["precision"] == "fp32" and record.machine["threads"] == 1
    assert record.seeds == {"training": 0} and record.peak_memory_mb and record.peak_memory_mb > 50
    for task, entry in zip(read_stream(tiny_stream), record.tasks, strict=True):
        assert (entry.name, entry.metric, entry.labels) == (task.name, "exact_match", list(LABELS[task.name]))
        assert entry.sizes == {"train": 12, "dev": 2, "test": 3}
        assert entry.hashes == {split: task.split_hash(split) for split in ("train", "dev", "test")}
        assert (entry.train_steps, entry.examples_seen) == (90, 360)
        assert (entry.replayed_examples, entry.extra_forward_backward) == (0, 0)
        assert entry.seconds_train and entry.cut_inputs == 0
        steps = [step for step, _ in entry.loss]
        assert steps == list(range(3, 91, 3))
        assert entry.loss[-1][1] < entry.loss[0][1]


def test_the_run_folder_holds_what_it_should(learned: tuple[Path, RunRecord]):
    folder, _ = learned
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        "config.yaml",
        "log.txt",
        "report.html",
        "record.json",
        "rendered.json",
        "predictions",
        "adapters",
        "state",
    }
    for part in ("adapters", "state"):
        assert {path.name for path in (folder / part).iterdir()} == {"after-1", "after-2", "after-3"}


def test_the_kept_configuration_runs_the_same(
    learned: tuple[Path, RunRecord], family: Path, tiny_stream: Path
):
    folder, _ = learned
    config = make_config(family, tiny_stream, folder, METHODS["sequential"], **_learning(family))
    assert load_config(folder / "config.yaml", {}) == config


def test_the_full_matrix_has_every_cell(go: Callable[..., RunRecord]):
    record = go(METHODS["kif"], evaluation={"full_matrix": True, "max_new_tokens": 2})
    expected = needed_cells(3, full=True)
    assert sorted((s.after, s.task) for s in record.scores) == sorted(expected)
    assert {(k, i) for k in (1, 2, 3) for i in range(k)} <= set(expected)
    assert record.summary()["forgetting"].value is not None


def test_joint_training_is_scored_at_the_end_only(go: Callable[..., RunRecord], tmp_path: Path):
    record = go(METHODS["joint"])
    assert [(s.after, s.task) for s in record.scores] == [(3, 0), (3, 1), (3, 2)]
    assert record.summary()["AP"].value is not None and record.summary()["FWT"].value is None
    assert [task.train_steps for task in record.tasks] == [None, None, 9]
    assert record.tasks[-1].examples_seen == 36
    assert [path.name for path in (tmp_path / "run" / "adapters").iterdir()] == ["after-3"]


@pytest.mark.parametrize("memory", [{"per_task": 3}, {"share": 0.5}, {"share": 0.01}])
def test_memory_keeps_its_quota_of_training_examples(
    go: Callable[..., RunRecord], tmp_path: Path, tiny_stream: Path, memory: dict[str, Any]
):
    quota = memory.get("per_task") or max(1, int(memory["share"] * 12))
    record = go(METHODS["replay"], memory={"per_task": None, **memory})
    train = {task.name: {example.input for example in task.train} for task in read_stream(tiny_stream)}
    for after in (1, 2, 3):
        state = json.loads((tmp_path / "run" / "state" / f"after-{after}" / "memory.json").read_text("utf-8"))
        assert [task["name"] for task in state["tasks"]] == list(TASKS[:after])
        for task in state["tasks"]:
            inputs = {e["head"] + e["body"] + e["tail"] for e in task["examples"]}
            assert len(task["examples"]) == len(inputs) == quota
            assert inputs <= train[task["name"]]
    assert record.memory == {"examples": 3 * quota, "tasks": list(TASKS)}
    # the memory of earlier tasks joins every pass
    assert [task.replayed_examples for task in record.tasks] == [0, quota, 2 * quota]
    assert [task.examples_seen for task in record.tasks] == [12, 12, 12]
    assert [task.train_steps for task in record.tasks] == [
        3,
        -(-(12 + quota) // 4),
        -(-(12 + 2 * quota) // 4),
    ]


@pytest.mark.parametrize(("inner", "outer"), [(2, 1), (3, 2), (8, 3)])
def test_recurrent_kif_counts_its_rounds_and_memory_steps(
    go: Callable[..., RunRecord], inner: int, outer: int
):
    settings = {"name": "recurrent-kif", "inner_steps": inner, "outer_steps": outer}
    record = go(settings, training={"learning_rate": 1e-2, "epochs": 2, "batch_size": 4})
    assert [task.train_steps for task in record.tasks] == [6, 6, 6]
    rounds = -(-6 // inner)
    assert record.tasks[0].events == [] and record.tasks[0].extra_forward_backward == 0
    for task, batch in zip(record.tasks[1:], (3, 4), strict=True):
        (event,) = task.events
        assert event["rounds"] == rounds and 0 <= event["mask_overlap"] <= 1
        assert task.extra_forward_backward == rounds * outer
        # all batches are full, but three examples make no batch of four
        assert task.replayed_examples == rounds * outer * batch


def test_kif_m_replays_the_memory_after_fusion(go: Callable[..., RunRecord]):
    record = go({"name": "kif", "replay_epochs": 2, "replay_lr": 1e-2})
    assert record.method.data_class == "real replay"
    assert [task.extra_forward_backward for task in record.tasks] == [0, 2, 4]
    assert [event["kind"] for event in record.tasks[1].events] == ["fusion", "replay stage"]


def test_a_taken_over_first_task_changes_nothing(go: Callable[..., RunRecord], tmp_path: Path):
    go(METHODS["sequential"], "plain")
    for name in ("replay", "recurrent-kif"):
        alone = go(METHODS[name], f"{name}-alone")
        helped = go(METHODS[name], f"{name}-helped", reuse=tmp_path / "plain")
        assert helped.notes and not alone.notes
        for after in (1, 2, 3):
            expected = adapter(tmp_path / f"{name}-alone", after)
            found = adapter(tmp_path / f"{name}-helped", after)
            assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert helped.matrix().to_json() == alone.matrix().to_json()
        assert helped.memory == alone.memory


@pytest.mark.parametrize("name", ["kif", "joint"])
def test_a_method_that_reads_the_first_task_trains_it_itself(
    go: Callable[..., RunRecord], tmp_path: Path, name: str
):
    go(METHODS["sequential"], "plain")
    assert go(METHODS[name], reuse=tmp_path / "plain").notes == []


def test_a_first_task_trained_otherwise_is_not_taken_over(go: Callable[..., RunRecord], tmp_path: Path):
    go(METHODS["sequential"], "plain")
    other = {"training": {"learning_rate": 2e-2, "epochs": 1, "batch_size": 4}}
    assert go(METHODS["replay"], reuse=tmp_path / "plain", **other).notes == []


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"training": {"learning_rate": 2e-2}}, "training.learning_rate (0.01 there, 0.02 here)"),
        ({"model": {"adapter": {"rank": 4}}}, "model.adapter.rank (2 there, 4 here)"),
        ({"method": {"name": "kif"}}, "method.name ('sequential' there, 'kif' here)"),
        ({"method": {"name": "sequential", "tau": 1}}, "method.tau (None there, 1 here)"),
    ],
)
def test_a_folder_with_another_run_is_refused(
    learned_once: Path, tiny_folder_llama: Path, tiny_stream: Path, changed: dict[str, Any], key: str
):
    method = changed.pop("method", METHODS["sequential"])
    config = make_config(tiny_folder_llama, tiny_stream, learned_once, method, **changed)
    with pytest.raises(RunError) as caught:
        run(config)
    assert key in str(caught.value) and str(learned_once) in str(caught.value)


@pytest.fixture(scope="module")
def learned_once(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path_factory: pytest.TempPathFactory, quick: None
) -> Path:
    folder = tmp_path_factory.mktemp("once") / "run"
    run(make_config(tiny_folder_llama, tiny_stream, folder, METHODS["sequential"]))
    return folder


def test_a_folder_with_something_else_is_refused_and_kept(go: Callable[..., RunRecord], tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("three years of work", encoding="utf-8")
    with pytest.raises(RunError, match="not empty and holds no run"):
        go(METHODS["sequential"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_what_an_end_before_the_first_record_left_is_no_obstacle(
    go: Callable[..., RunRecord], tmp_path: Path
):
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", ".record.json.x1y2.tmp"):
        (tmp_path / "run" / name).write_text("", encoding="utf-8")
    assert go(METHODS["sequential"]).status == "finished"


def test_what_a_kill_left_of_single_writes_is_removed(go: Callable[..., RunRecord], tmp_path: Path):
    with pytest.raises(Stopped):
        go(METHODS["sequential"], progress=StopIn(TASKS[1]))
    left = [tmp_path / "run" / place for place in ("", "state/after-1", "adapters/after-1", "predictions")]
    for folder in left:
        folder.mkdir(exist_ok=True)
        (folder / ".record.json.x1y2_a9z.tmp").write_text("{", encoding="utf-8")
    (tmp_path / "run" / "mine.tmp").write_text("kept", encoding="utf-8")
    assert go(METHODS["sequential"]).status == "finished"
    assert [path.name for path in (tmp_path / "run").rglob("*.tmp")] == ["mine.tmp"]


def test_a_file_in_the_place_of_the_checkpoints_folder_is_refused(
    go: Callable[..., RunRecord], tmp_path: Path
):
    with pytest.raises(Stopped):
        go(METHODS["sequential"], progress=StopIn(TASKS[1]))
    shutil.rmtree(tmp_path / "run" / "checkpoint", ignore_errors=True)
    (tmp_path / "run" / "checkpoint").write_text("mine", encoding="utf-8")
    with pytest.raises(
        RunError, match="checkpoint: is a file, expected a folder with the checkpoint of a task"
    ):
        go(METHODS["sequential"])


def test_a_finished_run_is_not_run_again(
    learned_once: Path, tiny_folder_llama: Path, tiny_stream: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(opening, "load_backbone", lambda *args, **kwargs: pytest.fail("loaded a model"))
    config = make_config(tiny_folder_llama, tiny_stream, learned_once, METHODS["sequential"])
    assert run(config) == RunRecord.load(learned_once)


class _StopAfterCell(Progress):
    def __init__(self, cells: int) -> None:
        self.left = cells

    def scored(self, after: int, task: str, cell: Cell) -> None:
        self.left -= 1
        if not self.left:
            raise Stopped


def test_a_run_stopped_while_scoring_trains_no_task_twice(
    go: Callable[..., RunRecord], monkeypatch: pytest.MonkeyPatch
):
    trained: list[int] = []

    def train(*args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["index"])
        return original(*args, **kwargs)

    original = engine.train_task
    monkeypatch.setattr(engine, "train_task", train)
    # the first two cells come after one task, the next two after the second
    for cells in (1, 2):
        with pytest.raises(Stopped):
            go(METHODS["kif"], progress=_StopAfterCell(cells))
    record = go(METHODS["kif"])
    assert trained == [0, 1, 2]
    cells = [(s.after, s.task) for s in record.scores]
    assert sorted(cells) == sorted(needed_cells(3))


def test_a_lost_adapter_is_trained_again(go: Callable[..., RunRecord], tmp_path: Path):
    with pytest.raises(Stopped):
        go(METHODS["kif"], progress=StopIn("weather"))
    before = adapter(tmp_path / "run", 2)
    shutil.rmtree(tmp_path / "run" / "adapters" / "after-2")
    record = go(METHODS["kif"])
    assert record.status == "finished"
    again = adapter(tmp_path / "run", 2)
    assert all(torch.equal(again[key], before[key]) for key in before)


class _Told(Progress):
    def __init__(self) -> None:
        self.plans: list[tuple[Plan, Plan]] = []
        self.steps: dict[str, int] = {}
        self.cells: list[tuple[int, str]] = []
        self.finished = 0

    def begin(self, method: str, plan: Plan, done: Plan) -> None:
        self.plans.append((plan, done))

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        assert 1 <= step <= steps
        self.steps[task] = steps

    def scored(self, after: int, task: str, cell: Cell) -> None:
        self.cells.append((after, task))

    def finish(self) -> None:
        self.finished += 1


def test_the_listener_is_told_of_the_whole_plan(go: Callable[..., RunRecord]):
    told = _Told()
    with pytest.raises(Stopped):
        go(METHODS["sequential"], progress=StopIn("fruit"))
    go(METHODS["sequential"], progress=told)
    ((plan, done),) = told.plans
    assert (plan.steps, plan.scored) == (9, 21)
    assert (done.steps, done.scored) == (3, 6)
    assert told.steps == {"fruit": 3, "weather": 3}
    assert len(told.cells) == 5 and told.finished == 1


def test_the_largest_seed_works(go: Callable[..., RunRecord]):
    settings = {"learning_rate": 1e-2, "epochs": 1, "batch_size": 4, "seed": 2**32 - 1}
    assert go(METHODS["recurrent-kif"], training=settings).status == "finished"


def test_a_batch_that_cannot_be_split_is_refused(go: Callable[..., RunRecord]):
    with pytest.raises(RunError, match=r"training.batch_size: 4 cannot be split .*accumulation 3"):
        go(METHODS["sequential"], training={"batch_size": 4, "accumulation": 3})
