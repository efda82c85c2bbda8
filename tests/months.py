"""A user's own script: a plain Trainer on a tiny model, one task for each month, perhaps with a callback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from kifuse.adapters.base import adapter_on
from kifuse.methods.base import Method
from kifuse.registry import build_method
from tests.runs import LABELS, METHODS, TASKS
from tests.tiny import build_llama

NOT_HERE = {"joint", "tasl", "generated-replay", "lfpt5", "sdft"}
"""Methods that need other data than a callback can give, and `tasl`, which is another name of `kif`."""
BRINGING = (
    "inclora",
    "o-lora",
    "n-lora",
    "ella",
    "osf",
    "l2p",
    "moe-lora",
    "progprompt",
    "epi",
    "mocl",
    "sapt",
)
BROUGHT = {name: settings for name, settings in METHODS.items() if settings["name"] in BRINGING}
"""Every method that brings an adapter of its own, with the settings of `tests.runs.METHODS`."""
OWN = {
    name: settings
    for name, settings in METHODS.items()
    if settings["name"] not in NOT_HERE and name not in BROUGHT
}
"""Every other method that works as a callback."""


def method_of(settings: dict[str, Any]) -> Method:
    """Make a method from its name and settings."""
    return build_method(settings["name"], {key: value for key, value in settings.items() if key != "name"})


def brought(settings: dict[str, Any], dropout: float = 0.1) -> dict[str, Any]:
    """Return the callback's arguments for a method that brings an adapter; none for other methods."""
    if method_of(settings).adapter is None:
        return {}
    return {"adapter": {"rank": 2, "alpha": 8, "dropout": dropout}}


def rows(tokenizer: PreTrainedTokenizerFast, task: str, count: int = 12) -> Dataset:
    """Make tokenised examples of different lengths, as a user prepares them."""
    made = []
    for number in range(count):
        prompt = tokenizer(f"Which {task}? {'harbour ' * (number % 4)}{number}")["input_ids"]
        target = [*tokenizer(" " + LABELS[task][number % 2])["input_ids"], 2]
        ids = [*prompt, *target]
        made.append(
            {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "labels": [-100] * len(prompt) + target,
                "number": number,
            }
        )
    return Dataset.from_list(made)


def new_model(
    tokenizer: PreTrainedTokenizerFast, adapter: Path | None = None, dropout: float = 0.1
) -> PeftModel:
    """Make a tiny model with a new adapter, or with one that was saved."""
    base = build_llama(len(tokenizer))
    if adapter is not None:
        return PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    torch.manual_seed(0)
    config = LoraConfig(
        r=2,
        lora_alpha=8,
        lora_dropout=dropout,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


class Die(TrainerCallback):
    """Stands for the end of the process at the beginning of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Died


class Died(Exception):
    """Stands for the end of the process."""


def make_trainer(
    tokenizer: PreTrainedTokenizerFast,
    model: Any,
    folder: Path,
    data: Any,
    callbacks: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> Trainer:
    """Make the Trainer of one month: six steps of four rows, with a checkpoint at every second step."""
    own = ("compute_loss_func", "data_collator", "optimizers")
    given = {key: changes.pop(key) for key in own if key in changes}
    if any("answers" in each.method.needs for each in callbacks if hasattr(each, "method")):
        given["processing_class"] = tokenizer
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "logging_steps": 1,
        "optim": "adamw_torch",
    }
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **{**settings, **changes}
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        callbacks=list(callbacks),
        **{"data_collator": DataCollatorForSeq2Seq(tokenizer), **given},
    )


def script(
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    month: int,
    settings: dict[str, Any],
    *,
    dies_at: int | None = None,
    resume: bool | str = False,
    dropout: float = 0.1,
    per_task: int = 5,
    **changes: Any,
) -> dict[str, Tensor]:
    """Do what one start of the script does: load last month's adapter, train, save.

    Returns:
        The trained tensors.
    """
    adapter = folder / f"month-{month - 1}" / "adapter" if month > 1 else None
    more = brought(settings, dropout)
    model = build_llama(len(tokenizer)) if more else new_model(tokenizer, adapter, dropout)
    callback = method_of(settings).callback(state_dir=folder / "state", per_task=per_task, **more)
    dying = [Die(dies_at)] if dies_at is not None else []
    # checkpoints take longer than the training, and the first month needs none unless it is interrupted
    changes.setdefault("save_strategy", "steps" if month > 1 or resume or dying else "no")
    output = folder / f"month-{month}"
    data = rows(tokenizer, TASKS[month - 1])
    trainer = make_trainer(tokenizer, model, output, data, [callback, *dying], **changes)
    trainer.train(resume_from_checkpoint=resume or None)
    trainer.save_model(str(output / "adapter"))
    return weights(trainer.model)


def of_both(folder: Path) -> list[dict[str, Tensor]]:
    """Read what each of two processes has saved in a folder."""
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def check_two_learned_as_one(two: Path, one: Path, expected: dict[str, Tensor], name: str) -> None:
    """Check that two processes ended with the same weights and memory as one process.

    Args:
        two: The folder that they wrote, with `state` in it.
        one: The folder that one process wrote.
        expected: The weights of the one process.
        name: The method's name, a key of `OWN`.
    """
    found = of_both(two)
    assert same(*found)
    for key, value in expected.items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-4, atol=1e-5)
    memory = [folder / "state" / "after-2" / "memory.jsonl" for folder in (two, one)]
    if method_of({**OWN, **BROUGHT}[name]).old_data != "none":
        assert memory[0].read_bytes() == memory[1].read_bytes()
    else:
        assert not any(file.exists() for file in memory)


def weights(model: Any) -> dict[str, Tensor]:
    """Copy the trained tensors, and what a method's own adapter keeps of earlier tasks."""
    adapter = adapter_on(model)
    if adapter is not None:
        kept = {f"kept {name}": t.detach().clone() for name, t in adapter.frozen().items()}
        return {**{name: p.detach().clone() for name, p in adapter.learned().items()}, **kept}
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not any(hasattr(p, "ds_id") for p in own.values()):
        return {name: p.detach().clone() for name, p in own.items()}
    import deepspeed  # they are in pieces

    with deepspeed.zero.GatheredParameters(list(own.values())):
        return {name: p.detach().clone() for name, p in own.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Return whether all tensors are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
