"""The stand-alone callback: how it finds its Trainer, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Trainer, default_data_collator

from kifuse.errors import KifuseError, RunError
from kifuse.methods.derpp import DERPP
from kifuse.methods.ewc import EWC
from kifuse.methods.joint import Joint
from kifuse.methods.kif import KIF
from kifuse.methods.recurrent_kif import RecurrentKIF
from kifuse.methods.replay import Replay
from kifuse.methods.sequential import Sequential
from kifuse.tasks import Example, MemoryBuffer, Task
from kifuse.tasks.encoding import Encoder
from tests.months import Died, make_trainer, new_model, rows, same, script, weights
from tests.runs import TASKS

pytestmark = pytest.mark.usefixtures("quick")
RKIF = {"name": "recurrent-kif", "inner_steps": 2}
Train = Callable[..., Trainer]


@pytest.fixture
def train(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Train:
    """Trains a new model, or a given one, with callbacks."""

    def go(*callbacks: Any, data: Any = None, model: Any = None, **changes: Any) -> Trainer:
        data = rows(tiny_tokenizer, "colour") if data is None else data
        model = model or new_model(tiny_tokenizer, dropout=0.0)
        trainer = make_trainer(tiny_tokenizer, model, tmp_path / "out", data, callbacks, **changes)
        trainer.train()
        return trainer

    return go


# ---- the Trainer ----


def test_a_callback_finds_the_trainer_that_is_made_with_it(train: Train):
    callback = Sequential().callback()
    trainer = train(callback)
    assert callback.trainer is trainer and callback.context.step == 6


def test_a_callback_that_is_added_later_finds_its_trainer(tiny_tokenizer: Any, tmp_path: Path):
    class Mine(Trainer):
        """A user's own subclass."""

    callback = Sequential().callback()
    usual = make_trainer(tiny_tokenizer, new_model(tiny_tokenizer), tmp_path, rows(tiny_tokenizer, "colour"))
    trainer = Mine(
        model=usual.model,
        args=usual.args,
        train_dataset=usual.train_dataset,
        data_collator=usual.data_collator,
    )
    trainer.add_callback(callback)
    trainer.train()
    assert callback.trainer is trainer


def test_of_two_trainers_each_callback_finds_its_own(tiny_tokenizer: Any, tmp_path: Path):
    callbacks = [Sequential().callback(), Sequential().callback()]
    data = rows(tiny_tokenizer, "colour")
    trainers = [
        make_trainer(tiny_tokenizer, new_model(tiny_tokenizer), tmp_path, data, [each]) for each in callbacks
    ]
    assert [callback.trainer for callback in callbacks] == trainers


def test_a_second_train_of_one_trainer_is_refused(train: Train):
    trainer = train(Sequential().callback())
    with pytest.raises(RunError, match="Make a new Trainer for each task"):
        trainer.train()


# ---- what cannot work ----


def test_a_method_that_is_given_twice_or_in_the_place_of_its_callback_is_refused(
    train: Train, tmp_path: Path
):
    mine = KIF().callback(state_dir=tmp_path)
    for twice in (mine, KIF().callback()):
        with pytest.raises(RunError, match=r"KIF: the Trainer has the callback of this method twice"):
            train(mine, twice)
    with pytest.raises(RunError, match="two callbacks of the Trainer have this state_dir, KIF and EWC"):
        train(mine, EWC().callback(state_dir=tmp_path))
    for method in (KIF(), KIF):
        with pytest.raises(RunError, match=r"callbacks=\[KIF\(\.\.\.\)\.callback\(state_dir="):
            train(method)


def test_a_folder_in_the_home_folder_is_found(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    train(Sequential().callback(state_dir="~/desk"), max_steps=1)
    assert (tmp_path / "home" / "desk" / "after-1" / "state.json").is_file() and not Path("~").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (
            {
                "load_best_model_at_end": True,
                "eval_strategy": "steps",
                "eval_steps": 2,
                "label_names": ["labels"],
            },
            "load_best_model_at_end: .* Turn it off",
        ),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: .* set per_device_train_batch_size"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint: .* set save_steps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_set_ups_that_cannot_work_are_refused_when_the_trainer_is_made(
    tiny_tokenizer: Any, tmp_path: Path, changes: dict[str, Any], word: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(Trainer, "_validate_args", lambda self: None)  # it would ask for an eval_dataset
    callback = Sequential().callback()
    with pytest.raises(RunError, match=word):
        make_trainer(
            tiny_tokenizer,
            new_model(tiny_tokenizer),
            tmp_path,
            rows(tiny_tokenizer, "colour"),
            [callback],
            **changes,
        )


@pytest.mark.parametrize(
    ("holder", "name", "value", "word"),
    [
        ("args", "fsdp", True, "fsdp: .* plain data parallelism"),
        ("trainer", "is_fsdp_enabled", True, "fsdp: .* plain data parallelism"),
        ("args", "_n_gpu", 2, r"DataParallel.*CUDA_VISIBLE_DEVICES"),
        ("args", "optim", "adalomo", "optim: .* adamw_torch"),
        ("args", "optim", "galore_adamw_layerwise", "optim: .* adamw_torch"),
    ],
)
def test_set_ups_of_other_machines_are_refused(
    tiny_tokenizer: Any, tmp_path: Path, holder: str, name: str, value: Any, word: str
):
    data = rows(tiny_tokenizer, "colour")
    trainer = make_trainer(tiny_tokenizer, new_model(tiny_tokenizer), tmp_path, data)
    object.__setattr__(trainer.args if holder == "args" else trainer, name, value)
    with pytest.raises(RunError, match=word):
        Sequential().callback().attach(trainer)


@pytest.mark.parametrize(
    ("configuration", "word"),
    [
        ({"train_batch_size": 4}, "stage 0.* plain data parallelism"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param"),
        ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}, "fp16.* bf16 or fp32"),
        ({"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}, "gradient_clipping: 'auto'"),
    ],
)
def test_set_ups_of_deepspeed_are_refused(
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configuration: dict[str, Any],
    word: str,
):
    data = rows(tiny_tokenizer, "colour")
    trainer = make_trainer(tiny_tokenizer, new_model(tiny_tokenizer), tmp_path, data)
    plugin = SimpleNamespace(deepspeed_config=configuration)
    state = SimpleNamespace(deepspeed_plugin=plugin)
    monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(state=state))
    with pytest.raises(RunError, match=f"deepspeed: .*{word}"):
        Sequential().callback().attach(trainer)


def test_label_smoothing_works_in_memory_steps_too(train: Train, tiny_tokenizer: Any):
    memory = [rows(tiny_tokenizer, "fruit")[place] for place in range(4)]
    callback = RecurrentKIF(inner_steps=2).callback(memory=memory)
    trainer = train(callback, label_smoothing_factor=0.1)
    assert callback.context.replayed == 12
    assert all(torch.isfinite(value).all() for value in weights(trainer.model).values())


@pytest.mark.parametrize(("first", "then"), [("bf16", "full precision"), ("full precision", "bf16")])
def test_a_switch_of_precision_in_one_process_is_refused(
    train: Train, tiny_tokenizer: Any, first: str, then: str
):
    model = new_model(tiny_tokenizer)
    train(Sequential().callback(), model=model, bf16=first == "bf16", max_steps=1)
    train(Sequential().callback(), model=model, bf16=first == "bf16", max_steps=1)
    with pytest.raises(RunError, match=f"should train in {then}.* to {first}.*Use one precision"):
        train(Sequential().callback(), model=model, bf16=then == "bf16", max_steps=1)


def test_a_method_that_needs_all_tasks_at_once_is_refused():
    with pytest.raises(RunError, match=r"Joint .*Put all tasks into train_dataset.*kifuse run"):
        Joint().callback()


def test_a_method_without_memory_is_given_none(tiny_tokenizer: Any):
    with pytest.raises(RunError, match="memory: Sequential reads no old data"):
        Sequential().callback(memory=rows(tiny_tokenizer, "fruit"))
    with pytest.raises(RunError, match="memory: KIF reads no old data with these settings"):
        KIF().callback(memory=[])


def test_a_model_with_nothing_to_train_is_refused(train: Train, tiny_tokenizer: Any):
    model = new_model(tiny_tokenizer)
    model.requires_grad_(False)
    with pytest.raises(RunError, match="is_trainable=True"):
        train(Sequential().callback(), model=model)


def test_a_stream_of_rows_is_refused_where_single_examples_are_looked_at(train: Train, tiny_tokenizer: Any):
    data = rows(tiny_tokenizer, "colour")
    stream = IterableDataset.from_generator(lambda: iter(data))
    with pytest.raises(RunError, match=r"is a stream.*Use a data set with a length"):
        train(EWC().callback(), data=stream, max_steps=2)
    assert train(EWC(examples=3).callback(), data=data, max_steps=2).state.global_step == 2


def test_a_stream_of_rows_is_refused_where_rows_are_to_be_kept(train: Train, tiny_tokenizer: Any):
    data = rows(tiny_tokenizer, "colour")
    stream = IterableDataset.from_generator(lambda: iter(data))
    with pytest.raises(RunError, match=r"is a stream.*give the rows of earlier tasks as memory="):
        train(RecurrentKIF().callback(), data=stream, max_steps=2)
    memory = [data[0], data[1]]
    assert train(RecurrentKIF().callback(memory=memory), data=stream, max_steps=2).state.global_step == 2


@pytest.mark.parametrize("at", [0, 3])
def test_rows_that_no_file_can_keep_are_refused_before_the_first_step(
    at: int, train: Train, tiny_tokenizer: Any
):
    data = [dict(row) for row in rows(tiny_tokenizer, "colour")]
    data[at]["picture"] = nn.Linear(1, 1)
    callback = RecurrentKIF().callback(per_task=len(data))
    with pytest.raises(RunError, match=f"row {at}, column 'picture' of the training data holds a Linear"):
        train(callback, data=data, remove_unused_columns=False)
    assert callback.context is None


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_first_step(train: Train, tmp_path: Path):
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    callback = Sequential().callback(state_dir=tmp_path / "state")
    with pytest.raises(KifuseError, match="cannot be written"):
        train(callback)
    assert callback.context is None


# ---- the memory ----


def _kept(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "memory.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()][1:]


def test_the_memory_keeps_the_share_of_each_tasks_training_rows(tiny_tokenizer: Any, tmp_path: Path):
    for month in (1, 2):
        script(tiny_tokenizer, tmp_path, month, RKIF)
    found = _kept(tmp_path / "state" / "after-2")
    trained = [
        {key: row[key] for key in ("input_ids", "attention_mask", "labels")}
        for task in TASKS[:2]
        for row in rows(tiny_tokenizer, task)
    ]
    assert len(found) == 10 and all(row in trained for row in found)
    assert [row in trained[:12] for row in found] == [True] * 5 + [False] * 5
    again = tmp_path / "again"
    for month in (1, 2):
        script(tiny_tokenizer, again, month, RKIF)
    assert _kept(again / "state" / "after-2") == found
    script(tiny_tokenizer, tmp_path / "other seed", 1, RKIF, seed=1)
    assert _kept(tmp_path / "other seed" / "state" / "after-1") != found[:5]


def test_a_method_without_memory_keeps_no_row(tiny_tokenizer: Any, tmp_path: Path):
    script(tiny_tokenizer, tmp_path, 1, {"name": "kif"})
    assert not list(tmp_path.rglob("memory.jsonl"))


def test_only_the_newest_states_are_kept(tiny_tokenizer: Any, tmp_path: Path):
    for month in (1, 2, 3):
        script(tiny_tokenizer, tmp_path, month, {"name": "kif"})
    assert sorted(path.name for path in (tmp_path / "state").glob("[!.]*")) == ["after-2", "after-3"]


def test_memory_may_be_given_in_several_forms(train: Train, tiny_tokenizer: Any):
    kept = rows(tiny_tokenizer, "fruit").select(range(4))
    forms = [kept, list(kept), kept.with_format("torch")]
    found = [weights(train(RecurrentKIF(inner_steps=2).callback(memory=memory)).model) for memory in forms]
    assert all(same(found[0], other) for other in found[1:])
    assert not same(found[0], weights(train(Sequential().callback()).model))


def test_a_memory_buffer_is_tokenised_for_the_model(train: Train, tiny_tokenizer: Any):
    examples = tuple(Example(f"Which fruit? {i}", "", "", ("apple",)) for i in range(3))
    buffer = MemoryBuffer(share=1.0)
    buffer.add(Task("fruit", examples, (), (), None, "exact_match"))
    callback = RecurrentKIF(inner_steps=3).callback(memory=buffer)
    train(callback)
    (row, *_), encoder = callback._rows, Encoder(tiny_tokenizer, encoder_decoder=False)
    encoded = encoder.encode(examples[0])
    assert row["input_ids"] == encoded.input_ids + encoded.target_ids
    assert row["labels"] == [-100] * len(encoded.input_ids) + encoded.target_ids
    assert callback.context.replayed == 6
    with pytest.raises(RunError, match=r"Trainer\(processing_class=tokenizer\)"):
        train(RecurrentKIF().callback(memory=buffer), data_collator=default_data_collator)


def test_memory_rows_without_a_column_are_refused(train: Train, tiny_tokenizer: Any):
    rest = rows(tiny_tokenizer, "fruit").remove_columns("labels")
    with pytest.raises(RunError, match="memory: row 0 has no column 'labels'"):
        train(RecurrentKIF().callback(memory=rest))
    with pytest.raises(RunError, match="memory: the rows hold text, but no 'input_ids'"):
        train(RecurrentKIF().callback(memory=[{"text": "raw"}]))


def test_replay_is_training_on_the_task_s_rows_and_the_others(train: Train, tiny_tokenizer: Any):
    own, old = rows(tiny_tokenizer, "colour"), rows(tiny_tokenizer, "fruit").select(range(4))
    found = train(Replay().callback(memory=old), data=own)
    expected = train(data=concatenate_datasets([own, old]))
    assert found.state.global_step == expected.state.global_step == 8
    assert same(weights(found.model), weights(expected.model))
    assert found.train_dataset is own
    assert same(weights(train(Replay().callback(), data=own).model), weights(train(data=own).model))


def test_replay_in_a_trainer_that_made_its_loader_too_early_is_refused(tiny_tokenizer: Any, tmp_path: Path):
    own, old = rows(tiny_tokenizer, "colour"), rows(tiny_tokenizer, "fruit")
    for attached in (False, True):
        callback = Replay().callback(memory=old)
        trainer = make_trainer(tiny_tokenizer, new_model(tiny_tokenizer), tmp_path, own, max_steps=1)
        trainer.add_callback(callback)
        if attached:
            callback.attach(trainer)
            trainer.train()
        else:
            with pytest.raises(RunError, match=r"not in the training data.*callback\.attach\(trainer\)"):
                trainer.train()


def test_what_is_stored_with_rows_needs_rows_that_the_callback_keeps(tiny_tokenizer: Any):
    with pytest.raises(RunError, match=r"memory: DERPP stores something with each row.*Leave memory= out"):
        DERPP().callback(memory=rows(tiny_tokenizer, "fruit"))


def test_rows_of_months_with_other_columns_are_not_mixed(train: Train, tiny_tokenizer: Any):
    callback = Replay().callback()
    first = rows(tiny_tokenizer, "fruit").remove_columns("attention_mask")
    model = train(callback, data=first).model
    with pytest.raises(RunError, match="memory: row 0 has no column 'attention_mask'"):
        train(callback, model=model)


def test_a_later_task_without_rows_of_earlier_ones_is_refused(
    tiny_tokenizer: Any, tmp_path: Path, train: Train
):
    callback = RecurrentKIF().callback(memory=[])
    model = train(callback).model
    with pytest.raises(RunError, match=r"this is task 2.*no rows of earlier tasks"):
        train(callback, model=model)


def test_memory_steps_are_divided_as_the_trainers_own(train: Train, tiny_tokenizer: Any):
    """Accumulation changes nothing: a memory batch has the loss that a training batch of it would have."""
    found = []
    for size, parts in ((4, 1), (2, 2), (1, 4)):
        callback = RecurrentKIF(inner_steps=2).callback(memory=rows(tiny_tokenizer, "fruit"))
        trainer = train(
            callback,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            train_sampling_strategy="sequential",
        )
        found.append(weights(trainer.model))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


class Numbers(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A regression problem, in tensors."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.arange(3.0) * index / 10, "labels": torch.tensor([index / 10])}


class Line(nn.Module):
    """A model that divides its loss by the rows of a part, as many do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


def test_rows_of_tensors_and_a_model_of_ones_own(tmp_path: Path):
    found = []
    for apart in (False, True):
        model, callback = Line(), RecurrentKIF(inner_steps=2).callback(per_task=4)
        folder = tmp_path / str(apart)
        for month in (1, 2):
            if apart:
                named = {"state_dir": folder / "state", "name": f"task-{month}"}
                callback = RecurrentKIF(inner_steps=2).callback(per_task=4, **named)
            changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1} if apart else {}
            make_trainer(
                None,  # type: ignore[arg-type]
                model,
                folder / str(month),
                Numbers(),
                [callback],
                data_collator=None,
                train_sampling_strategy="sequential",
                **changes,
            ).train()
        assert callback.context.replayed == 12
        found.append(weights(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


# ---- going on ----


def test_a_checkpoint_without_the_methods_state_is_refused(tiny_tokenizer: Any, tmp_path: Path):
    script(tiny_tokenizer, tmp_path, 1, RKIF)
    with pytest.raises(Died):
        script(tiny_tokenizer, tmp_path, 2, RKIF, dies_at=5)
    month = tmp_path / "month-2"
    shutil.rmtree(month / "checkpoint-4" / "kifuse")
    with pytest.raises(
        RunError, match=r"checkpoint-4.kifuse.state\.json: no such file.*Resume from .*checkpoint-2"
    ):
        script(tiny_tokenizer, tmp_path, 2, RKIF, resume=str(month / "checkpoint-4"))
    shutil.rmtree(month / "checkpoint-2" / "kifuse")
    with pytest.raises(RunError, match="Start without resume_from_checkpoint"):
        script(tiny_tokenizer, tmp_path, 2, RKIF, resume=str(month / "checkpoint-4"))


def test_a_damaged_state_is_named_and_not_loaded(tiny_tokenizer: Any, tmp_path: Path):
    script(tiny_tokenizer, tmp_path, 1, RKIF)
    folder = tmp_path / "state" / "after-1"
    whole = (folder / "memory.jsonl").read_bytes()
    (folder / "memory.jsonl").write_bytes(whole[:-20])
    with pytest.raises(RunError, match=r"memory\.jsonl: its content is not what was written"):
        script(tiny_tokenizer, tmp_path, 2, RKIF)
    (folder / "memory.jsonl").unlink()
    with pytest.raises(RunError, match=r"memory\.jsonl: is missing"):
        script(tiny_tokenizer, tmp_path, 2, RKIF)
    (folder / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(KifuseError, match=r"state\.json:1: not valid JSON"):
        script(tiny_tokenizer, tmp_path, 2, RKIF)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"name": "kif", "gamma": 0.6}, "setting gamma is 0.7, but 0.6 now"),
        ({"name": "sequential"}, "method is 'KIF', but 'Sequential' now"),
    ],
)
def test_a_state_of_another_method_or_setting_is_refused(
    tiny_tokenizer: Any, tmp_path: Path, settings: dict[str, Any], word: str
):
    script(tiny_tokenizer, tmp_path, 1, {"name": "kif"})
    with pytest.raises(RunError, match=rf"after-1.state\.json: {word}"):
        script(tiny_tokenizer, tmp_path, 2, settings)


def test_weights_that_are_not_those_of_the_state_are_refused(tiny_tokenizer: Any, tmp_path: Path):
    settings = {"name": "kif"}
    for month in (1, 2):
        script(tiny_tokenizer, tmp_path, month, settings)
    shutil.copytree(tmp_path / "month-1" / "adapter", tmp_path / "month-2" / "adapter", dirs_exist_ok=True)
    with pytest.raises(
        RunError, match=r"after task 'task-2' .*are those after task 'task-1'.*restore\(model\)"
    ):
        script(tiny_tokenizer, tmp_path, 3, settings)


def test_weights_that_were_lost_are_restored_from_the_state(tiny_tokenizer: Any, tmp_path: Path):
    expected = script(tiny_tokenizer, tmp_path, 1, {"name": "kif"})
    model = new_model(tiny_tokenizer)
    callback = KIF().callback(state_dir=tmp_path / "state")
    assert not same(weights(model), expected)
    callback.restore(model)
    assert same(weights(model), expected)
    make_trainer(tiny_tokenizer, model, tmp_path / "2", rows(tiny_tokenizer, "fruit"), [callback]).train()
    assert [task["name"] for task in callback.learned] == ["task-1", "task-2"]
    with pytest.raises(RunError, match="weights of another model"):
        callback.restore(Line())


def test_a_name_that_was_learned_is_refused(train: Train):
    callback = Sequential().callback(name="february")
    model = train(callback).model
    with pytest.raises(RunError, match="'february' was already learned, as number 1 of 1"):
        train(callback, model=model)


def test_other_rows_in_the_middle_of_a_task_are_refused(tiny_tokenizer: Any, tmp_path: Path):
    data = rows(tiny_tokenizer, "colour")
    for memory, resume in ((list(rows(tiny_tokenizer, "fruit")), None), ([data[0]], True)):
        callback = RecurrentKIF().callback(memory=memory)
        trainer = make_trainer(tiny_tokenizer, new_model(tiny_tokenizer), tmp_path, data, [callback])
        if not resume:
            trainer.train()
            continue
        with pytest.raises(RunError, match=r"other rows of earlier tasks \(memory\)"):
            trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_elsewhere_is_named(tiny_tokenizer: Any, tmp_path: Path):
    data = rows(tiny_tokenizer, "colour")

    def trainer(folder: str, **options: Any) -> Trainer:
        callback = KIF().callback(**options)
        return make_trainer(tiny_tokenizer, new_model(tiny_tokenizer), tmp_path / folder, data, [callback])

    whole = trainer("a")
    whole.train()
    place = tmp_path / "a" / "checkpoint-4"
    with pytest.raises(RunError, match="name it: callback"):
        trainer("b").train(resume_from_checkpoint=str(place))
    found = trainer("c", checkpoint=place)
    found.train(resume_from_checkpoint=str(place))
    assert same(weights(found.model), weights(whole.model))


def test_rows_come_back_from_a_file_as_they_were(tmp_path: Path):
    from kifuse.driving.row_memory import RowMemory

    odd = {
        "ids": [1, 2],
        "text": "Grüße\u2028\ud800 东京",
        "none": None,
        "nested": [{"role": "user", "content": "a\nb"}],
        "x": torch.tensor([0.1, 2.5], dtype=torch.bfloat16),
        "y": torch.tensor([[1, 2]], dtype=torch.int32).numpy(),
        "z": 0.1,
    }
    memory, again = RowMemory(per_task=1), RowMemory()
    memory.keep("odd", memory.draw("odd", [odd], 0))
    again.read(memory.text(), tmp_path)
    (found,) = again.rows()
    assert torch.equal(found.pop("x"), odd.pop("x")) and (found["y"] == odd["y"]).all()
    assert found.pop("y").dtype == odd.pop("y").dtype and found == odd


def test_the_dataset_may_be_a_plain_list(train: Train, tiny_tokenizer: Any):
    data = list(rows(tiny_tokenizer, "colour"))
    callback = RecurrentKIF().callback(per_task=3)
    train(callback, data=Dataset.from_list(data))
    other = RecurrentKIF().callback(per_task=3)
    train(other, data=data)
    assert len(callback._kept) == len(other._kept) == 3
