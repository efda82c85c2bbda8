"""Answers in float32 with an adapter on every linear layer: added to the weights, and beside them."""

from __future__ import annotations

from unittest.mock import patch

import torch
from benchmarks.speed.evaluation import evaluator_with, tasks
from benchmarks.speed.pairs import Ratio, in_turn, ratio
from peft import LoraConfig, get_peft_model

from kifuse.evaluation import merged
from kifuse.models.loading import load_backbone


def compare(quick: bool) -> list[Ratio]:
    """Time the answers for an adapter as wide as one task's, and as wide as eight tasks' stacked."""
    return [_compare_one(rank, quick) for rank in (8, 64)]


def _compare_one(rank: int, quick: bool) -> Ratio:
    backbone = load_backbone("smollm2-135m", precision="fp32")
    model = get_peft_model(backbone.model, LoraConfig(r=rank, target_modules="all-linear")).eval()
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.005 * torch.randn(parameter.shape, generator=draw))
    evaluator = evaluator_with(model, backbone, 128)
    task = tasks()[0]
    encoded = evaluator.encoder.encode_many(task.test[: 32 if quick else 64])
    texts: dict[str, list[str]] = {}

    def ours() -> None:
        texts["ours"] = evaluator.answers(task, encoded)

    def theirs() -> None:
        with patch.object(merged, "_LEAST_TOKENS", 2**62):
            texts["theirs"] = evaluator.answers(task, encoded)

    times = in_turn(ours, theirs, 2 if quick else 7)
    same = sum(a == b for a, b in zip(texts["ours"], texts["theirs"], strict=True))
    return ratio(
        f"answers in float32, rank {rank} on all linear layers",
        "adapter merged meanwhile",
        "adapter beside the weights",
        times,
        f"{len(encoded)} prompts; {same} texts the same",
    )
