"""The callback in Trainers whose batches, rates and rows are not those of kifuse's own training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, PreTrainedTokenizerFast

from kifuse.errors import RunError
from tests.months import OWN, make_trainer, method_of, new_model, rows
from tests.setups import SETUPS

pytestmark = pytest.mark.usefixtures("quick")
Learn = Callable[..., Any]


@pytest.fixture
def learn(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Learn:
    """Lets a method learn tasks, one Trainer each, with one callback."""

    def go(
        settings: dict[str, Any], tasks: tuple[str, ...] = ("colour",), stream: bool = False, **changes: Any
    ) -> Any:
        callback = method_of(settings).callback(per_task=5)
        model = changes.pop("model", None) or new_model(tiny_tokenizer, dropout=0.0)
        for task in tasks:
            data: Any = rows(tiny_tokenizer, task)
            if stream:
                data = data.to_iterable_dataset()
            make_trainer(tiny_tokenizer, model, tmp_path / task, data, [callback], **changes).train()
        return callback

    return go


# ---- batches of one row ----


@pytest.mark.parametrize("name", ["ewc", "ogd"])
@pytest.mark.parametrize("size", [1, 4])
def test_single_examples_are_told_apart_in_batches_of_one_row(
    learn: Learn, tiny_tokenizer: PreTrainedTokenizerFast, name: str, size: int
):
    """A flattened batch would give the square of the sum instead of the sum of the squares."""

    def kept(collator: Any, batch: int) -> dict[str, Tensor]:
        still = {"learning_rate": 0.0, "max_steps": 1, "gradient_accumulation_steps": 1}
        data = {"per_device_train_batch_size": batch, "data_collator": collator}
        return learn(OWN[name], **still, **data).method.state().tensors

    padded = kept(DataCollatorForSeq2Seq(tiny_tokenizer), 1)
    flattened = kept(DataCollatorWithFlattening(), size)
    assert sum(float(tensor.abs().sum()) for tensor in padded.values()) > 0
    for key, wanted in padded.items():
        torch.testing.assert_close(flattened[key], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("kif, single examples", "gradients of single examples"),
        ("der++", "values of single examples"),
        ("vr-mcl", "parts of a batch by rows"),
    ],
)
def test_batches_of_one_row_are_refused_where_rows_are_examples(learn: Learn, name: str, what: str):
    with pytest.raises(RunError, match=f"it needs {what}, but the batches join .*Turn padding_free off"):
        learn(OWN[name], data_collator=DataCollatorWithFlattening())
    if name == "kif, single examples":  # found at the first batch of a stream
        with pytest.raises(RunError, match=f"it needs {what}, but the batches join"):
            learn(OWN[name], data_collator=DataCollatorWithFlattening(), stream=True, max_steps=1)
    one = {"data_collator": DataCollatorWithFlattening(), "per_device_train_batch_size": 1, "max_steps": 2}
    assert learn(OWN[name], ("colour", "fruit"), **one).learned[-1]["steps"] == 2


# ---- what is said ----


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "forever"}, "the first replay comes after 1 day(s) of 24 steps, and the task has 2"),
        ({"name": "aimmerging"}, "the first merge comes at step 16, twice the interval; the task had 2"),
    ],
    ids=["forever", "aimmerging"],
)
def test_a_task_too_short_for_a_method_is_said(
    learn: Learn, settings: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
):
    assert not learn(settings, ("colour", "fruit"), max_steps=2).context.replayed
    assert said in caplog.text and "'task-2'" in caplog.text and "'task-1'" not in caplog.text


# ---- rates of groups ----


class Watched(torch.optim.SGD):
    """Remembers the rates of its groups in each step."""

    seen: list[list[float]]

    def step(self, closure: Any = None) -> Any:
        self.seen.append([group["lr"] for group in self.param_groups])
        return super().step(closure)


@pytest.mark.parametrize("name", ["recurrent-kif", "forever", "kif-m"])
def test_memory_steps_scale_the_rate_of_each_group_alike(
    learn: Learn, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
):
    """As with LoRA+, whose groups have rates of their own; what has a rate of 0 is not moved at all."""
    settings = {**OWN[name], "fusion": "none"} if name == "kif-m" else OWN[name]
    callback = method_of(settings).callback(per_task=5)
    model = new_model(tiny_tokenizer, dropout=0.0)
    parts: dict[str, list[Any]] = {"lora_A": [], "lora_B": [], "still": []}
    for key, p in model.named_parameters():
        if p.requires_grad:
            part = "still" if "layers.1.self_attn.q_proj.lora_A" in key else key.split(".")[-3]
            parts[part].append(p)
    before = [p.detach().clone() for p in parts["still"]]
    for task in ("colour", "fruit"):
        rates = {"lora_A": 1e-2, "lora_B": 0.16, "still": 0.0}
        optimizer = Watched([{"params": parts[part], "lr": lr} for part, lr in rates.items()])
        optimizer.seen = []
        data = rows(tiny_tokenizer, task)
        own = {"optimizers": (optimizer, None)}
        make_trainer(tiny_tokenizer, model, tmp_path / task, data, [callback], **own).train()
    assert callback.context.replayed
    for found in optimizer.seen:
        assert found == pytest.approx([found[0], 16 * found[0], 0.0])
    for p, old in zip(parts["still"], before, strict=True):
        torch.testing.assert_close(p.detach(), old, rtol=0, atol=0)


# ---- labels where they stand ----


def test_a_masked_language_model_is_read_where_its_labels_are(tmp_path: Path):
    """Its logits at a position are of the token there; a decoder's are of the next one."""
    callback = method_of(OWN["ewc"]).callback()
    trainer = SETUPS["`Trainer`, a masked language model"](tmp_path, [callback])
    trainer.train()
    model, total = trainer.model.eval(), {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    data = list(trainer.train_dataset)
    for row in data:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        said = sum(logits[place, token] for place, token in enumerate(row["labels"]) if token != -100)
        for (name, _), g in zip(named, torch.autograd.grad(said, [p for _, p in named]), strict=True):
            total[name] = total.get(name, 0) + g**2 / len(data)
    kept = callback.method.state().tensors
    for name, wanted in total.items():
        torch.testing.assert_close(kept[f"fisher.{name}"], wanted, rtol=1e-3, atol=1e-6)
