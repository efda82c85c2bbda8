"""Trainers and set-ups that users have, on tiny models: the rows of the table in docs/your-own-script.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from tests.months import rows
from tests.tiny import build_llama, build_t5, build_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
COUNT = 6
ANSWERS = (" apple", " plum")

Made = Callable[[], Any]
Make = Callable[..., Trainer]
"""A function that makes a Trainer of one step from its folder and callbacks."""


class OwnRows:
    """Rows of earlier tasks, taken from a Trainer's own processed rows."""

    trainer: Any = None

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> dict[str, Any]:
        return list(self.trainer.train_dataset)[number]


@cache
def tokenizer() -> Any:
    """Return the tokenizer of all set-ups."""
    return build_tokenizer()


def _adapted(base: Any, *targets: str, **config: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(r=2, lora_alpha=8, target_modules=list(targets), **config))


def _llama() -> Any:
    return _adapted(build_llama(len(tokenizer())), "q_proj", "v_proj", task_type="CAUSAL_LM")


def _t5() -> Any:
    return _adapted(build_t5(len(tokenizer())), "q", "v", task_type="SEQ_2_SEQ_LM")


def _prompt() -> Any:
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return get_peft_model(build_llama(len(tokenizer())), config)


def _masked() -> Any:
    torch.manual_seed(0)
    return _adapted(BertForMaskedLM(BertConfig(vocab_size=len(tokenizer()), **SIZES)), "query", "value")


def _classifier(**config: Any) -> Any:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=len(tokenizer()), pad_token_id=0, **SIZES, **config)
    )
    return _adapted(model, "q_proj", "v_proj", task_type="SEQ_CLS")


def _texts() -> list[str]:
    return [f"Which fruit? {'harbour ' * (number % 3)}{number}" for number in range(COUNT)]


def _with_labels(label: Callable[[int, list[int]], Any]) -> Dataset:
    ids = [tokenizer()(text)["input_ids"] for text in _texts()]
    made = [
        {"input_ids": each, "attention_mask": [1] * len(each), "labels": label(number, each)}
        for number, each in enumerate(ids)
    ]
    return Dataset.from_list(made)


def _arguments(kind: Any, folder: Path, **changes: Any) -> Any:
    return kind(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=2,
        max_steps=1,
        learning_rate=1e-2,
        save_strategy="no",
        gradient_checkpointing=False,
        **changes,
    )


def _plain(
    model: Callable[[], Any], data: Callable[[], Any], collator: Any, folder: Path, callbacks: Any
) -> Trainer:
    return Trainer(
        model=model(),
        args=_arguments(TrainingArguments, folder),
        train_dataset=data(),
        data_collator=collator(),
        callbacks=callbacks,
    )


def _trl(
    kind: str, model: Callable[[], Any], data: Callable[[], Any], folder: Path, callbacks: Any, **changes: Any
) -> Trainer:
    import trl

    more = {"reward_funcs": lambda completions, **_: [float(len(each) % 3) for each in completions]}
    return getattr(trl, f"{kind}Trainer")(
        model=model(),
        args=_arguments(getattr(trl, f"{kind}Config"), folder, **changes),
        train_dataset=data(),
        processing_class=tokenizer(),
        callbacks=callbacks,
        **(more if kind == "GRPO" else {}),
    )


def _of(**columns: Callable[[int, str], Any]) -> Callable[[], Dataset]:
    return lambda: Dataset.from_list(
        [
            {name: value(number, text) for name, value in columns.items()}
            for number, text in enumerate(_texts())
        ]
    )


def _text(_: int, text: str) -> str:
    return text


def _answer(number: int, _: str) -> str:
    return ANSWERS[number % 2]


def _other(number: int, _: str) -> str:
    return ANSWERS[1 - number % 2]


_TOKENS = partial(rows, tokenizer(), "fruit", COUNT)
_PAIRS = _of(prompt=_text, chosen=_answer, rejected=_other)
_sft = partial(_trl, "SFT", _llama, _of(prompt=_text, completion=_answer))
_pad = partial(DataCollatorForSeq2Seq, tokenizer())
_flattening = DataCollatorWithFlattening
_even = partial(DataCollatorWithPadding, tokenizer())


def _masked_tokens(_: int, ids: list[int]) -> list[int]:
    return [token if place % 3 else -100 for place, token in enumerate(ids)]


SETUPS: dict[str, Make] = {
    "`Trainer`, a language model": partial(_plain, _llama, _TOKENS, _pad),
    "the same with `DataCollatorWithFlattening`": partial(
        _plain, _llama, _TOKENS, DataCollatorWithFlattening
    ),
    "the same with rows as a stream": partial(_plain, _llama, lambda: _TOKENS().to_iterable_dataset(), _pad),
    "the same with prompt tuning": partial(_plain, _prompt, _TOKENS, _pad),
    "`Trainer`, an encoder-decoder model": partial(_plain, _t5, _TOKENS, _pad),
    "`Trainer`, a masked language model": partial(
        _plain,
        _masked,
        lambda: _with_labels(
            lambda _, ids: [token if place % 3 else -100 for place, token in enumerate(ids)]
        ),
        partial(DataCollatorForTokenClassification, tokenizer()),
    ),
    "`Trainer`, a classifier": partial(
        _plain, partial(_classifier, num_labels=3), lambda: _with_labels(lambda number, _: number % 3), _even
    ),
    "the same with several labels a row": partial(
        _plain,
        partial(_classifier, num_labels=3, problem_type="multi_label_classification"),
        lambda: _with_labels(lambda number, _: [1.0, 0.0, float(number % 2)]),
        _even,
    ),
    "the same with numbers (regression)": partial(
        _plain, partial(_classifier, num_labels=1), lambda: _with_labels(lambda number, _: number / 7), _even
    ),
    "`SFTTrainer`": _sft,
    "`SFTTrainer`, `padding_free`": partial(_sft, padding_free=True, max_length=None),
    "`SFTTrainer`, `packing`": partial(_sft, packing=True, max_length=24),
    "`DPOTrainer`": partial(_trl, "DPO", _llama, _PAIRS),
    "`KTOTrainer`": partial(
        _trl, "KTO", _llama, _of(prompt=_text, completion=_answer, label=lambda number, _: number % 2 == 0)
    ),
    "`RewardTrainer`": partial(_trl, "Reward", partial(_classifier, num_labels=1), _PAIRS),
    "`GRPOTrainer`": partial(
        _trl, "GRPO", _llama, _of(prompt=_text), num_generations=2, max_completion_length=3
    ),
}
"""The set-ups, by their names in the table."""
