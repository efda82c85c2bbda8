"""Orthogonal subspace fine-tuning under the real Trainer, over a boundary, against its equations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.config import AdapterConfig, TrainingConfig
from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from kifuse.running.one_task import train_task
from tests.adapters import add_adapter, close_factors, learned_weights, on
from tests.parity.literal import Batch, task_batches
from tests.reference import osf
from tests.two_tasks import encoded, load

pytestmark = pytest.mark.usefixtures("quick")

RATE, DECAY, SEED = 1e-3, 0.01, 7
CHOSEN = ["q_proj", "v_proj", "down_proj"]
"""Matrices with as many, fewer and more inputs than outputs."""


@pytest.fixture(scope="module")
def backbone(tiny_folder_llama: Path, quick: None) -> Backbone:
    return load(tiny_folder_llama)


@pytest.mark.parametrize("project", ["update", "gradient"])
def test_two_tasks_come_out_as_the_equations_say(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, project: str
):
    mine = copy.copy(backbone)
    config = AdapterConfig(kind="osf", preserve=0.4, target_modules=[*CHOSEN, "up_proj"])
    model = copy.deepcopy(backbone.model)
    method = build_method("osf", {"growth": 0.2, "project": project})
    mine.model = add_adapter(model, config, encoder_decoder=False, seed=0, method=method)
    first, second, _ = encoded(backbone, tiny_stream)
    expected = {name: w.detach().clone() for name, w in learned_weights(mine.model).items()}
    begin = {name: w.clone() for name, w in expected.items()}
    settings = TrainingConfig(
        learning_rate=RATE,
        epochs=2,
        batch_size=4,
        seed=SEED,
        scheduler="constant",
        weight_decay=DECAY,
        max_grad_norm=0.0,
    )
    for index, examples in enumerate((first, second)):
        steps = task_batches(examples, epochs=2, seed=SEED * 1000 + index)
        share = 0.4 + 0.2 * index
        expected = osf.osf(
            expected,
            _loss_of(backbone),
            steps,
            share=share,
            rate=RATE,
            weight_decay=DECAY,
            project=project,
        )[-1]
        on(mine.model).begin_task(index, seed=SEED)
        train_task(
            mine.model,
            mine,
            method,
            settings,
            index=index,
            name=str(index),
            current=examples,
            folder=tmp_path,
        )
        close_factors(mine.model)
        for name, weight in learned_weights(mine.model).items():
            torch.testing.assert_close(weight.detach().double(), expected[name], rtol=1e-3, atol=1e-5)
            # what the tolerance would hide
            assert (weight - begin[name]).abs().max() > 1e-3


def _loss_of(backbone: Backbone) -> Callable[[dict[str, Tensor], Batch], Tensor]:
    model = copy.deepcopy(backbone.model).eval()

    def loss(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        total, count = torch.zeros(()), 0
        for example in batch:
            text = torch.tensor([example.input_ids + example.target_ids])
            logits: Any = torch.func.functional_call(model, weights, (), {"input_ids": text}).logits[0]
            for position, token in enumerate(example.target_ids, start=len(example.input_ids)):
                total = total - logits[position - 1].log_softmax(-1)[token]
                count += 1
        return total / count

    return loss
