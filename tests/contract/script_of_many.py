"""One of several processes that run a user's script together."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from kifuse.driving.target_loss import TargetLoss
from tests.months import BROUGHT, OWN, brought, make_trainer, method_of, new_model, rows, weights
from tests.runs import TASKS
from tests.tiny import build_llama, build_tokenizer

NAMES = ["recurrent-kif", "kif-m", "aimmerging", "vr-mcl", "der++", "inclora", "osf"]


class BrokenOnOne(TargetLoss):
    """A loss that is NaN in the second step on the second process, with the usual gradient."""

    count = 0

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        self.count += 1
        loss = super().__call__(outputs, labels, num_items_in_batch)
        return loss + math.nan if self.count == 2 and os.environ.get("RANK") == "1" else loss


def train(
    folder: Path, name: str, tasks: int = 2, **changes: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Learn two tasks with batches of four over all processes; return the weights and the guard's counts."""
    tokenizer = build_tokenizer()
    settings = {**OWN, **BROUGHT}[name]
    more = brought(settings, dropout=0.0)
    model = build_llama(len(tokenizer)) if more else new_model(tokenizer, dropout=0.0)
    # mixed rows must fill the batches: several processes do not share a short batch as one process takes it
    per_task = 4 if method_of(settings).old_data == "mixed" else 5
    if name == "kif-m":
        per_task = 3  # less than a batch, and not a multiple of two
    callback = method_of(settings).callback(state_dir=folder / "state", per_task=per_task, **more)
    for task in TASKS[:tasks]:
        data = rows(tokenizer, task)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        trainer = make_trainer(
            tokenizer,
            model,
            folder / task,
            data,
            [callback],
            per_device_train_batch_size=4 // processes,
            gradient_accumulation_steps=1,
            train_sampling_strategy="sequential",
            save_strategy="no",
            ddp_find_unused_parameters=False,
            **changes,
        )
        trainer.train()
        model = trainer.model
    return weights(model), callback.guard.state()


def train_all(output: Path) -> None:
    """Train with each method, and once with a loss that breaks on one process."""
    rank = os.environ["RANK"]
    for name in NAMES:
        found, _ = train(output / name, name)
        save_file(found, output / name / f"{rank}.safetensors")
    loss = BrokenOnOne(shift=True)
    found, counts = train(output / "broken", "sequential", tasks=1, compute_loss_func=loss)
    save_file(found, output / "broken" / f"{rank}.safetensors")
    (output / "broken" / f"{rank}.json").write_text(json.dumps(counts), encoding="utf-8")
