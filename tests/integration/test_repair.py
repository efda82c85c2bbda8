"""A task that costs too much is repaired before it is rolled back; and the user's functions around a task."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from kifuse import ConfigError, ContinualLearner, RunError
from kifuse.answering.evaluator import Cell, Evaluator
from kifuse.cli import app
from kifuse.record.run_record import RunRecord
from kifuse.running.snapshot import Snapshots
from kifuse.tasks.learned_task import kept_probe
from tests.learners import settings_of

pytestmark = pytest.mark.usefixtures("quick")


def make(folder: Path, model: Path, stream: Path, **options: Any) -> ContinualLearner:
    settings = settings_of(model, stream)
    # much is learned, so that much is lost
    settings["training"] = {
        **settings["training"],
        "learning_rate": 0.1,
        "epochs": 4,
        "scheduler": "constant",
    }
    return ContinualLearner(str(model), "sequential", folder, settings=settings, progress=False, **options)


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The second task costs the first one 50 points, and 10 after it was repaired."""
    after_repair, score = {"score": 80.0}, Evaluator.score

    def told(self: Evaluator, task: Any, after: int, *arguments: Any, **options: Any) -> Cell:
        cell = score(self, task, after, *arguments, **options)
        if task.name != "colour":
            return cell
        record = json.loads((self.folder.parent / "record.json").read_text("utf-8")) if self.folder else {}
        repaired = any(entry["repaired"] for entry in record["tasks"])
        return dataclasses.replace(
            cell, score=90.0 if after < 2 else after_repair["score"] if repaired else 40.0
        )

    monkeypatch.setattr(Evaluator, "score", told)
    return after_repair


def adapter(folder: Path, k: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapters" / f"after-{k}" / "adapter_model.safetensors")


def test_the_weights_are_pulled_back_while_an_earlier_task_is_too_bad(
    costly: dict[str, Any], tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
) -> None:
    torn = make(tmp_path / "torn", tiny_folder_llama, tiny_stream)
    torn.learn(tiny_stream / "colour")
    torn.learn(tiny_stream / "fruit")
    learner = make(tmp_path / "desk", tiny_folder_llama, tiny_stream, max_forgetting=20, repair=True)
    learner.learn(tiny_stream / "colour")
    report = learner.learn(tiny_stream / "fruit")
    assert report.accepted and report.after["colour"] == 80.0
    facts = learner.record.tasks[1].repaired
    assert facts and report.repaired == facts and f"pulled back {facts['steps']} times by 10%" in str(report)

    # literally: theta <- theta + 0.1 (theta_before - theta), while PPL > 1.15 best
    before, weights = adapter(tmp_path / "desk", 1), adapter(tmp_path / "torn", 2)
    assert adapter(tmp_path / "torn", 1).keys() == before.keys()
    probe = kept_probe(tmp_path / "desk" / "tasks" / "1.json")
    assert [example.id for example in probe] == ["colour-dev-0", "colour-dev-1"]
    best, found = _perplexity(learner, probe, before), []
    for _ in range(21):
        found.append(_perplexity(learner, probe, weights))
        if found[-1] <= 1.15 * best:
            break
        weights = {name: w + 0.1 * (before[name] - w) for name, w in weights.items()}
    assert facts["steps"] == len(found) - 1 > 0
    assert facts["best"]["colour"] == pytest.approx(best, rel=1e-5)
    assert [row["colour"] for row in facts["perplexity"]] == pytest.approx(found, rel=1e-4)
    kept = adapter(tmp_path / "desk", 2)
    for name, weight in weights.items():
        assert torch.allclose(kept[name], weight, rtol=0, atol=1e-7), name
    Snapshots(tmp_path / "desk").check(2, learner.record.tasks[1].seal)
    again = ContinualLearner.load(tmp_path / "desk", progress=False)
    assert again.repair and again.learn(tiny_stream / "fruit").repaired == facts


def _perplexity(learner: ContinualLearner, probe: list[Any], weights: dict[str, torch.Tensor]) -> float:
    """E to the mean negative log-likelihood of all answer tokens, one example at a time."""
    own = learner._engine.adapter.learned()
    now = {name: p.detach().clone() for name, p in own.items()}
    total, count = 0.0, 0
    model = learner.model.eval()
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name.replace(".default.", ".")])
        for each in learner._engine.encoder.encode_pieces(probe):
            ids = [*each.input_ids, *each.target_ids]
            logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for place in range(len(each.input_ids), len(ids)):
                total, count = total - float(logs[place - 1, ids[place]]), count + 1
        for name, p in own.items():
            p.copy_(now[name])
    return math.exp(total / count)


def test_what_cannot_be_repaired_is_rolled_back_and_tried_again_only_with_repair(
    costly: dict[str, Any], tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
) -> None:
    costly["score"] = 60.0
    desk = tmp_path / "desk"
    make(desk, tiny_folder_llama, tiny_stream, max_forgetting=20, repair=True).learn(tiny_stream / "colour")
    shared = ["learn", str(desk), str(tiny_stream / "fruit"), "--json"]
    first = CliRunner().invoke(app, [*shared, "--no-repair"])
    assert first.exit_code == 3 and json.loads(first.stdout)["repaired"] is None
    done = CliRunner().invoke(app, [*shared, "--repair"])
    assert done.exit_code == 3, done.output
    report = json.loads(done.stdout)
    assert report["repaired"]["steps"] > 0 and "it cost colour 30.0 points (90.0 to 60.0)" in report["reason"]
    entry = RunRecord.load(desk).lineage[-1]
    assert entry["event"] == "refused" and entry["repair"]["steps"] == report["repaired"]["steps"]
    undone = len(list((desk / "rolled-back").iterdir()))
    again = CliRunner().invoke(app, shared)
    assert again.exit_code == 3 and len(list((desk / "rolled-back").iterdir())) == undone
    with pytest.raises(ConfigError, match="without max_forgetting"):
        make(tmp_path / "new", tiny_folder_llama, tiny_stream, repair=True)


def test_a_kill_while_the_repaired_state_is_written_trains_the_task_anew(
    costly: dict[str, Any],
    tiny_folder_llama: Path,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = tmp_path / "desk"
    learner = make(desk, tiny_folder_llama, tiny_stream, max_forgetting=20, repair=True)
    learner.learn(tiny_stream / "colour")
    shutil.copytree(desk, tmp_path / "whole")
    save, calls = Snapshots.save, []

    def stop(self: Snapshots, k: int, *arguments: Any) -> str:
        seal = save(self, k, *arguments)
        calls.append(k)
        if len(calls) == 2:  # once trained, once repaired
            raise KeyboardInterrupt
        return seal

    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            learner.learn(tiny_stream / "fruit")
    del learner
    whole = ContinualLearner.load(tmp_path / "whole", progress=False).learn(tiny_stream / "fruit")
    resumed = ContinualLearner.load(desk, progress=False).learn(tiny_stream / "fruit")
    assert resumed.accepted and resumed.repaired == whole.repaired
    one, other = adapter(desk, 2), adapter(tmp_path / "whole", 2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_hooks_see_task_learner_and_report_and_what_they_raise_is_told(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
) -> None:
    seen: list[Any] = []
    fail = {"before": False, "after": False}

    def before(task: Any, learner: ContinualLearner) -> None:
        seen.append(("before", task.name, len(task.train), learner.learned))
        if fail["before"]:
            raise ValueError("no consent")

    def after(report: Any, learner: ContinualLearner) -> None:
        seen.append(("after", report.task, report.accepted, learner.evaluate().keys() == report.after.keys()))
        if fail["after"]:
            raise OSError("no such server")
        with pytest.raises(RunError, match="a hook cannot call learn"):
            learner.learn(tiny_stream / "weather")

    learner = make(tmp_path / "desk", tiny_folder_llama, tiny_stream, before=before, after=after)
    fail["before"] = True
    with pytest.raises(
        RunError, match=r"before: ValueError: no consent; 'colour' is refused, and nothing was"
    ):
        learner.learn(tiny_stream / "colour")
    assert learner.tasks == [] and learner.record.lineage == [] and len(seen) == 1
    fail.update(before=False, after=True)
    with pytest.raises(RunError, match=r"after: OSError: no such server; 'colour' stays learned"):
        learner.learn(tiny_stream / "colour")
    assert learner.tasks == ["colour"]
    fail["after"] = False
    assert learner.learn(tiny_stream / "colour").accepted  # learned already; the hook is called again
    assert seen[1:] == [
        ("before", "colour", 12, 0),
        ("after", "colour", True, True),
        ("before", "colour", 12, 1),
        ("after", "colour", True, True),
    ]
    with pytest.raises(ConfigError, match="before: found 'x', expected a function"):
        ContinualLearner.load(tmp_path / "desk", before="x")
