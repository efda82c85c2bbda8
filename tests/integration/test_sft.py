"""The same callback in TRL's SFTTrainer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import kifuse
from kifuse.errors import RunError
from kifuse.methods.derpp import DERPP
from kifuse.methods.kif import KIF
from kifuse.methods.recurrent_kif import RecurrentKIF
from kifuse.methods.replay import Replay
from kifuse.methods.sequential import Sequential
from tests.months import BROUGHT, OWN, Die, Died, brought, method_of, new_model, same, weights
from tests.tiny import build_llama

trl = pytest.importorskip("trl", reason="TRL is an optional extra: pip install 'kifuse[trl]'")
pytestmark = pytest.mark.usefixtures("quick")
Sft = Callable[..., Any]


def texts(task: str, kind: str, count: int = 12) -> Dataset:
    """Examples as a user has them: plain text, prompt and completion, or a chat."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        prompt, answer = f"Which {task}? {'harbour ' * (number % 3)}{number}", ("apple", "plum")[number % 2]
        rows.append(
            {
                "text": {"text": f"{prompt} {answer}"},
                "completion": {"prompt": prompt, "completion": f" {answer}"},
                "chat": {
                    "messages": [
                        {"role": "user", "content": prompt},
                        {"role": "assistant", "content": answer},
                    ]
                },
            }[kind]
        )
    return Dataset.from_list(rows)


@pytest.fixture
def sft(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Sft:
    """Trains for six steps of four examples."""

    def go(
        *callbacks: Any,
        kind: str = "completion",
        task: str = "colour",
        model: Any = None,
        resume: bool = False,
        folder: Path = tmp_path,
        **changes: Any,
    ) -> Any:
        settings: dict[str, Any] = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "max_length": 64,
            "save_steps": 2,
            "bf16": False,
        }
        trainer = trl.SFTTrainer(
            model=model or new_model(tiny_tokenizer),
            args=trl.SFTConfig(
                output_dir=str(folder / "out"),
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                **{**settings, **changes},
            ),
            train_dataset=texts(task, kind),
            processing_class=tiny_tokenizer,
            callbacks=list(callbacks),
        )
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer

    return go


@pytest.mark.parametrize("kind", ["text", "completion", "chat"])
@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_memory_is_kept_as_trl_made_it_and_replayed(sft: Sft, kind: str, loss_type: str, tmp_path: Path):
    model, callback = None, RecurrentKIF(inner_steps=2).callback(state_dir=tmp_path / "state", per_task=5)
    for task in ("colour", "fruit"):
        trainer = sft(callback, kind=kind, task=task, model=model, loss_type=loss_type)
        model = trainer.model
    kept = callback._kept.rows()
    assert len(kept) == 10
    assert all(row["input_ids"] in list(trainer.train_dataset["input_ids"]) for row in kept[5:])
    assert callback.context.replayed == 12 and callback.context.events[-1]["kind"] == "fusions"
    assert not any(callback.guard.bad.values())
    assert all(torch.isfinite(value).all() for value in weights(model).values())


@pytest.mark.parametrize("kind", ["text", "completion", "chat"])
def test_memory_is_mixed_into_the_task_s_own_rows(sft: Sft, kind: str, tmp_path: Path):
    for method in (Replay(), DERPP(tokens=5)):
        state, model, steps = tmp_path / type(method).__name__, None, []
        for task in ("colour", "fruit"):
            callback = method.callback(state_dir=state, per_task=4)
            trainer = sft(callback, kind=kind, task=task, model=model, loss_type="nll")
            model = trainer.model
            steps.append(trainer.state.global_step)
        kept = callback._kept.rows()
        assert len(kept) == 8 and steps[1] - steps[0] == 2
        events = [event for event in callback.context.events if event["kind"] == "stored distributions"]
        assert [event["examples"] for event in events] == ([4] if "kept" in method.needs else [])


@pytest.mark.parametrize("kind", ["text", "completion", "chat"])
def test_a_memory_of_raw_examples_is_prepared_as_the_data_is(sft: Sft, kind: str):
    raw = texts("fruit", kind, 4)
    first = sft(RecurrentKIF(inner_steps=2).callback(memory=raw), kind=kind)
    processed = sft(kind=kind, task="fruit", max_steps=1).train_dataset.select(range(4))
    second = sft(RecurrentKIF(inner_steps=2).callback(memory=processed), kind=kind)
    assert same(weights(first.model), weights(second.model))
    assert not same(weights(first.model), weights(sft(kind=kind).model))


def test_packed_rows_are_remembered_too(sft: Sft):
    model, callback = None, RecurrentKIF(inner_steps=1).callback(share=1.0)
    for task in ("colour", "fruit"):
        model = sft(callback, kind="text", task=task, model=model, packing=True, padding_free=False).model
    assert len(callback._kept) and callback.context.replayed


@pytest.mark.parametrize("method", [Sequential(), KIF(fusion="none")])
def test_one_callback_more_without_strength_is_plain_training(sft: Sft, method: Any):
    assert same(weights(sft(method.callback()).model), weights(sft().model))


def test_second_derivatives_of_a_fused_loss_are_refused_before_the_first_step(sft: Sft):
    """The first task takes none, so that a second one would find out."""
    callback = method_of(OWN["vr-mcl, second order"]).callback()
    with pytest.raises(RunError, match="second_order: the loss of SFTTrainer cannot be"):
        sft(callback, gradient_checkpointing=False, max_steps=1)
    with pytest.raises(RunError, match=r"gradient_checkpointing, which .* Turn it off"):
        sft(callback, max_steps=1)


def test_the_numbers_that_sft_logs_stay_on_its_own_lines(sft: Sft):
    """A method's line comes before the Trainer's, and would take them along."""
    trainer = sft(KIF(fusion="none", orthogonality=0.1).callback(), logging_steps=1, max_steps=2)
    lines = [line for line in trainer.state.log_history if "train_runtime" not in line]
    own = {"entropy", "mean_token_accuracy", "num_tokens"}
    assert [own <= set(line) for line in lines] == ["loss" in line for line in lines] and len(lines) == 4


@pytest.mark.parametrize("name", ["o-lora", "l2p"])
def test_a_method_may_bring_its_adapter(
    sft: Sft, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
):
    settings, found, tokens = BROUGHT[name], [], torch.arange(20).view(2, 10) + 7
    for task in ("colour", "fruit"):
        callback = method_of(settings).callback(state_dir=tmp_path / "state", **brought(settings))
        trainer = sft(callback, task=task, model=build_llama(len(tiny_tokenizer)), folder=tmp_path / task)
        found.append(weights(trainer.model))
        assert not any(callback.guard.bad.values())
    trainer.save_model(str(tmp_path / "adapter"))
    assert not same(*found) and [task["number"] for task in callback.learned] == [1, 2]
    logits = []
    for place in (tmp_path / "adapter", tmp_path / "state" / "after-2" / "adapter"):
        loaded = kifuse.load_adapter(build_llama(len(tiny_tokenizer)), place).eval()
        logits.append(loaded(input_ids=tokens).logits)
    assert torch.equal(*logits)
    assert not torch.allclose(logits[0], build_llama(len(tiny_tokenizer))(input_ids=tokens).logits)


@pytest.mark.parametrize("name", ["recurrent-kif", "kiflora", "kif-m"])
def test_going_on_in_the_middle_of_a_task_ends_bit_identical(
    sft: Sft, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
):
    def second(folder: Path, *more: Any, resume: bool = False) -> dict[str, Tensor]:
        callback = method_of(OWN[name]).callback(state_dir=folder / "state", per_task=5)
        model = new_model(tiny_tokenizer, tmp_path / "adapter")
        return weights(sft(callback, *more, task="fruit", model=model, resume=resume, folder=folder).model)

    first = method_of(OWN[name]).callback(state_dir=tmp_path / "whole" / "state", per_task=5)
    sft(first, folder=tmp_path / "first").save_model(str(tmp_path / "adapter"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    expected = second(tmp_path / "whole")
    with pytest.raises(Died):
        second(tmp_path / "cut", Die(3))
    assert same(second(tmp_path / "cut", resume=True), expected)
