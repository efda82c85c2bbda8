"""A run or a learner that begins from a LoRA adapter made elsewhere, and its result in a plain Trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from kifuse import ContinualLearner, Task, run
from kifuse.adapters.folder import CONFIG, WEIGHTS
from kifuse.config import load_config
from kifuse.errors import ConfigError, KifuseError, ModelError, RunError
from tests.learners import Make
from tests.runs import make_config

pytestmark = pytest.mark.usefixtures("quick")

LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj"]}
SMALL = {
    "model": {"precision": "fp32", "adapter": {"dropout": 0.0}},
    "training": {"learning_rate": 0.01, "epochs": 1, "batch_size": 4},
    "evaluation": {"max_new_tokens": 2},
    "data": {"max_input": 64, "max_target": 8},
}
OWN_ADAPTERS = ("l2p", "lfpt5", "moe-lora", "progprompt", "osf")
Peft = Callable[..., Path]


@pytest.fixture
def plain(tiny_folder_llama: Path, tmp_path: Path) -> Peft:
    """A PEFT adapter as others make it, with weights that do something."""

    def made(name: str = "elsewhere", kind: type = LoraConfig, **settings: Any) -> Path:
        model = AutoModelForCausalLM.from_pretrained(tiny_folder_llama)
        torch.manual_seed(1)
        own = {**LORA, **settings} if kind is LoraConfig else settings
        model = get_peft_model(model, kind(task_type="CAUSAL_LM", **own))
        for p in model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, std=0.3)
        model.save_pretrained(str(tmp_path / name))
        return tmp_path / name

    return made


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 20)[None]).logits


def _on_base(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))


def test_what_was_learned_elsewhere_is_gone_on_with_and_goes_back(
    make: Make, tasks: list[Task], plain: Peft, tiny_folder_llama: Path, tmp_path: Path
):
    base, elsewhere = tiny_folder_llama, plain()
    learner = make("replay", adapter=elsewhere, settings=SMALL)
    adapter = learner.config.model.adapter
    assert (adapter.rank, adapter.alpha, adapter.target_modules) == (3, 6, ["k_proj", "q_proj"])
    torch.testing.assert_close(_logits(learner.model), _logits(_on_base(base, elsewhere)))
    start = learner.evaluate([tasks[0]])
    report = learner.learn(tasks[0])
    assert report.before == start, "the first score is the adapter's"
    assert {f.name for f in learner.adapter.iterdir()} >= {CONFIG, WEIGHTS}

    # ... in a plain script ...
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(learner.adapter), is_trainable=True
    )
    torch.testing.assert_close(_logits(model), _logits(learner.model))
    rows = [{"input_ids": (ids := tokenizer(e.input)["input_ids"]), "labels": ids} for e in tasks[1].train]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "script"),
        max_steps=2,
        per_device_train_batch_size=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()  # pyright: ignore[reportArgumentType]
    model.save_pretrained(str(tmp_path / "script"))

    # ... and back
    again = make("recurrent-kif", adapter=tmp_path / "script", settings=SMALL, output_dir=tmp_path / "again")
    torch.testing.assert_close(_logits(again.model), _logits(model))
    assert again.learn(tasks[1]).accepted


def test_the_folder_keeps_it_and_knows_its_files(make: Make, tasks: list[Task], plain: Peft, tmp_path: Path):
    elsewhere = plain()
    learner = make("sequential", adapter=elsewhere, settings=SMALL)
    start = _logits(learner.model)
    learner.learn(tasks[0])
    assert "counts as what was learned before the first task" in (learner.folder / "log.txt").read_text()
    moved = elsewhere.rename(tmp_path / "moved")
    learner = ContinualLearner.load(learner.folder, progress=False)
    learner.rollback(0)
    assert torch.equal(_logits(learner.model), start)
    assert learner.learn(tasks[0]).accepted

    # the same adapter, wherever it lies; not another one, nor none
    assert make("sequential", adapter=moved, settings=SMALL).learned == 1
    with pytest.raises(RunError, match=r"model\.adapter\.from"):
        make("sequential", settings=SMALL)
    other = plain("other", r=3)
    (other / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ModelError, match=r"is not the file that .* started from"):
        make("sequential", adapter=other, settings=SMALL)

    own = learner.folder / "adapters" / "after-0" / WEIGHTS
    own.write_bytes(own.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(RunError, match=r"after-0.*SHA-256 differs"):
        ContinualLearner.load(learner.folder, progress=False)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        (IA3Config, {"target_modules": ["k_proj"], "feedforward_modules": []}, "peft_type: found 'IA3'"),
        (LoraConfig, {"modules_to_save": ["lm_head"]}, "modules_to_save: found .* beside LoRA"),
        (LoraConfig, {"rank_pattern": {"q_proj": 2}}, "rank_pattern: found .* from layer to layer"),
        (LoraConfig, {"bias": "lora_only"}, "bias: found 'lora_only'"),
        (LoraConfig, {"use_dora": True, "use_rslora": True}, "found both"),
    ],
)
def test_an_adapter_that_is_no_plain_lora_is_refused_with_the_reason(
    make: Make, plain: Peft, kind: type, settings: dict[str, Any], reason: str, tmp_path: Path
):
    with pytest.raises(ModelError, match=reason):
        make("sequential", adapter=plain(kind=kind, **settings), settings=SMALL)
    assert not (tmp_path / "learner").exists()


def test_what_cannot_be_gone_on_with_for_other_reasons_is_refused(make: Make, plain: Peft, tmp_path: Path):
    folder = plain()
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    with pytest.raises(ModelError, match="changes the base's own weights"):
        make("sequential", adapter=folder, settings=SMALL)
    (folder / CONFIG).write_text(json.dumps({**config, "r": 10**9}))
    with pytest.raises(ModelError, match="found 1000000000, expected sizes from 0 to 1024"):
        make("sequential", adapter=folder, settings=SMALL)
    (folder / CONFIG).write_text(json.dumps(config))
    wanted = {**SMALL, "model": {"adapter": {"rank": 16}}}
    with pytest.raises(ConfigError, match=r"model\.adapter\.rank: found 16, expected 3"):
        make("sequential", adapter=folder, settings=wanted)
    with pytest.raises(ModelError, match="no such folder"):
        make("sequential", adapter=tmp_path / "nowhere", settings=SMALL)
    for name in OWN_ADAPTERS:
        with pytest.raises(ModelError, match="has no LoRA that could start"):
            make(name, adapter=folder, settings=SMALL)
    tensors = {n: t[:, :-1] if "lora_A" in n else t for n, t in load_file(folder / WEIGHTS).items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / WEIGHTS)
    with pytest.raises(ModelError, match="has shape"):
        make("sequential", adapter=folder, settings=SMALL)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {"layers_to_transform": [0]}])
def test_kinds_of_lora_are_gone_on_with_as_they_are(
    make: Make, tasks: list[Task], plain: Peft, settings: dict[str, Any], tiny_folder_llama: Path
):
    elsewhere = plain(**settings)
    learner = make("sequential", adapter=elsewhere, settings=SMALL)
    torch.testing.assert_close(_logits(learner.model), _logits(_on_base(tiny_folder_llama, elsewhere)))
    learner.learn(tasks[0])
    torch.testing.assert_close(_logits(learner.model), _logits(_on_base(tiny_folder_llama, learner.adapter)))


def test_a_stack_has_it_as_its_first_pair(
    make: Make, tasks: list[Task], plain: Peft, tiny_folder_llama: Path
):
    elsewhere = plain()
    learner = make("o-lora", adapter=elsewhere, settings=SMALL)
    start = _logits(learner.model)
    torch.testing.assert_close(start, _logits(_on_base(tiny_folder_llama, elsewhere)))
    learner.learn(tasks[0])
    before, after = load_file(elsewhere / WEIGHTS), load_file(learner.adapter / WEIGHTS)
    for name, tensor in before.items():
        part = after[name][:3] if "lora_A" in name else after[name][:, :3]
        assert torch.equal(part, tensor), "what was learned elsewhere is frozen"
        assert after[name].numel() == 2 * tensor.numel()
    learner = ContinualLearner.load(learner.folder, progress=False)
    learner.learn(tasks[1])
    learner.rollback(0)
    assert torch.equal(_logits(learner.model), start)


@pytest.mark.parametrize(
    "name", ["aimmerging", "ema", "forever", "kiflora", "lwf", "migu", "slao", "vr-mcl", "weight-ensemble"]
)
def test_methods_that_treat_later_tasks_otherwise_do_so_from_the_first(
    make: Make, tasks: list[Task], plain: Peft, name: str, tmp_path: Path
):
    learner = make(name, adapter=plain(), settings=SMALL)
    small = replace(tasks[0], train=tasks[0].train[:4], test=tasks[0].test[:1], dev=())
    assert learner.learn(small).accepted


def test_a_run_begins_from_it_and_goes_on_without_it(
    plain: Peft, tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    elsewhere = plain()
    settings = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "replay"})
    sections = settings.model_dump(mode="json")
    sections["model"]["adapter"] = {"from": str(elsewhere), "dropout": 0.0}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(sections))
    record = run(load_config(file, check_files=True))
    assert record.model["adapter"]["files"].keys() == {CONFIG, WEIGHTS}
    assert record.config["model"]["adapter"]["from"] == str(elsewhere)
    shutil.rmtree(elsewhere)
    again = run(load_config(tmp_path / "run" / "config.yaml"))
    assert [s.score for s in again.scores] == [s.score for s in record.scores]
    with pytest.raises(KifuseError, match="no such folder"):
        load_config(file, {"output": str(tmp_path / "new")}, check_files=True)
