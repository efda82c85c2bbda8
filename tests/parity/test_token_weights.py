"""Weighed losses under the real Trainer against their literal form, micro-batch by micro-batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kifuse.methods.token_weights import TokenWeights
from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from kifuse.training.method_loss import targets_of
from tests.reference import token_weights
from tests.two_tasks import learn, load

pytestmark = pytest.mark.usefixtures("quick")
TRAINING: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 1, "scheduler": "constant"}


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


@pytest.mark.parametrize(
    ("name", "settings", "literal"),
    [
        ("dft", {}, ("probability", 1.0, 0.0)),
        ("eaft", {"power": 2.0}, ("entropy", 2.0, 0.0)),
        ("asft", {"anchor": 0.7}, ("probability", 1.0, 0.7)),
    ],
)
def test_each_loss_is_the_literal_one(
    backbone: Backbone,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    settings: dict[str, Any],
    literal: tuple[str, float, float],
):
    original, teachers = TokenWeights.loss, list[nn.Module]()
    seen: list[tuple[float, float]] = []

    def begin(self: TokenWeights, ctx: Any) -> None:
        teachers.append(copy.deepcopy(ctx.trainer.model).eval())

    def see(self: TokenWeights, ctx: Any, model: Any, batch: Any, outputs: Any) -> Tensor:
        found = original(self, ctx, model, batch, outputs)
        now = ctx.targets(batch, outputs)
        with torch.no_grad():
            said = teachers[-1](**batch.only_part)
        before = targets_of(batch.only_part, said, encoder_decoder=backbone.encoder_decoder)
        rows = [(a.detach(), gold, b) for (a, gold), (b, _) in zip(now, before, strict=True)]
        seen.append((float(found.detach()), token_weights.loss(rows, *literal)))
        return found

    monkeypatch.setattr(TokenWeights, "begin_task", begin)
    monkeypatch.setattr(TokenWeights, "loss", see)
    learn(backbone, tiny_stream, build_method(name, settings), tmp_path, **TRAINING)
    assert len(seen) == 6
    for found, wanted in seen:
        assert found == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("name", ["eaft", "asft"])
def test_accumulation_changes_nothing(backbone: Backbone, tiny_stream: Path, tmp_path: Path, name: str):
    reached = [
        learn(backbone, tiny_stream, build_method(name), tmp_path, accumulation=parts, **TRAINING)[0]
        for parts in (1, 2)
    ]
    for a, b in zip(*reached, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_weights_it_is_plain_training(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    plain = learn(backbone, tiny_stream, build_method("sequential"), tmp_path, **TRAINING)[0]
    same = learn(backbone, tiny_stream, build_method("dft", {"power": 0.0}), tmp_path, **TRAINING)[0]
    for a, b in zip(plain, same, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
