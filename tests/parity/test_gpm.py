"""GPM under the real Trainer: bases and steps against the singular vectors of single examples' inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.methods.gpm import GPM
from kifuse.models.loading import Backbone
from tests.parity.literal import Values
from tests.parity.per_example_literal import OneByOne
from tests.parity.seen import train_two
from tests.reference import gpm
from tests.two_tasks import load

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


def _inputs(mine: Backbone, theta: Values, examples: list[Any]) -> dict[str, list[Tensor]]:
    """The inputs of each trained matrix, token by token and without padding, one example after another."""
    literal, seen = OneByOne(mine), dict[str, list[Tensor]]()
    for name in theta:
        module = literal.model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_hook(lambda _, x, __, n=name: seen.setdefault(n, []).extend(x[0].detach()[0]))
    with torch.no_grad():
        for example in examples:
            literal.logits(theta, example)
    return seen


@pytest.mark.parametrize("project", ["update", "gradient"])
def test_steps_leave_alone_what_the_first_task_s_inputs_need(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, project: Any
):
    """Of every matrix of every step, under AdamW with weight decay and accumulation."""
    method = GPM(threshold=0.8, project=project)
    mine, (first, second) = train_two(
        backbone, tiny_stream, method, tmp_path, weight_decay=0.1, accumulation=2
    )
    assert all(a[n].equal(b[n]) for a, b in zip(first.raw, first.changed, strict=True) for n in a)
    assert first.events[-1]["free"] == 0 and 0 < first.events[-1]["taken"] < 1
    seen = _inputs(mine, first.end, first.examples)
    bases = {name: gpm.extend([], columns, 0.8) for name, columns in seen.items()}
    left = 0.0
    for values, raw, changed, moved in zip(
        second.values, second.raw, second.changed, second.moved, strict=True
    ):
        for name, basis in bases.items():
            wanted = gpm.project(raw[name], basis)
            torch.testing.assert_close(changed[name].double(), wanted, rtol=1e-3, atol=1e-5)
            step = (moved[name] - values[name]).double()
            inside = max(float((step @ m).norm()) for m in basis)
            left = max(left, inside)
            assert project == "gradient" or inside < 2e-5
    assert project == "update" or left > 1e-3
    later = _inputs(mine, second.end, second.examples)
    for name, basis in bases.items():
        found = (method._bases or {})[name].double()
        wanted = torch.stack(gpm.extend(basis, later[name], 0.803), dim=1)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found @ found.mT, wanted @ wanted.mT, rtol=0, atol=2e-3)
