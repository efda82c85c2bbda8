"""Eq. 5 in its readings: what the optimizer is given, against automatic differentiation of the whole loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.methods.kif import KIF
from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from tests.two_tasks import learn, load

pytestmark = pytest.mark.usefixtures("quick")
LIMIT = 0.05
Given = tuple[list[Tensor], list[Tensor], tuple[str, ...]]


@pytest.fixture(scope="module")
def backbone(tiny_folder_llama: Path, quick: None) -> Backbone:
    return load(tiny_folder_llama)


def first_step(
    backbone: Backbone, stream: Path, folder: Path, settings: dict[str, Any], limit: float, parts: int = 1
) -> Given:
    """Weights before the first step, the gradients that the optimizer is given there, and their names."""
    found: list[Given] = []
    with pytest.MonkeyPatch.context() as patch:
        original = KIF.on_gradients

        def see(self: KIF, ctx: Any) -> None:
            original(self, ctx)
            grads = [p.grad.clone() for p in ctx.params.tensors]
            found.append((ctx.params.clone(), grads, ctx.params.names))

        patch.setattr(KIF, "on_gradients", see)
        method = build_method("kiflora", settings)
        learn(backbone, stream, method, folder, max_grad_norm=limit, accumulation=parts)
    return found[0]


def penalty_gradients(
    weights: list[Tensor], names: tuple[str, ...], squared: bool, count: int
) -> list[Tensor]:
    """The gradient of 0.4 times the mean over so many terms, by automatic differentiation."""
    leaves = [w.clone().requires_grad_() for w in weights]
    total = torch.zeros(())
    for name, leaf in zip(names, leaves, strict=True):
        gram = leaf @ leaf.T if "lora_A" in name else leaf.T @ leaf
        part = (gram - torch.eye(len(gram))).square().sum()
        total = total + (part if squared else part.sqrt())
    (0.4 * total / count).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def clipped(grads: list[Tensor]) -> list[Tensor]:
    norm = torch.cat([g.flatten() for g in grads]).norm()
    return [g * min(1.0, LIMIT / (float(norm) + 1e-6)) for g in grads]


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("over", ["pairs", "matrices"])
@pytest.mark.parametrize("with_loss", [True, False])
def test_each_reading_is_what_it_says(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, squared: bool, over: str, with_loss: bool
):
    weights, plain, names = first_step(backbone, tiny_stream, tmp_path, {"orthogonality": 0.0}, 0.0)
    settings = {
        "orthogonality": 0.4,
        "orthogonality_squared": squared,
        "orthogonality_over": over,
        "orthogonality_clipped": with_loss,
    }
    count = len(names) if over == "matrices" else len(names) // 2
    added = penalty_gradients(weights, names, squared, count)
    if with_loss:
        expected = clipped([a + b for a, b in zip(plain, added, strict=True)])
    else:
        expected = [a + b for a, b in zip(clipped(plain), added, strict=True)]
    for parts in (1, 2) if with_loss else (1,):
        _, found, _ = first_step(backbone, tiny_stream, tmp_path, settings, LIMIT, parts)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
