"""What every method promises as one callback more in somebody's own Trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, TrainerCallback

from kifuse.driving.batches import ModelCollator
from kifuse.driving.row_memory import RowMemory
from kifuse.driving.target_loss import TargetLoss
from kifuse.errors import RunError
from kifuse.tasks.collator import Collator
from kifuse.tasks.schedule import training_order
from tests.contract.test_contract import _hooks
from tests.months import (
    OWN,
    Die,
    Died,
    make_trainer,
    method_of,
    new_model,
    rows,
    same,
    script,
    weights,
)
from tests.runs import TASKS
from tests.two_tasks import adapted, encoded, learn, load

pytestmark = pytest.mark.usefixtures("quick")
EVERY = pytest.mark.parametrize("name", OWN)
PLAIN = {
    "sequential": {"name": "sequential"},
    "kif that fuses nothing": {"name": "kif", "fusion": "none"},
    "kif that keeps the new": {"name": "kif", "fusion": "average", "average": 0.0},
    "kiflora that fuses nothing": {"name": "kiflora", "fusion": "none", "orthogonality": 0.0},
}
Script = Callable[..., dict[str, Tensor]]


@pytest.fixture
def month(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Script:
    """Runs the script of one month in a folder."""

    def go(
        number: int, settings: dict[str, Any], *, folder: Path = tmp_path, **changes: Any
    ) -> dict[str, Tensor]:
        return script(tiny_tokenizer, folder, number, settings, **changes)

    return go


@dataclass(frozen=True)
class Months:
    """Two months of a script that nothing interrupted: the folder after each, and the weights."""

    folders: tuple[Path, Path]
    weights: tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def whole(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory, quick: None
) -> Callable[[str], Months]:
    """The months of each method, made when first asked for."""
    made: dict[str, Months] = {}

    def get(name: str) -> Months:
        if name not in made:
            folder = tmp_path_factory.mktemp("whole")
            first, second = folder / "first", folder / "second"
            one = script(tiny_tokenizer, first, 1, OWN[name], save_strategy="no")
            shutil.copytree(first, second)
            two = script(tiny_tokenizer, second, 2, OWN[name], save_strategy="no")
            made[name] = Months((first, second), (one, two))
        return made[name]

    return get


@EVERY
def test_months_apart_are_as_months_in_one_process_and_leave_nothing_on_model_and_trainer(
    whole: Callable[[str], Months], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
):
    """The folder carries all that the next task needs: nothing is lost with the process."""
    apart = whole(name).weights
    model = new_model(tiny_tokenizer)
    callback = method_of(OWN[name]).callback(per_task=5)
    hooks = _hooks(model)
    for place, task in enumerate(TASKS[:2]):
        data = rows(tiny_tokenizer, task)
        trainer = make_trainer(tiny_tokenizer, model, tmp_path / "one" / task, data, [callback])
        trainer.train()
        assert same(weights(model), apart[place])
        for holder, called in (
            (trainer, "train"),
            (trainer, "get_train_dataloader"),
            (trainer, "training_step"),
            (trainer, "compute_loss"),
            (trainer.accelerator, "clip_grad_norm_"),
        ):
            assert getattr(holder, called) == getattr(type(holder), called).__get__(holder)
    assert [task["name"] for task in callback.learned] == ["task-1", "task-2"]
    assert _hooks(model) == hooks
    assert all(p.grad is None for p in model.parameters())


@EVERY
def test_going_on_in_the_middle_of_a_task_ends_bit_identical(
    month: Script, whole: Callable[[str], Months], tmp_path: Path, name: str
):
    months, cut = whole(name), tmp_path / "cut"
    shutil.copytree(months.folders[0], cut)
    # in the middle of a round of Recurrent-KIF, and after one
    for dies_at in (3, 5):
        with pytest.raises(Died):
            month(2, OWN[name], folder=cut, dies_at=dies_at, resume=dies_at > 3)
    assert same(month(2, OWN[name], folder=cut, resume=True), months.weights[1])
    kept, again = (folder / "state" / "after-2" for folder in (months.folders[1], cut))
    for file in ("method.safetensors", "memory.jsonl", "weights.safetensors"):
        assert (kept / file).is_file() == (again / file).is_file()
        assert not (kept / file).is_file() or (kept / file).read_bytes() == (again / file).read_bytes()
    told = [json.loads((folder / "state.json").read_text("utf-8")) for folder in (kept, again)]
    assert told[0]["events"] == told[1]["events"]


@pytest.mark.parametrize("name", ["slao", "vr-mcl"])
@pytest.mark.parametrize("kept", [True, False], ids=["with a state folder", "without"])
def test_a_task_cut_short_is_begun_anew_with_the_same_callback(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, kept: bool
):
    """As in a notebook: training breaks off, the weights are put back, the next Trainer starts over."""

    def months(folder: Path, dies_at: int | None) -> dict[str, Tensor]:
        state_dir = folder / "state" if kept else None
        callback = method_of(OWN[name]).callback(per_task=5, state_dir=state_dir)
        model = new_model(tiny_tokenizer)
        for number, task in enumerate(TASKS[:3], start=1):
            data, before = rows(tiny_tokenizer, task), weights(model)
            for step in [dies_at] if dies_at is not None and number != 2 else []:
                callbacks = [callback, Die(step)]
                with pytest.raises(Died):
                    make_trainer(
                        tiny_tokenizer, model, folder / f"{task}-short", data, callbacks, save_strategy="no"
                    ).train()
                model.load_state_dict(before, strict=False)
            make_trainer(tiny_tokenizer, model, folder / task, data, [callback], save_strategy="no").train()
        return weights(model)

    assert same(months(tmp_path / "short", 4), months(tmp_path / "whole", None))


def test_two_scripts_on_one_state_folder_do_not_write_over_each_other(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    state_dir = tmp_path / "state"
    data = rows(tiny_tokenizer, TASKS[0])

    class Meanwhile(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                other = method_of(OWN["kif"]).callback(state_dir=state_dir, name="theirs")
                model = new_model(tiny_tokenizer)
                make_trainer(tiny_tokenizer, model, tmp_path / "theirs", data, [other]).train()

    mine = method_of(OWN["kif"]).callback(state_dir=state_dir, name="mine")
    trainer = make_trainer(
        tiny_tokenizer, new_model(tiny_tokenizer), tmp_path / "mine", data, [mine, Meanwhile()]
    )
    with pytest.raises(RunError, match="another script has written after-1 since this task began"):
        trainer.train()
    kept = json.loads((state_dir / "after-1" / "state.json").read_text("utf-8"))
    assert [task["name"] for task in kept["learned"]] == ["theirs"]


@pytest.mark.parametrize("name", ["kiflora-m", "der++"])
def test_a_task_that_ended_is_ended_again_from_its_last_checkpoint(month: Script, tmp_path: Path, name: str):
    """The process may end after the task and before the script has saved the adapter."""
    settings = OWN[name]
    month(1, settings)
    expected = month(2, settings)
    assert same(month(2, settings, resume=True), expected)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_one_callback_more_without_strength_is_plain_training(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, optim: str
):
    models = [new_model(tiny_tokenizer), new_model(tiny_tokenizer)]
    callback = method_of(PLAIN[name]).callback()
    for task in TASKS[:2]:
        data = rows(tiny_tokenizer, task)
        for model, more in zip(models, ([], [callback]), strict=True):
            trainer = make_trainer(tiny_tokenizer, model, tmp_path / task, data, more, optim=optim)
            trainer.train()
    assert same(*map(weights, models))


# what looks at examples by number sees others where a data set holds each pass over them
@pytest.mark.parametrize("name", [n for n in OWN if "examples" not in method_of(OWN[n]).needs])
def test_the_same_batches_give_the_same_weights_as_kifuse_s_own_training(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    backbone = load(tiny_folder_llama)
    expected, _ = learn(backbone, tiny_stream, OWN[name], tmp_path)
    mine = adapted(backbone)
    first, second, memory = encoded(mine, tiny_stream)
    collate = ModelCollator(
        Collator(mine.tokenizer.pad_token_id, encoder_decoder=False, accepts=set(mine.accepts)),
        constants={"use_cache": False},
    )
    method = method_of(OWN[name])
    steps, mixed = method.old_data == "steps", method.old_data == "mixed"
    monkeypatch.setattr(RowMemory, "draw", lambda *_: [{"example": each} for each in memory])
    callback = None if steps else method.callback()
    for index, examples in enumerate((first, second)):
        # the same order as kifuse's own, laid out as rows of a data set
        together = [*examples, *memory] if mixed and index else examples
        order = training_order([e.length for e in together], epochs=2, batch_size=4, seed=index)
        driver = callback or method.callback(memory=_AsRows(memory if index else []))
        trainer = make_trainer(
            mine.tokenizer,
            mine.model,
            tmp_path / "own",
            _AsRows(examples if mixed else [examples[place] for place in order]),
            [driver],
            data_collator=lambda batch: collate([row["example"] for row in batch]),
            compute_loss_func=TargetLoss(shift=True),
            num_train_epochs=1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
            learning_rate=1e-3,
            seed=index,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            save_strategy="no",
        )
        if mixed:
            trainer._get_train_sampler = lambda *_, order=order: order
        trainer.train()
    for value, wanted in zip(weights(mine.model).values(), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


class _AsRows(list):
    """Encoded examples as rows of a data set."""

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        return {"example": super().__getitem__(index)}
