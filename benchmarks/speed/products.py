"""Time answers with oneDNN's packed weights or torch's own products, with adapters merged or not merged.

The adapter is on every linear layer. Its rank is that of one task, or that of eight stacked tasks. Everything
else is kifuse's own evaluation on both sides.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from benchmarks.speed.evaluation import evaluator_with, tasks
from benchmarks.speed.pairs import Ratio, in_turn, ratio
from peft import LoraConfig, get_peft_model

from kifuse.answering import fast_linear as products
from kifuse.answering.evaluator import Evaluator
from kifuse.models.loading import load_backbone, shrink_frozen


def compare(quick: bool) -> list[Ratio]:
    """Time the answers without packed weights, and without merged adapters, against both."""
    plain = patch.object(products, "_dtypes", lambda: frozenset[torch.dtype]())
    beside = patch.object(products, "adapted_layers", lambda *_: [])
    packed = ("weights packed", "torch's own products", plain)
    merged = ("adapter merged meanwhile", "adapter beside the weights", beside)
    cases = (("fp32", 8, packed), ("bf16", 8, packed), ("fp32", 8, merged), ("fp32", 64, merged))
    return [_compare_one(precision, rank, *case, quick) for precision, rank, case in cases]


def _evaluator(precision: str, rank: int) -> Evaluator:
    backbone = load_backbone("smollm2-135m", precision=precision)
    model = get_peft_model(backbone.model, LoraConfig(r=rank, target_modules="all-linear")).eval()
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.005 * torch.randn(parameter.shape, generator=draw))
    shrink_frozen(model, backbone.precision)
    return evaluator_with(model, backbone, 128)


def _compare_one(precision: str, rank: int, ours: str, theirs: str, change: Any, quick: bool) -> Ratio:
    evaluator, task = _evaluator(precision, rank), tasks()[0]
    # so many that packing is worth it in bf16
    encoded = evaluator.encoder.encode_many((*task.test, *task.train)[: 128 if quick else 192])
    texts: dict[str, list[str]] = {}

    def with_it() -> None:
        texts["ours"] = evaluator.answers(task, encoded)

    def without() -> None:
        with change:
            texts["theirs"] = evaluator.answers(task, encoded)

    times = in_turn(with_it, without, 2 if quick else 5)
    same = sum(a == b for a, b in zip(texts["ours"], texts["theirs"], strict=True))
    return ratio(
        f"answers in {precision}, rank {rank} on all linear layers: {ours}",
        ours,
        theirs,
        times,
        f"{len(encoded)} prompts; {same} texts the same",
    )
