"""Methods that bring an adapter of their own, as one callback more in somebody's own Trainer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

import kifuse
from kifuse.driving.batches import ModelCollator
from kifuse.driving.target_loss import TargetLoss
from kifuse.errors import ConfigError, KifuseError, RunError
from kifuse.tasks.collator import Collator
from kifuse.tasks.schedule import training_order
from tests.contract.test_callback import Months, _AsRows
from tests.months import BROUGHT, Die, Died, brought, make_trainer, method_of, new_model, rows, same, script
from tests.months import weights as learned
from tests.runs import METHODS, TASKS
from tests.tiny import build_llama
from tests.two_tasks import encoded, learn, load

pytestmark = pytest.mark.usefixtures("quick")
LORA = "o-lora, published code"
NAMES = [
    "inclora",
    LORA,
    "n-lora",
    "ella",
    "osf",
    "l2p",
    "moe-lora",
    "progprompt",
    "epi",
    "mocl",
    "mocl, of lora",
    "sapt",
]
EVERY = pytest.mark.parametrize("name", NAMES)
EVERY_KIND = pytest.mark.parametrize(
    "name", [LORA, "osf", "l2p", "moe-lora", "progprompt", "epi", "mocl, of lora", "sapt"]
)
Whole = Callable[[str], Months]


@pytest.fixture(scope="module")
def whole(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory, quick: None
) -> Whole:
    """Two months of a script that nothing interrupted, of each method, made when first asked for."""
    made: dict[str, Months] = {}

    def get(name: str) -> Months:
        if name not in made:
            folder = tmp_path_factory.mktemp("whole")
            first, second = folder / "first", folder / "second"
            one = script(tiny_tokenizer, first, 1, BROUGHT[name])
            shutil.copytree(first, second)
            made[name] = Months((first, second), (one, script(tiny_tokenizer, second, 2, BROUGHT[name])))
        return made[name]

    return get


def test_every_method_with_an_adapter_of_its_own_is_tried():
    assert {BROUGHT[name]["name"] for name in NAMES} == {settings["name"] for settings in BROUGHT.values()}


@EVERY
def test_months_apart_are_as_months_in_one_process(
    whole: Whole, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
):
    """The script gives the base model each time; in one process that is the one with the adapter on it."""
    months, model = whole(name), build_llama(len(tiny_tokenizer))
    callback = method_of(BROUGHT[name]).callback(
        state_dir=tmp_path / "state", per_task=5, **brought(BROUGHT[name])
    )
    for place, task in enumerate(TASKS[:2]):
        data = rows(tiny_tokenizer, task)
        trainer = make_trainer(tiny_tokenizer, model, tmp_path / task, data, [callback], save_strategy="no")
        trainer.train()
        assert same(learned(trainer.model), months.weights[place])
    assert not same(*months.weights)
    assert [task["name"] for task in callback.learned] == ["task-1", "task-2"]


@EVERY_KIND
def test_going_on_in_the_middle_of_a_task_ends_bit_identical_and_so_does_ending_it_again(
    whole: Whole, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
):
    months, cut = whole(name), tmp_path / "cut"
    shutil.copytree(months.folders[0], cut)
    with pytest.raises(Died):
        script(tiny_tokenizer, cut, 2, BROUGHT[name], dies_at=3)
    for _ in range(2):  # the second time the process has ended before the script could save the adapter
        found = script(tiny_tokenizer, cut, 2, BROUGHT[name], resume=True)
        assert same(found, months.weights[1])
        for file in ("method.safetensors", "adapter/adapter_model.safetensors"):
            kept, again = (folder / "state" / "after-2" / file for folder in (months.folders[1], cut))
            assert kept.read_bytes() == again.read_bytes()
        saved = cut / "month-2" / "adapter" / "adapter_model.safetensors"
        assert saved.read_bytes() == again.read_bytes()


# a new task of Progressive Prompts puts one more prompt before the input
@pytest.mark.parametrize("name", [LORA, "osf", "l2p", "moe-lora"])
def test_the_adapter_of_the_state_folder_and_of_the_trainer_is_what_was_learned(
    whole: Whole, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
):
    folder = whole(name).folders[1]
    tokens = torch.arange(20).view(2, 10) + 7
    callback = method_of(BROUGHT[name]).callback(state_dir=folder / "state")
    base = build_llama(len(tiny_tokenizer))
    trainer = make_trainer(tiny_tokenizer, base, tmp_path, rows(tiny_tokenizer, TASKS[2]), [callback, Die(0)])
    with pytest.raises(Died):
        trainer.train()
    with torch.no_grad():
        # a task begins with what was learned, and changes nothing of it
        expected = trainer.model.eval()(input_ids=tokens).logits
        for place in (folder / "state" / "after-2" / "adapter", folder / "month-2" / "adapter"):
            loaded = kifuse.load_adapter(build_llama(len(tiny_tokenizer)), place)
            found = loaded.eval()(input_ids=tokens).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        plain = build_llama(len(tiny_tokenizer)).eval()(input_ids=tokens).logits
        assert not torch.allclose(plain, expected, rtol=1e-4, atol=1e-4)
    assert (folder / "month-2" / "adapter" / "tokenizer.json").is_file()
    assert not (folder / "month-2" / "adapter" / ".adapter").exists()


@pytest.mark.parametrize("name", ["n-lora", "osf", "l2p"])
def test_a_task_cut_short_is_begun_anew_with_the_same_callback_and_model(
    whole: Whole, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
):
    """As in a notebook: nothing has to be put back, the callback begins from what was kept."""
    model = build_llama(len(tiny_tokenizer))
    callback = method_of(BROUGHT[name]).callback(state_dir=tmp_path / "state", **brought(BROUGHT[name]))
    for place, task in enumerate(TASKS[:2]):
        data = rows(tiny_tokenizer, task)
        for callbacks in ([callback, Die(3)], [callback]):
            trainer = make_trainer(
                tiny_tokenizer, model, tmp_path / task, data, callbacks, save_strategy="no"
            )
            if len(callbacks) == 1:
                trainer.train()
                continue
            with pytest.raises(Died):
                trainer.train()
        assert same(learned(trainer.model), whole(name).weights[place])


@pytest.mark.parametrize("name", ["o-lora", "osf", "l2p", "moe-lora"])
def test_the_same_batches_give_the_same_adapter_as_kifuse_s_own_training(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, name: str
):
    backbone = load(tiny_folder_llama)
    expected, _ = learn(backbone, tiny_stream, BROUGHT[name], tmp_path, fresh=True)
    mine = load(tiny_folder_llama)
    collate = ModelCollator(
        Collator(mine.tokenizer.pad_token_id, encoder_decoder=False, accepts=set(mine.accepts)),
        constants={"use_cache": False},
    )
    more = brought(BROUGHT[name], dropout=0.0)
    callback = method_of(BROUGHT[name]).callback(state_dir=tmp_path / "state", **more)
    trainer = None
    for index, examples in enumerate(encoded(mine, tiny_stream)[:2]):
        order = training_order([e.length for e in examples], epochs=2, batch_size=4, seed=index)
        trainer = make_trainer(
            mine.tokenizer,
            mine.model,
            tmp_path / "own",
            _AsRows([examples[place] for place in order]),
            [callback],
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
        trainer.train()
    assert trainer is not None
    found = [value for name, value in learned(trainer.model).items() if not name.startswith("kept ")]
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


def test_whoever_computes_the_loss_the_answer_takes_no_part_in_picking_prompts(
    whole: Whole, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    """A loss function is given the labels instead of the model."""
    found = script(
        tiny_tokenizer,
        tmp_path,
        1,
        BROUGHT["l2p"],
        compute_loss_func=TargetLoss(shift=True),
        save_strategy="no",
    )
    for name, value in whole("l2p").weights[0].items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_a_damaged_adapter_is_refused_by_name(
    whole: Whole, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    shutil.copytree(whole("l2p").folders[0], tmp_path / "months")
    file = tmp_path / "months" / "state" / "after-1" / "adapter" / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match=r"adapter_model\.safetensors: its content is not what was written"):
        script(tiny_tokenizer, tmp_path / "months", 2, BROUGHT["l2p"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"state_dir": None}, r"OLoRA trains its own adapter.*Name a folder"),
        ({"keep_weights": False}, r"keep_weights: the adapter that OLoRA trains"),
        ({"adapter": {"rnak": 2}}, r"adapter: rnak: .*rank"),
        ({"adapter": {"rank": 0}}, r"adapter: rank: found 0"),
        ({"memory": [{"input_ids": [1]}]}, r"memory: OLoRA reads no old data"),
    ],
)
def test_what_a_callback_cannot_take_is_refused_when_it_is_made(
    given: dict[str, Any], words: str, tmp_path: Path
):
    with pytest.raises((RunError, ConfigError), match=words):
        method_of(BROUGHT[LORA]).callback(**{"state_dir": tmp_path, **given})


def test_the_settings_of_an_adapter_are_for_methods_that_bring_one():
    with pytest.raises(RunError, match=r"adapter: EWC trains the adapter that the script puts on the model"):
        method_of(METHODS["ewc"]).callback(adapter={"rank": 2})


def test_what_a_trainer_cannot_take_is_refused_when_it_is_made(
    whole: Whole, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    data = rows(tiny_tokenizer, TASKS[0])

    def make(model: Any = None, state: Path = tmp_path / "new", **settings: Any) -> Any:
        callback = method_of(BROUGHT[LORA]).callback(state_dir=state, adapter={"rank": 2, **settings})
        base = build_llama(len(tiny_tokenizer)) if model is None else model
        return make_trainer(tiny_tokenizer, base, tmp_path / "out", data, [callback])

    with pytest.raises(RunError, match=r"the model already has one. Give the Trainer the base model"):
        make(new_model(tiny_tokenizer))
    with pytest.raises(KifuseError, match=r"model\.adapter\.kind: found 'ia3'"):
        make(kind="ia3")
    kept = whole(LORA).folders[0] / "state"
    with pytest.raises(RunError, match=r"state\.json: the adapter's alpha is 8, but adapter= says 16 now"):
        make(state=kept, alpha=16)
    with pytest.raises(RunError, match=r"setting orthogonality|method is 'OLoRA'|setting penalty"):
        callback = method_of(BROUGHT["o-lora"]).callback(state_dir=kept)
        make_trainer(tiny_tokenizer, build_llama(len(tiny_tokenizer)), tmp_path / "out", data, [callback])
    trainer = make()
    after_adapter = torch.get_rng_state()
    make_trainer(tiny_tokenizer, build_llama(len(tiny_tokenizer)), tmp_path / "out", data)
    assert torch.equal(after_adapter, torch.get_rng_state())  # nothing that training draws is another
    trained = trainer.model
    trainer.model = trainer.model_wrapped = build_llama(len(tiny_tokenizer))
    with pytest.raises(RunError, match=r"now another model is trained"):
        trainer.train()
    with pytest.raises(RunError, match=r"holds no finished task, but the model was already trained"):
        make(trained)
    with pytest.raises(RunError, match=r"give the Trainer the base model"):
        method_of(BROUGHT[LORA]).callback(state_dir=kept).restore(trained)


def test_a_trainer_with_an_optimizer_is_refused(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    trainer = make_trainer(
        tiny_tokenizer, build_llama(len(tiny_tokenizer)), tmp_path, rows(tiny_tokenizer, TASKS[0])
    )
    trainer.create_optimizer()
    callback = method_of(BROUGHT["l2p"]).callback(state_dir=tmp_path / "state")
    with pytest.raises(RunError, match=r"L2P puts an adapter on the model, and an existing optimizer"):
        callback.attach(trainer)


def test_a_stacked_adapter_is_one_standard_adapter(whole: Whole, tiny_tokenizer: PreTrainedTokenizerFast):
    place = whole(LORA).folders[1] / "month-2" / "adapter"
    ranks = {
        tensor.shape[0]
        for name, tensor in load_file(place / "adapter_model.safetensors").items()
        if "lora_A" in name
    }
    assert ranks == {4}
    PeftModel.from_pretrained(build_llama(len(tiny_tokenizer)), str(place))


def test_rows_from_elsewhere_that_do_not_say_their_task_are_refused(tmp_path: Path):
    with pytest.raises(RunError, match=r"memory: SAPT must know the task of each row.*Leave memory= out"):
        method_of(METHODS["sapt"]).callback(state_dir=tmp_path, memory=[{"input_ids": [1]}])
