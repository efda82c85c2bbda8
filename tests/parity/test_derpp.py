"""DER++ under the real Trainer against its literal loss, micro-batch by micro-batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.driving.context import TrainerContext
from kifuse.methods.derpp import DERPP
from kifuse.models.loading import Backbone
from tests.reference import derpp
from tests.two_tasks import learn, load

pytestmark = pytest.mark.usefixtures("quick")
TRAINING: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 1, "scheduler": "constant"}


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


def test_each_loss_is_the_literal_one(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original, forward = DERPP.loss, {}
    seen: list[tuple[float, float]] = []
    replayed = 0

    def see(self: DERPP, ctx: Any, model: Any, batch: Any, outputs: Any) -> Tensor:
        nonlocal replayed
        found = original(self, ctx, model, batch, outputs)
        rows, stored = ctx.targets(batch, outputs), ctx.stored(batch)
        old = [None if each is None else forward[tuple(each["ids"].flatten().tolist())] for each in stored]
        replayed += sum(each is not None for each in old)
        pairs = [(now.detach(), gold, before) for (now, gold), before in zip(rows, old, strict=True)]
        seen.append((float(found.detach()), derpp.loss(pairs, 6, 0.7, 0.5)))
        return found

    def store(self: Any, example: Any, tensors: dict[str, Tensor]) -> None:
        ((full, _),) = self.targets(example, self.forward(example))
        forward[tuple(tensors["ids"].flatten().tolist())] = full
        keep(self, example, tensors)

    keep = TrainerContext.store
    monkeypatch.setattr(DERPP, "loss", see)
    monkeypatch.setattr(TrainerContext, "store", store)
    method = DERPP(tokens=6, strength=0.7, label_weight=0.5)
    learn(backbone, tiny_stream, method, tmp_path, **TRAINING)
    assert replayed == 5
    for found, wanted in seen:
        assert found == pytest.approx(wanted, rel=2e-3)


def test_accumulation_changes_nothing(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    """Terms of a method are scaled as the Trainer scales its own loss."""
    reached = [
        learn(backbone, tiny_stream, DERPP(tokens=6, strength=5.0), tmp_path, accumulation=parts, **TRAINING)[
            0
        ]
        for parts in (1, 2, 4)
    ]
    for other in reached[1:]:
        for a, b in zip(reached[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_strength_it_is_replay(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    plain, _ = learn(backbone, tiny_stream, {"name": "replay"}, tmp_path / "a")
    found, _ = learn(backbone, tiny_stream, {"name": "der++", "strength": 0.0}, tmp_path / "b")
    assert all(map(torch.equal, plain, found))
