"""What was learned, exported: it loads without kifuse, says what it is, and holds nothing private."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

import kifuse
from kifuse import ContinualLearner, Task, export, read_stream, run
from kifuse.adapters.folder import WEIGHTS
from kifuse.cli import app
from kifuse.errors import ModelError, RunError
from kifuse.exporting.card import escaped
from kifuse.exporting.serving import servers
from tests.hub_stand import hub_stand
from tests.runs import make_config

pytestmark = pytest.mark.usefixtures("quick")

HOSTILE = "`y` [z](w) www.v.org _a_"
SMALL = {
    "model": {"precision": "fp32", "adapter": {"rank": 2, "alpha": 8, "dropout": 0.0}},
    "training": {"learning_rate": 0.03, "epochs": 1, "batch_size": 4},
    "evaluation": {"max_new_tokens": 2},
    "data": {"max_input": 64, "max_target": 8},
}


def _small(**model: Any) -> dict[str, Any]:
    return {**SMALL, "model": {**SMALL["model"], **model}}


def _few(stream: Path) -> list[Task]:
    """Two tasks of four examples."""
    return [replace(t, train=t.train[:4], dev=(), test=t.test[:1]) for t in list(read_stream(stream))[:2]]


def _logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits


@pytest.fixture(scope="module")
def desk(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder_llama: Path, tiny_stream: Path, quick: None
) -> ContinualLearner:
    """A learner of two tasks, one with a name that means something everywhere."""
    folder = tmp_path_factory.mktemp("export") / "desk"
    learner = ContinualLearner(str(tiny_folder_llama), "replay", folder, progress=False, settings=SMALL)
    learner.learn(_few(tiny_stream)[0])
    rows = [{"input": f"secret question {i}", "output": "yes" if i % 2 else "no"} for i in range(6)]
    learner.learn(rows, name=HOSTILE, test=rows[:2])
    return learner


def test_the_adapter_loads_in_plain_peft_and_its_card_says_what_it_learned(
    desk: ContinualLearner, tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    done = desk.export(tmp_path / "out", base="me/tiny", licence="mit")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder_llama)
    loaded = PeftModel.from_pretrained(model, str(done.folder))
    torch.testing.assert_close(_logits(loaded), _logits(desk.model))
    assert AutoTokenizer.from_pretrained(done.folder).chat_template
    assert {f.name for f in done.folder.iterdir()} == set(done.files)

    data: Any = ModelCard.load(done.folder / "README.md").data
    assert (data.base_model, data.license, data.library_name) == ("me/tiny", "mit", "peft")
    scores = desk.evaluate()
    assert {r.dataset_name: r.metric_value for r in data.eval_results} == {
        name: round(score, 2) for name, score in scores.items()
    }
    facts = json.loads((done.folder / "kifuse.json").read_text())
    assert [task["name"] for task in facts["tasks"]] == ["colour", HOSTILE]
    assert facts["tasks"][1]["sha256"] == desk.record.tasks[1].hashes
    assert facts["summary"].keys() == {"AP", "FWT", "BWT", "forgetting"}

    text = "".join(f.read_text() for f in done.folder.iterdir() if f.suffix != ".safetensors")
    card = (done.folder / "README.md").read_text().split("---\n")[2]
    assert escaped(HOSTILE) in card and "](w" not in card and "www.v" not in card
    assert escaped("<b>|&\n#x") == "&lt;b&gt;\\|&amp; \\#x"
    inputs = [e.input for task in read_stream(tiny_stream) for e in (*task.train, *task.test)]
    places = [str(each) for each in (desk.folder, tiny_folder_llama.parent, Path.home())]
    for private in ("secret question", *places, *inputs):
        assert private not in text


def test_an_earlier_state_is_exported_and_an_export_replaces_only_an_export(
    desk: ContinualLearner, tmp_path: Path
):
    done = desk.export(tmp_path / "out", after="colour")
    assert done.tasks == ["colour"]
    kept = desk.folder / "adapters" / "after-1" / WEIGHTS
    assert (done.folder / WEIGHTS).read_bytes() == kept.read_bytes()
    assert any("--base" in note for note in done.notes) and any("--licence" in note for note in done.notes)
    assert desk.export(tmp_path / "out").tasks == ["colour", HOSTILE]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(RunError, match="holds no export"):
        desk.export(tmp_path / "mine")
    with pytest.raises(RunError, match="no task 'fruit' was learned"):
        desk.export(tmp_path / "out", after="fruit")


def test_another_base_model_is_refused(desk: ContinualLearner, tiny_folder_llama: Path, tmp_path: Path):
    other = shutil.copytree(tiny_folder_llama, tmp_path / "other")
    config = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 1.0}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: is not the file that the training began with"):
        export(desk.folder, tmp_path / "out", model=str(other))
    assert not (tmp_path / "out").exists()


def test_a_merged_model_answers_as_the_adapter_does(
    desk: ContinualLearner, tiny_folder_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done = desk.export(tmp_path / "out", merged=True)
    assert done.probe is not None and done.probe["of_tasks"] and done.probe["precision"] == "float32"
    assert done.probe["same"] == done.probe["questions"] > 2
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    torch.testing.assert_close(_logits(model), _logits(desk.model))
    card: Any = ModelCard.load(done.folder / "README.md").data
    assert card.library_name == "transformers"

    # a base that is kept in bf16 is merged in bf16
    half = shutil.copytree(tiny_folder_llama, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(tiny_folder_llama, dtype=torch.bfloat16).save_pretrained(half)
    rows = [{"input": f"is {i} odd?", "output": "yes" if i % 2 else "no"} for i in range(12)]
    learner = ContinualLearner(str(half), "sequential", tmp_path / "narrow", progress=False, settings=SMALL)
    learner.learn(rows, name="odd")
    done = learner.export(tmp_path / "narrow-out", merged=True, may_differ=32)
    assert {t.dtype for t in load_file(done.folder / "model.safetensors").values()} == {torch.bfloat16}
    assert learner.export(tmp_path / "wide", merged=True, precision="fp32").probe is not None

    # what answers otherwise is refused, and nothing is left of it
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    with pytest.raises(ModelError, match=r"probe answers differ .* nothing was written"):
        desk.export(tmp_path / "wrong", merged=True)
    assert not list(tmp_path.glob("*wrong*"))


@pytest.mark.parametrize(
    ("method", "kind", "loads"),
    [
        ("inclora", "lora", "as one adapter"),
        ("sequential", "dora", "as one adapter"),
        ("sequential", "ia3", "as one adapter"),
        ("progprompt", "lora", "as prompt tuning"),
        ("sequential", "full", "merged"),
        ("osf", "osf", "merged"),
        ("l2p", "lora", "chooses its prompts"),
        ("moe-lora", "lora", "weighs several adapters"),
        ("lfpt5", "lora", "puts its prompt after"),
        ("epi", "lora", "which task's prefix"),
        ("mocl", "lora", "modules of all tasks again"),
        ("sapt", "lora", "weighs the pairs of all tasks again"),
    ],
)
def test_what_loads_where_is_said_of_every_kind(
    method: str, kind: str, loads: str, tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    settings = _small(adapter={"kind": kind, "rank": 2, "alpha": 8, "dropout": 0.0})
    own = {"name": method, "length": 3} if method in ("progprompt", "lfpt5") else method
    options: dict[str, Any] = {"progress": False, "settings": settings}
    learner = ContinualLearner(str(tiny_folder_llama), own, tmp_path / "desk", **options)
    for task in _few(tiny_stream)[: 2 if method in ("inclora", "progprompt") else 1]:
        learner.learn(task)
    merges = loads in ("merged", "as one adapter")
    if merges:
        done = learner.export(tmp_path / "merged", merged=True)
        model = AutoModelForCausalLM.from_pretrained(done.folder)
        torch.testing.assert_close(_logits(model), _logits(learner.model), atol=1e-4, rtol=1e-4)
    else:
        with pytest.raises(ModelError, match="cannot be exported merged"):
            learner.export(tmp_path / "merged", merged=True)
    if loads.startswith("as"):
        done = learner.export(tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(tiny_folder_llama)
        found = _logits(PeftModel.from_pretrained(base, str(done.folder)))
        torch.testing.assert_close(found[:, -17:], _logits(learner.model), atol=1e-5, rtol=1e-5)
        takes = {server.name: not server.refuses for server in done.servers}
        assert takes == dict.fromkeys(("vLLM", "llama.cpp", "Ollama"), method == "inclora")
    else:
        with pytest.raises(ModelError, match="there is no adapter" if loads == "merged" else loads):
            learner.export(tmp_path / "adapter")


def test_prompts_of_an_encoder_decoder_load_as_prompt_tuning(
    tiny_folder_t5: Path, tiny_stream: Path, tmp_path: Path
):
    method = {"name": "progprompt", "length": 3}
    learner = ContinualLearner(str(tiny_folder_t5), method, tmp_path / "desk", progress=False, settings=SMALL)
    for task in _few(tiny_stream):
        learner.learn(task)
    done = learner.export()
    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_folder_t5)
    found = _logits(PeftModel.from_pretrained(base, str(done.folder)))
    torch.testing.assert_close(found, _logits(learner.model), atol=1e-5, rtol=1e-5)
    assert all(server.refuses for server in done.servers)


def test_a_run_is_exported_as_a_learner_is(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path):
    run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "sequential"}))
    done = export(tmp_path / "run")
    assert done.tasks == ["colour", "fruit", "weather"] and done.folder == tmp_path / "run" / "export"
    asked = tmp_path / "run" / "predictions" / "after-3" / "weather.jsonl"
    asked.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"weather\.jsonl: its content is not what was written"):
        export(tmp_path / "run", tmp_path / "other", merged=True)
    weights = tmp_path / "run" / "adapters" / "after-3" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match="SHA-256 differs"):
        export(tmp_path / "run", tmp_path / "other")


PLAIN = {"peft_type": "LORA", "r": 24, "bias": "none"}
PAIR = ["x.q_proj.lora_A.weight", "x.q_proj.lora_B.weight"]


@pytest.mark.parametrize(
    ("config", "tensors", "family", "refusals"),
    [
        (PLAIN, PAIR, "llama", ("", "", "")),
        (PLAIN, PAIR, "qwen2", ("", "", "imports adapters of")),
        ({**PLAIN, "r": 600}, PAIR, "llama", ("rank is 600", "", "")),
        ({**PLAIN, "use_rslora": True}, PAIR, "llama", ("", "alpha/sqrt", "alpha/sqrt")),
        ({**PLAIN, "use_dora": True}, PAIR, "llama", ("DoRA",) * 3),
        ({**PLAIN, "modules_to_save": ["lm_head"]}, PAIR, "llama", ("modules_to_save",) * 3),
        (PLAIN, [*PAIR, "x.lm_head.weight"], "llama", ("neither lora_A nor lora_B",) * 3),
    ],
)
def test_the_files_are_checked_against_what_servers_take(
    config: dict[str, Any], tensors: list[str], family: str, refusals: tuple[str, ...]
):
    found = servers(config, tensors, family, False, "me/base")
    for server, refusal in zip(found, refusals, strict=True):
        assert refusal in server.refuses and bool(refusal) == bool(server.refuses)
        assert bool(server.commands) != bool(server.refuses)
    if not any(refusals):
        assert "--max-lora-rank 32" in found[0].commands[0]


def test_the_shell_exports_and_says_it_as_json(desk: ContinualLearner, tmp_path: Path):
    arguments = ["export", str(desk.folder), "--output", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*arguments, "--json"])
    facts = json.loads(found.stdout)
    assert facts["form"] == "adapter" and facts["tasks"] == ["colour", HOSTILE]
    assert str(tmp_path / "out") in facts["servers"][0]["commands"][0]
    assert "vLLM" in CliRunner().invoke(app, arguments).stdout
    assert CliRunner().invoke(app, ["export", str(tmp_path)]).exit_code == 2
    assert CliRunner().invoke(app, [*arguments, "--push-to-hub", "no name"]).exit_code == 2


def test_an_export_is_uploaded_in_one_commit(desk: ContinualLearner, tmp_path: Path):
    with hub_stand() as hub:
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(kifuse.__file__).parents[1]),
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_made_up",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "*",
        }
        command = [sys.executable, "-m", "kifuse", "export", str(desk.folder), "--output", "out", "--json"]
        command += ["--push-to-hub", "me/desk"]
        options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        hub.files["old.safetensors"] = b"of an earlier export"
        done = subprocess.run(command, check=False, **options)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["commit"] == f"{hub.address}/c/1"
        assert hub.files == {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}
        assert hub.repositories == [{"name": "desk", "organization": "me", "visibility": "private"}]
        assert len(hub.summaries) == 1

        hub.refuses = True
        again = "from kifuse.exporting.hub import push; push('out', 'me/desk', private=True, message='')"
        failed = subprocess.run([sys.executable, "-c", again], check=False, **options)
        told = failed.stderr.splitlines()[-1]
        assert "RunError: push_to_hub: me/desk: " in told and "401" in told and "The export is in out" in told
