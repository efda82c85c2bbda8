"""Weighed losses under the real Trainer against their literal form, micro-batch by micro-batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from tests.parity.taught import TRAINING, losses
from tests.reference import token_weights
from tests.two_tasks import learn, load

pytestmark = pytest.mark.usefixtures("quick")


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
    name: str,
    settings: dict[str, Any],
    literal: tuple[str, float, float],
):
    method = build_method(name, settings)
    seen, _ = losses(
        backbone, tiny_stream, tmp_path, method, lambda rows: token_weights.loss(list(rows), *literal)
    )
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
