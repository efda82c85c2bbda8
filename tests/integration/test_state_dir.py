"""What a stand-alone callback does with a state, a checkpoint or an adapter that is not what it was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model

from kifuse.driving.refusals import refuse_packed
from kifuse.errors import KifuseError, RunError
from kifuse.models.loading import narrow_4bit_layer
from tests.months import Die, Died, make_trainer, method_of, new_model, rows, same, script, weights
from tests.runs import METHODS, TASKS
from tests.tiny import build_llama

pytestmark = pytest.mark.usefixtures("quick")


def test_a_checkpoint_that_a_kill_left_broken_is_passed_over(
    tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name in ("ewc", "replay"):
        folder = tmp_path / name
        expected = script(tiny_tokenizer, folder / "whole", 1, METHODS[name])
        with pytest.raises(Died):
            script(tiny_tokenizer, folder / "cut", 1, METHODS[name], dies_at=4)
        # the Trainer writes its own files first, the callback's last
        shutil.rmtree(folder / "cut" / "month-1" / "checkpoint-4" / "kifuse")
        assert same(script(tiny_tokenizer, folder / "cut", 1, METHODS[name], resume=True), expected)
        assert "checkpoint-4 is skipped, as it is incomplete" in caplog.text
        with pytest.raises(Died):
            script(tiny_tokenizer, folder / "early", 1, METHODS[name], dies_at=2)
        state = folder / "early" / "month-1" / "checkpoint-2" / "kifuse" / "state.json"
        state.write_bytes(state.read_bytes()[:-9])
        assert same(script(tiny_tokenizer, folder / "early", 1, METHODS[name], resume=True), expected)
        assert "is complete, so the task starts again" in caplog.text


@pytest.mark.parametrize("name", ["replay", "ewc"])
def test_last_month_s_checkpoint_is_not_taken_for_this_one_s(name: str, tiny_tokenizer: Any, tmp_path: Path):
    """One output_dir for all months, no name, and resume_from_checkpoint=True, as in many a script."""

    def month(number: int, resume: bool | str = False, dies_at: int | None = None) -> None:
        model = new_model(tiny_tokenizer, tmp_path / "adapter" if number > 1 else None)
        callback = method_of(METHODS[name]).callback(state_dir=tmp_path / "state", per_task=5)
        callbacks = [callback] if dies_at is None else [callback, Die(dies_at)]
        data = rows(tiny_tokenizer, TASKS[number - 1])
        trainer = make_trainer(tiny_tokenizer, model, tmp_path / "out", data, callbacks)
        trainer.train(resume_from_checkpoint=resume or None)
        trainer.save_model(str(tmp_path / "adapter"))

    def kept() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "state").glob("after-*/*")}

    month(1)
    after_one = kept()
    with pytest.raises(Died):
        month(2, dies_at=3)
    with pytest.raises(RunError, match=r"checkpoint-6 is a checkpoint of task 1, 'task-1', .* other rows"):
        month(2, resume=True)
    assert kept() == after_one
    month(2, resume=str(tmp_path / "out" / "checkpoint-2"))
    learned = json.loads((tmp_path / "state" / "after-2" / "state.json").read_text("utf-8"))["learned"]
    assert [task["name"] for task in learned] == ["task-1", "task-2"]


def test_a_script_that_is_started_twice_does_not_learn_its_task_again(tiny_tokenizer: Any, tmp_path: Path):
    script(tiny_tokenizer, tmp_path, 1, METHODS["ewc"])
    model = new_model(tiny_tokenizer, tmp_path / "month-1" / "adapter")

    def again(**named: str) -> int:
        callback = method_of(METHODS["ewc"]).callback(state_dir=tmp_path / "state", **named)
        data = rows(tiny_tokenizer, TASKS[0])
        make_trainer(tiny_tokenizer, model, tmp_path / "again", data, [callback]).train()
        return len(callback.learned)

    with pytest.raises(RunError, match=r"were already learned, as task 'task-1'.*callback\(name=\.\.\.\)"):
        again()
    assert not (tmp_path / "state" / "after-2").exists()
    assert again(name="once more") == 2


@pytest.mark.parametrize("lost", ["removed", "emptied", "mistyped"])
def test_a_lost_state_is_no_first_task(lost: str, tiny_tokenizer: Any, tmp_path: Path):
    script(tiny_tokenizer, tmp_path, 1, METHODS["ewc"])
    state = tmp_path / "state"
    if lost == "emptied":
        for file in [*state.glob("after-*/*")]:
            file.unlink()
    else:
        state.rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"state: holds no state, but the adapter was trained before"):
        script(tiny_tokenizer, tmp_path, 2, METHODS["ewc"])
    model = new_model(tiny_tokenizer, tmp_path / "month-1" / "adapter")
    callback = method_of(METHODS["ewc"]).callback(state_dir=tmp_path / "new", first=True)
    make_trainer(tiny_tokenizer, model, tmp_path / "out", rows(tiny_tokenizer, TASKS[1]), [callback]).train()
    assert [task["number"] for task in callback.learned] == [1]


def test_a_newest_state_without_its_description_is_refused_by_name(tiny_tokenizer: Any, tmp_path: Path):
    for month in (1, 2):
        script(tiny_tokenizer, tmp_path, month, METHODS["sequential"])
    (tmp_path / "state" / "after-2" / "state.json").unlink()
    with pytest.raises(KifuseError, match=r"after-2.state\.json: no such file"):
        script(tiny_tokenizer, tmp_path, 3, METHODS["sequential"])


def test_two_processes_do_not_train_with_one_state_folder(tiny_tokenizer: Any, tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from kifuse.driving.state_dir import hold\n"
        "folder = Path(sys.argv[1]); folder.mkdir(); hold(folder); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="state: another process trains with this state_dir"):
            script(tiny_tokenizer, tmp_path, 1, METHODS["sequential"])
    finally:
        other.kill()
        other.wait()
    script(tiny_tokenizer, tmp_path, 1, METHODS["sequential"])


def test_the_adapter_may_have_another_name_in_the_next_month(tiny_tokenizer: Any, tmp_path: Path):
    for name in ("ewc", "kif"):
        folder = tmp_path / name
        script(tiny_tokenizer, folder, 1, METHODS[name])
        shutil.copytree(folder / "state", folder / "copy")
        expected = script(tiny_tokenizer, folder, 2, METHODS[name])
        adapter = str(folder / "month-1" / "adapter")
        base = build_llama(len(tiny_tokenizer))
        model = PeftModel.from_pretrained(base, adapter, adapter_name="desk", is_trainable=True)
        callback = method_of(METHODS[name]).callback(state_dir=folder / "copy", per_task=5)
        data = rows(tiny_tokenizer, TASKS[1])
        make_trainer(tiny_tokenizer, model, folder / "other", data, [callback]).train()
        found = {key.replace(".desk.", ".default."): value for key, value in weights(model).items()}
        assert same(found, expected)


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    ],
    ids=["LoHa", "LoRA beside a whole layer"],
)
@pytest.mark.parametrize("name", ["ewc", "vr-mcl"])
def test_adapters_of_any_kind_may_have_another_name_in_the_next_month(
    tiny_tokenizer: Any, tmp_path: Path, config: Any, name: str
):
    """What is kept by a parameter's name is found again, and `vr-mcl` calls the model by its own names."""

    def learn(model: Any, month: int, state: Path) -> Any:
        callback = method_of(METHODS[name]).callback(state_dir=state, per_task=5)
        data = rows(tiny_tokenizer, TASKS[month])
        changes = {"max_steps": 2, "save_strategy": "no"}
        make_trainer(tiny_tokenizer, model, tmp_path / "out", data, [callback], **changes).train()
        return model

    torch.manual_seed(0)
    first = learn(get_peft_model(build_llama(len(tiny_tokenizer)), config), 0, tmp_path / "state")
    first.save_pretrained(str(tmp_path / "adapter"))
    found = []
    for called in ("default", "desk"):
        shutil.copytree(tmp_path / "state", tmp_path / called)
        base, adapter = build_llama(len(tiny_tokenizer)), str(tmp_path / "adapter")
        model = PeftModel.from_pretrained(base, adapter, adapter_name=called, is_trainable=True)
        learned = weights(learn(model, 1, tmp_path / called))
        found.append({key.replace(f".{called}", ""): value for key, value in learned.items()})
    assert same(*found)


def test_another_base_model_of_the_same_shape_is_refused(tiny_tokenizer: Any, tmp_path: Path):
    script(tiny_tokenizer, tmp_path, 1, METHODS["sequential"])
    adapter, data = tmp_path / "month-1" / "adapter", rows(tiny_tokenizer, TASKS[1])
    model = new_model(tiny_tokenizer, adapter)
    with torch.no_grad():
        model.get_base_model().lm_head.weight.mul_(1.1)
    for other, word in ((model, "this is not the base model of the earlier tasks"), (None, "")):
        callback = method_of(METHODS["sequential"]).callback(state_dir=tmp_path / "state")
        given = other or new_model(tiny_tokenizer, adapter).to(torch.bfloat16).to(torch.float32)
        trainer = make_trainer(tiny_tokenizer, given, tmp_path / "out", data, [callback])
        # what was rounded to bfloat16 is the same base, but the adapter is not that of the last task
        with pytest.raises(RunError, match=word or "the model's trainable weights are others"):
            trainer.train()


def test_a_checkpoint_without_the_optimizer_is_said_not_to_go_on_exactly(
    tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for only in (False, True):
        folder = tmp_path / str(only)
        with pytest.raises(Died):
            script(tiny_tokenizer, folder, 1, METHODS["sequential"], dies_at=3, save_only_model=only)
        script(tiny_tokenizer, folder, 1, METHODS["sequential"], resume=True, save_only_model=only)
        assert ("holds no state of the optimizer (save_only_model)" in caplog.text) is only


def test_layers_that_cannot_take_single_examples_are_refused_before_the_training(tiny_tokenizer: Any):
    class Linear4bit(torch.nn.Linear):
        """As that of bitsandbytes, as far as it is looked at."""

        support_avx512bf16_for_cpu = True

    model = torch.nn.Sequential(Linear4bit(32, 8))
    with pytest.raises(RunError, match=r"EWC looks at single .* its 32 inputs are no multiple of 64"):
        refuse_packed(method_of(METHODS["ewc"]), model)
    refuse_packed(method_of(METHODS["kif"]), model)
    refuse_packed(method_of(METHODS["ewc"]), torch.nn.Sequential(Linear4bit(128, 32)))
    assert "its 8 outputs are no multiple of 32" in narrow_4bit_layer(torch.nn.Sequential(Linear4bit(128, 8)))
    Linear4bit.support_avx512bf16_for_cpu = False  # then nothing is packed
    assert not narrow_4bit_layer(model)
