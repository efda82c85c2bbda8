"""LwF under the real Trainer against its literal loss, micro-batch by micro-batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kifuse.methods.lwf import LwF
from kifuse.models.loading import Backbone
from tests.parity.taught import TRAINING, losses
from tests.reference import lwf
from tests.two_tasks import learn, load

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


def test_each_loss_is_the_literal_one(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    method = LwF(strength=3.0, temperature=1.5)
    seen, done = losses(
        backbone, tiny_stream, tmp_path, method, lambda rows: lwf.loss(list(rows), 3.0, 1.5), first=False
    )
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
