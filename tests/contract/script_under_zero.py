"""One process of two that run a user's script together, with a model that DeepSpeed trains."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer

from kifuse.driving.taps import RELIED_ON
from kifuse.driving.target_loss import TargetLoss
from kifuse.errors import RunError
from tests.contract import script_of_many
from tests.months import BROUGHT, OWN, Died, make_trainer, new_model, rows, script
from tests.processes import end_together
from tests.tiny import build_tokenizer

INTERRUPTED = "recurrent-kif, own optimizer"
NAMES = ["kif-m", INTERRUPTED, "replay"]
LOOKING = ["migu", "ewc", "ogd", "vr-mcl"]
"""Methods that look into layers and examples, or at other weights."""
OF_STAGE = {
    1: ["kif-m", "ogd"],
    2: [*NAMES, *LOOKING, "o-lora"],
    3: [*NAMES, *LOOKING, "gpm", "lwf", "der++", "kif, single examples"],
}
REFUSED = {
    "o-lora": "cut the tensors once",
    "on-policy-repair": "different lengths",
    "vr-mcl, second order": "what torch can differentiate",
}
"""Methods that stage 3 cannot serve, and what their refusal says."""


def configuration(stage: int) -> dict[str, Any]:
    """What a user writes; so small a tensor is cut under stage 3 only if nothing is kept whole."""
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 40
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {"zero_optimization": zero, "gradient_clipping": "auto", **dict.fromkeys(auto, "auto")}


def months(
    folder: Path, name: str, *, stage: int = 0, dies_at: int | None = None, accumulation: int = 1
) -> dict[str, Tensor]:
    """Two months of a script with batches of four over all processes, the second perhaps interrupted once.

    Returns:
        The whole weights after the second.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    changes: dict[str, Any] = {
        "per_device_train_batch_size": 4 // processes // accumulation,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.1,
    }
    if stage:
        changes["deepspeed"] = configuration(stage)
    # mixed rows must fill batches: the Trainer shares out a short one otherwise than one process takes it
    changes["per_task"] = 4 if name in ("replay", "der++") else 5
    go = partial(script, build_tokenizer(), folder, settings={**OWN, **BROUGHT}[name], dropout=0.0, **changes)
    go(month=1)
    _together()
    if dies_at is not None:
        with contextlib.suppress(Died):
            go(month=2, dies_at=dies_at)
        _together()
    return go(month=2, resume=dies_at is not None)


def several(
    folder: Path, *, name: str = "recurrent-kif", stage: int = 0, breaks: bool = False, **changes: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Two tasks of one script, and so of one model; the weights, and the counts of the guard."""
    if breaks:
        changes["compute_loss_func"] = Breaking(shift=True)
    if stage:
        changes["deepspeed"] = configuration(stage)
    return script_of_many.train(folder, name, **changes)


class Breaking(TargetLoss):
    """A loss that is NaN, with the usual gradient, on the last process in the second step."""

    count = 0

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        self.count += 1
        loss = super().__call__(outputs, labels, num_items_in_batch)
        last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
        return loss + math.nan if self.count == 2 and last else loss


OTHERS: dict[str, dict[str, Any]] = {
    "several": {},
    "broken": {"tasks": 1, "breaks": True},
    "bf16": {"bf16": True},
    "bf16, nothing": {"bf16": True, "name": "sequential"},
    "bf16, ewc": {"bf16": True, "name": "ewc"},
}


def _together() -> None:
    """Wait for what the other process writes."""
    if dist.is_initialized():
        dist.barrier()


def main(stage: int, output: Path) -> None:
    """Train with each method, then with interruptions and in bf16."""
    torch.set_num_threads(1)
    cases: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in OF_STAGE[stage]}
    cases |= {"again": (INTERRUPTED, {"dies_at": 5})}
    cases |= {"gathered": ("recurrent-kif", {"accumulation": 2})}
    for case, (name, changes) in cases.items():
        folder = output / case
        found = months(folder, name, stage=stage, **changes)
        _keep(folder, found)
    for case, changes in OTHERS.items():
        found, counts = several(output / case, stage=stage, **changes)
        _keep(output / case, found)
        (output / case / f"{dist.get_rank()}.json").write_text(json.dumps(counts), encoding="utf-8")
    refused = {n: _refused(output / "refused" / n, n, stage) for n in REFUSED} if stage == 3 else {}
    trainer = make_trainer(
        build_tokenizer(),
        new_model(build_tokenizer()),
        output / "facts",
        rows(build_tokenizer(), "colour"),
        deepspeed=configuration(stage),
        save_strategy="no",
        max_steps=1,
        gradient_accumulation_steps=1,
    )
    trainer.train()
    facts = {"missing": _missing(trainer, stage), "refused": refused}
    (output / f"facts-{dist.get_rank()}.json").write_text(json.dumps(facts), encoding="utf-8")
    end_together()


def _missing(trainer: Trainer, stage: int) -> list[str]:
    """Names that kifuse relies on under DeepSpeed and that the installed releases do not have."""
    wrapped = trainer.accelerator.deepspeed_engine_wrapped
    owners = {
        "accelerator under deepspeed": trainer.accelerator,
        "its deepspeed_engine_wrapped": wrapped,
        "engine": wrapped.engine,
        "optimizer of the engine": wrapped.engine.optimizer,
        f"optimizer of stage {stage}": wrapped.engine.optimizer,
    }
    if stage == 3:
        owners["its parameter_offload"] = wrapped.engine.optimizer.parameter_offload
        owners["parameter of stage 3"] = next(p for p in trainer.model.parameters() if p.requires_grad)
    return [
        f"{each.owner}: {name}"
        for each in RELIED_ON
        if each.owner in owners
        for name in each.names
        if not hasattr(owners[each.owner], name)
    ]


def _refused(folder: Path, name: str, stage: int) -> str:
    try:
        months(folder, name, stage=stage)
    except RunError as error:
        return str(error)
    return ""


def _keep(folder: Path, found: dict[str, Tensor]) -> None:
    save_file(found, folder / f"{dist.get_rank()}.safetensors")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
