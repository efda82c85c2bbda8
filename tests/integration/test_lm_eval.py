"""Tasks of lm-evaluation-harness that are watched, offline, by task files of their own."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from kifuse import ConfigError, ContinualLearner, DataError, RunError
from kifuse.answering.evaluator import Evaluator
from kifuse.answering.perplexity import losses
from kifuse.cli import app
from kifuse.config import LmEvalConfig, load_config
from kifuse.io.storage import sha256_file
from kifuse.processes import Processes
from kifuse.record.run_record import RunRecord
from kifuse.reporting.page import write_report
from kifuse.reporting.run_groups import Run
from kifuse.reporting.shareable import without_paths
from kifuse.running import lm_eval_tasks
from kifuse.running.lm_eval_tasks import open_lm_eval
from kifuse.running.runner import run
from kifuse.tasks.encoded import Encoded
from tests.learners import Make, settings_of
from tests.runs import KIND, METHODS, StopIn, Stopped, learned_files, make_config

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed", exc_type=ImportError)
pytestmark = pytest.mark.usefixtures("quick")

ROWS = [
    {"q": f"Option {i}: the harbour is", "choices": ["red", "very blue", "green"], "gold": i % 3}
    for i in range(6)
]
SCORED = {"test_split": "test", "dataset_path": "json", "metadata": {"version": 2.0}}
CHOICE = {
    "task": "own_choice",
    "output_type": "multiple_choice",
    "fewshot_split": "train",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [
        {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")
    ],
}
ANSWER = {
    "task": "own_answer",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{choices[gold]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
TEXT = {
    "task": "own_text",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{q}} {{choices[gold]}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
GROUP = {
    "group": "own_group",
    "task": ["own_choice", "own_answer"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    "metadata": {"version": 3.0},
}


def write_tasks(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Task files and their documents, as lm_eval reads them."""
    folder.mkdir(exist_ok=True)
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"dataset_kwargs": {"data_files": {"test": str(file), "train": str(file)}}}
    for task in (CHOICE, ANSWER, TEXT):
        text = yaml.safe_dump({**SCORED, **task, **data})
        (folder / f"{task['task']}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield write_tasks(tmp_path_factory.mktemp("harness"), ROWS)


def asked(own: Path, *tasks: str, **more: Any) -> dict[str, Any]:
    return {"tasks": list(tasks), "include_path": str(own), "batch_size": 4, **more}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder_llama: Path,
    tiny_stream: Path,
    own: Path,
    quick: None,
) -> tuple[Path, Path]:
    """The same run without lm_eval's tasks and with them, the second one stopped in its middle."""
    folder, method = tmp_path_factory.mktemp("runs"), METHODS["recurrent-kif"]
    run(make_config(tiny_folder_llama, tiny_stream, folder / "plain", method))
    named = asked(own, "own_choice:acc_norm", "own_answer", "own_text", num_fewshot=1, limit=5)
    watched = make_config(
        tiny_folder_llama, tiny_stream, folder / "watched", method, watch={"lm_eval": named}
    )
    with pytest.raises(Stopped):
        run(watched, progress=StopIn("fruit"))
    assert {s.after for s in RunRecord.load(folder / "watched").watch_scores} == {0, 1}
    seen = {file: file.stat().st_mtime_ns for file in (folder / "watched" / "predictions").rglob("lm_eval.*")}
    run(watched)
    assert len(seen) == 6 and all(file.stat().st_mtime_ns == when for file, when in seen.items())
    return folder / "plain", folder / "watched"


def test_a_run_trains_bit_for_bit_as_without_lm_eval(runs: tuple[Path, Path]) -> None:
    plain, watched = map(learned_files, runs)
    assert plain == watched and len(plain) >= 12
    a, b = map(RunRecord.load, runs)
    assert [(s.after, s.task, s.score) for s in a.scores] == [(s.after, s.task, s.score) for s in b.scores]
    assert [t.seal for t in a.tasks] == [t.seal for t in b.tasks]


def test_scores_and_standard_errors_are_on_record_and_in_the_watched_block(runs: tuple[Path, Path]) -> None:
    record = RunRecord.load(runs[1])
    names = ["lm_eval.own_choice", "lm_eval.own_answer", "lm_eval.own_text"]
    assert [(w.name, w.n, w.metric) for w in record.watched] == [
        (names[0], 5, "acc_norm"),
        (names[1], 5, "exact_match"),
        (names[2], 5, "word_perplexity"),
    ]
    of = record.watched[0].lm_eval
    assert of is not None and (of.version, of.num_fewshot, of.limit) == ("2.0", 1, 5)
    assert of.harness == record.versions["lm_eval"] == lm_eval_tasks.installed("lm_eval")
    assert [(s.after, s.task) for s in record.watch_scores] == [(k, i) for k in range(4) for i in range(3)]
    for score in record.watch_scores:
        file = runs[1] / "predictions" / f"after-{score.after}" / f"{names[score.task]}.jsonl"
        assert sha256_file(file) == score.predictions
    choice, _, text = record.watch_scores[-3:]
    assert choice.score == pytest.approx(100 * choice.measured["acc_norm,none"])
    assert choice.stderr == pytest.approx(100 * choice.measured["acc_norm_stderr,none"])
    assert text.score == pytest.approx(100 / text.measured["word_perplexity,none"])
    log = (runs[1] / "log.txt").read_text("utf-8")
    assert f"watched after task 3: {names[0]} {choice.score:.1f} ± {choice.stderr:.1f}" in log
    page = write_report(runs[1]).read_text("utf-8")
    assert 'id="watched"' in page and "standard error that lm_eval gives" in page
    assert "acc_norm of version 2.0 in lm_eval" in page and "1 example shown" in page
    file = runs[1] / "predictions" / "after-3" / f"{names[0]}.jsonl"
    row = json.loads(file.read_text("utf-8").splitlines()[0])
    assert row["references"] == ["red"] and row["prediction"] in ROWS[0]["choices"]
    assert row["input"].endswith(ROWS[0]["q"])
    shown = without_paths(Run(record))
    assert shown.record.watched[0].lm_eval is not None
    assert "/" not in shown.record.watched[0].lm_eval.include_path[0]


def test_the_numbers_are_those_of_lm_eval_on_the_exported_adapter(
    runs: tuple[Path, Path], tiny_folder_llama: Path, own: Path, tmp_path: Path
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    done = CliRunner().invoke(app, ["export", str(runs[1]), "--output", str(tmp_path / "exported")])
    assert done.exit_code == 0, done.output
    exported = {"pretrained": str(tiny_folder_llama), "peft": str(tmp_path / "exported"), "dtype": "float32"}
    found = simple_evaluate(
        model="hf",
        model_args=exported,
        tasks=["own_choice", "own_answer", "own_text"],
        num_fewshot=1,
        limit=5,
        batch_size=4,
        device="cpu",
        bootstrap_iters=1,
        task_manager=TaskManager(include_path=str(own), include_defaults=False),
    )
    record = RunRecord.load(runs[1])
    for score in (s for s in record.watch_scores if s.after == 3):
        theirs = found["results"][record.watched[score.task].name.removeprefix("lm_eval.")]
        assert score.measured and score.measured == {key: theirs[key] for key in score.measured}


def generators() -> tuple[Any, ...]:
    """Where all generators of random numbers are."""
    return random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().tolist()


@pytest.fixture
def scored(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path) -> Callable[..., Any]:
    """A learner that has learned two tasks with a method or a kind of adapter."""

    def made(method: dict[str, Any], kind: str = "lora", model: Path = tiny_folder_llama) -> ContinualLearner:
        settings = settings_of(model, tiny_stream)
        settings["model"] = {**settings["model"], "adapter": {"kind": KIND.get(method["name"], kind)}}
        learner = ContinualLearner(str(model), method, tmp_path / "desk", settings=settings, progress=False)
        for task in ("colour", "fruit"):
            learner.learn(tiny_stream / task)
        return learner

    return made


def likelihoods_agree(learner: ContinualLearner) -> None:
    """lm_eval's log-likelihoods are kifuse's own losses of the same tokens, whatever else is in a batch."""
    from lm_eval.api.instance import Instance

    from kifuse.running.lm_eval_model import AdaptedModel

    pairs = [("Option", " red"), ("Option: the harbour", " very blue and so on"), ("Option", " green one")]
    pairs.append(("What is the topic of the following paragraph?", " Sports"))
    engine = learner._engine
    model = AdaptedModel(engine.model, engine.backbone, 4, lambda done, total: None)
    modes = [module.training for module in engine.model.modules()]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = [each for each, _ in model.loglikelihood(requests)]
    assert [module.training for module in engine.model.modules()] == modes
    encoded = [Encoded(*model._encode_pair(*pair), cut=False) for pair in pairs]
    ours = [-loss for loss, _ in losses(engine.model, engine.backbone, encoded, batch_tokens=64)]
    assert found == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "ia3", "full"])
def test_every_kind_of_adapter_is_scored_as_it_is_in_memory(kind: str, scored: Callable[..., Any]) -> None:
    likelihoods_agree(scored({"name": "sequential"}, kind))


OWN_ADAPTERS = ("inclora", "osf", "l2p", "progprompt", "epi", "lfpt5", "mocl", "sapt", "moe-lora")


@pytest.mark.parametrize("name", OWN_ADAPTERS)
def test_a_method_with_an_adapter_of_its_own_reads_what_is_asked_alone(
    name: str, scored: Callable[..., Any], own: Path
) -> None:
    learner = scored(METHODS[name])
    likelihoods_agree(learner)
    before = generators()
    first = learner.watch(lm_eval=asked(own, "own_choice", "own_answer", "own_text"))
    assert set(first) == {"lm_eval.own_choice", "lm_eval.own_answer", "lm_eval.own_text"}
    assert generators() == before
    assert learner.evaluate(list(first)) == first


@pytest.mark.parametrize("name", ["sequential", "l2p", "mocl"])
def test_an_encoder_decoder_model_is_scored_alike(
    name: str, scored: Callable[..., Any], tiny_folder_t5: Path
) -> None:
    likelihoods_agree(scored(METHODS[name], model=tiny_folder_t5))


def test_groups_have_one_score_and_metrics_are_named(own: Path) -> None:
    (own / "group.yaml").write_text(yaml.safe_dump(GROUP), encoding="utf-8")
    from lm_eval.tasks import TaskManager

    small = TaskManager(include_path=str(own), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_tasks, "_all_tasks", lambda paths=(): small)
        [group] = open_lm_eval(LmEvalConfig.model_validate(asked(own, "own_group")))
        with pytest.raises(ConfigError, match=r"found own_choice:f1, expected one of own_choice:acc, own_ch"):
            open_lm_eval(LmEvalConfig.model_validate(asked(own, "own_choice:f1")))
        with pytest.raises(ConfigError, match=r"for which lower is better, .* own_text:word_perplexity"):
            open_lm_eval(LmEvalConfig.model_validate(asked(own, "own_text:bits_per_byte")))
        with pytest.raises(ConfigError, match="asked for by 'own_choice' and by 'own_choice:acc_norm'"):
            open_lm_eval(LmEvalConfig.model_validate(asked(own, "own_choice", "own_choice:acc_norm")))
    assert (group.name, group.of.version, group.of.metric, group.n) == ("lm_eval.own_group", "3.0", "acc", 12)
    (own / "group.yaml").unlink()


def test_what_cannot_be_run_is_refused_before_training(
    tiny_folder_llama: Path, tiny_stream: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(*tasks: str, **more: Any) -> Any:
        return make_config(
            *(tiny_folder_llama, tiny_stream, tmp_path / "run", METHODS["sequential"]),
            watch={"lm_eval": asked(own, *tasks, **more)},
        )

    with pytest.raises(ConfigError, match=r"found 'own_choise', .* The nearest are own_choice") as found:
        run(config("own_choise"))
    assert "lm-eval ls tasks" in str(found.value)
    with pytest.raises(ConfigError, match=r"include_path: found '\S+/absent', which is no folder"):
        run(config("own_choice", include_path=str(own / "absent")))
    broken = write_tasks(tmp_path / "broken", ROWS)
    (broken / "documents.jsonl").unlink()
    with pytest.raises(DataError, match="'own_choice' cannot be loaded: FileNotFoundError"):
        run(config("own_choice", include_path=str(broken)))
    assert not (tmp_path / "run" / "record.json").exists()

    monkeypatch.setattr("kifuse.config.installed.installed", lambda name: "")
    with pytest.raises(ConfigError, match=r"not installed, .* pip install 'lm-eval>=0\.4"):
        run(config("own_choice"))
    file = tmp_path / "run.yaml"
    plain = {**config("own_choice").model_dump(mode="json"), "watch": {"lm_eval": ["hellaswag"]}}
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run.yaml:\d+: watch.lm_eval: .*pip install 'lm-eval>=0\.4"):
        load_config(file, check_files=True)
    assert load_config(file).watch.lm_eval.tasks == ["hellaswag"]


def test_other_documents_are_refused_when_a_run_goes_on(
    tiny_folder_llama: Path, tiny_stream: Path, own: Path, tmp_path: Path
) -> None:
    mine = write_tasks(tmp_path / "mine", ROWS)
    config = make_config(
        *(tiny_folder_llama, tiny_stream, tmp_path / "run", METHODS["sequential"]),
        watch={"lm_eval": asked(mine, "own_choice"), "when": "end"},
    )
    with pytest.raises(Stopped):
        run(config, progress=StopIn("fruit"))
    write_tasks(mine, [{**row, "gold": 0} for row in ROWS])
    with pytest.raises(RunError, match=r"'lm_eval.own_choice' was watched with other examples"):
        run(config)
    write_tasks(mine, ROWS)
    assert [s.after for s in run(config).watch_scores] == [0, 3]


class Second(Processes):
    """The second of two processes, whose first one has told it a cell."""

    def of_first(self, work: Callable[[], Any]) -> Any:
        """What the first process found."""
        return "told"


def test_the_first_process_runs_them_and_every_process_if_the_model_is_in_pieces(
    make: Make, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kifuse.running.lm_eval_model import score_lm_eval

    learner, passes = make("sequential"), []
    learner.model.register_forward_pre_hook(lambda *call: passes.append(1))
    evaluator = learner._engine.evaluator
    evaluator.processes, evaluator.folder = Second(1, 2), None
    [task] = open_lm_eval(LmEvalConfig.model_validate(asked(own, "own_choice", limit=2)))
    assert score_lm_eval(task, evaluator, 0, lambda *done: None, print) == "told" and not passes
    monkeypatch.setattr(Evaluator, "in_pieces", True)
    assert score_lm_eval(task, evaluator, 0, lambda *done: None, print) == "told" and passes


def test_max_forgetting_counts_for_them_and_task_files_are_named_in_each_process(
    tiny_folder_llama: Path, tiny_stream: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kifuse.running import lm_eval_model

    real = lm_eval_model.score_lm_eval

    def falling(task: Any, evaluator: Any, after: int, *rest: Any, **more: Any) -> Any:
        found = real(task, evaluator, after, *rest, **more)
        return dataclasses.replace(found, score=80.0 if after < 2 else 60.0)

    monkeypatch.setattr(lm_eval_model, "score_lm_eval", falling)
    desk = tmp_path / "desk"
    learner = ContinualLearner(
        *(str(tiny_folder_llama), "replay", desk),
        settings=settings_of(tiny_folder_llama, tiny_stream),
        progress=False,
    )
    learner.learn(tiny_stream / "colour", lm_eval=asked(own, "own_choice", limit=3))
    del learner
    told = ["learn", str(desk), str(tiny_stream / "fruit"), "--json", "--max-forgetting", "15"]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 2 and "must name them again" in " ".join(done.output.split()), done.output
    named = json.dumps(asked(own, "own_choice", limit=3))
    done = CliRunner().invoke(app, [*told, "--watch-lm-eval", named])
    assert done.exit_code == 3, done.output
    report = json.loads(done.stdout)
    assert "it cost lm_eval.own_choice 20.0 points (80.0 to 60.0)" in report["reason"]
    with pytest.raises(RunError, match=r"'lm_eval.own_choice' was watched with other examples"):
        ContinualLearner.load(desk, progress=False).watch(lm_eval=asked(own, "own_choice", limit=2))
    done = CliRunner().invoke(app, ["forget", str(desk), "lm_eval.own_choice"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 0, done.output


def test_a_comparison_shows_them(
    tiny_folder_llama: Path, tiny_stream: Path, own: Path, tmp_path: Path
) -> None:
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", METHODS["sequential"])
    watch = {"lm_eval": asked(own, "own_choice"), "when": "end"}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({**config.model_dump(mode="json"), "watch": watch}), encoding="utf-8")
    done = CliRunner().invoke(app, ["compare", str(file), "--methods", "sequential,kiflora", "--seeds", "0"])
    assert done.exit_code == 0, done.output
    assert "standard error" in done.output
    lines = (tmp_path / "out" / "tables" / "watched.csv").read_text("utf-8").splitlines()
    assert lines[0].endswith("standard error of a score")
    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["lm_eval.own_choice", "sequential"],
        ["lm_eval.own_choice", "kiflora"],
    ]
