"""LwF under the real Trainer against its literal loss, micro-batch by micro-batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kifuse.methods.lwf import LwF
from kifuse.models.loading import Backbone
from kifuse.training.method_loss import targets_of
from tests.reference import lwf
from tests.two_tasks import learn, load

pytestmark = pytest.mark.usefixtures("quick")
TRAINING: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 1, "scheduler": "constant"}


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


def test_each_loss_is_the_literal_one(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original, teachers = LwF.loss, list[nn.Module]()
    seen: list[tuple[float, float]] = []

    def begin(self: LwF, ctx: Any) -> None:
        teachers.append(copy.deepcopy(ctx.trainer.model).eval())

    def see(self: LwF, ctx: Any, model: Any, batch: Any, outputs: Any) -> Tensor:
        found = original(self, ctx, model, batch, outputs)
        if not ctx.task.first:
            now = ctx.targets(batch, outputs)
            with torch.no_grad():
                said = teachers[-1](**batch.only_part)
            before = targets_of(batch.only_part, said, encoder_decoder=backbone.encoder_decoder)
            pairs = [(a.detach(), gold, b) for (a, gold), (b, _) in zip(now, before, strict=True)]
            seen.append((float(found.detach()), lwf.loss(pairs, 3.0, 1.5)))
        return found

    monkeypatch.setattr(LwF, "begin_task", begin)
    monkeypatch.setattr(LwF, "loss", see)
    _, done = learn(backbone, tiny_stream, LwF(strength=3.0, temperature=1.5), tmp_path, **TRAINING)
    assert len(seen) == done.steps == 3 and done.extra_passes == 1
    for found, wanted in seen:
        assert found == pytest.approx(wanted, rel=1e-3)


def test_it_holds_the_model_and_accumulation_changes_nothing(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path
):
    plain, *reached = [
        learn(backbone, tiny_stream, LwF(strength=how), tmp_path, accumulation=parts, **TRAINING)[0]
        for how, parts in ((0.0, 1), (20.0, 1), (20.0, 2), (20.0, 4))
    ]
    assert not all(map(torch.equal, plain, reached[0]))
    for other in reached[1:]:
        for a, b in zip(reached[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
