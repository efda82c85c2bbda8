"""Train on two tasks without a run around it: the model is in memory, and nothing is scored or kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kifuse.config import AdapterConfig, TrainingConfig
from kifuse.methods.base import Method
from kifuse.models.loading import Backbone, load_backbone
from kifuse.registry import build_method
from kifuse.running.one_task import TaskTraining, train_task
from kifuse.tasks import read_stream
from kifuse.tasks.encoding import Encoded, Encoder
from kifuse.tasks.memory import MemoryBuffer
from tests.adapters import add_adapter, learned_weights, on


def load(folder: Path) -> Backbone:
    """Load a tiny model once; `adapted` makes copies."""
    return load_backbone(str(folder), precision="fp32", device=torch.device("cpu"))


def adapted(
    backbone: Backbone,
    dropout: float = 0.0,
    target_modules: list[str] | None = None,
    kind: Literal["lora", "osf"] = "lora",
    method: Method | None = None,
    fresh: bool = False,
) -> Backbone:
    """Copy a backbone and put an adapter on it whose B is not zero, so that all parameters learn at once.

    With `fresh` the adapter stays as it begins, with B zero.
    """
    mine = copy.copy(backbone)
    mine.model = copy.deepcopy(backbone.model)
    config = AdapterConfig(kind=kind, rank=2, alpha=8, dropout=dropout, target_modules=target_modules)
    mine.model = add_adapter(mine.model, config, encoder_decoder=mine.encoder_decoder, seed=0, method=method)
    with torch.no_grad():
        for name, p in mine.model.named_parameters():
            if "lora_B" in name and not fresh:
                p.normal_(std=0.1)
    return mine


def encoded(backbone: Backbone, stream: Path, kept: int = 5) -> tuple[list[Encoded], ...]:
    """Encode eleven training examples of each of two tasks, and a memory of the first task."""
    encoder = Encoder(
        backbone.tokenizer, encoder_decoder=backbone.encoder_decoder, max_input=64, max_target=8
    )
    first, second = read_stream(stream).tasks[:2]
    memory = MemoryBuffer(per_task=kept)
    memory.add(first)
    # with eleven examples the last batch of two epochs is short
    parts = (first.train[:11], second.train[:11], memory.examples())
    return tuple(encoder.encode_many(part) for part in parts)


def learn(
    backbone: Backbone,
    stream: Path,
    method: dict[str, Any] | Method,
    folder: Path,
    *,
    fresh: bool = False,
    **training: Any,
) -> tuple[list[Tensor], TaskTraining]:
    """Train a copy of the model on two tasks; return its values, and the outcome of the second training."""
    if isinstance(method, dict):
        method = build_method(method["name"], {k: v for k, v in method.items() if k != "name"})
    kind = "osf" if method.adapter == "osf" else "lora"
    mine = adapted(backbone, kind=kind, method=method, fresh=fresh)
    first, second, memory = encoded(mine, stream)
    settings = TrainingConfig(**{"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, **training})
    done = None
    for index, (name, examples) in enumerate((("first", first), ("second", second))):
        old: Sequence[Encoded] = memory if index else []
        on(mine.model).begin_task(index, seed=0)
        done = train_task(
            mine.model,
            mine,
            method,
            settings,
            index=index,
            name=name,
            current=examples,
            mixed=old if method.old_data == "mixed" else [],
            memory=old if method.old_data == "steps" else [],
            kept=memory if "kept" in method.needs and not index else [],
            folder=folder,
        )
        on(mine.model).end_task()
    assert done is not None
    return values(mine), done


def values(backbone: Backbone) -> list[Tensor]:
    """Copy the learned values: the trainable values, or the weights that they were merged into."""
    return [p.detach().clone() for p in learned_weights(backbone.model).values()]
