"""What KIF writes down of its penalty, so that its scale can be held against the task loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kifuse.methods.context import TaskInfo
from kifuse.methods.kif import KIF
from kifuse.methods.parameters import Parameters
from tests.unit.methods.by_hand import Bare, begin


@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_the_penalty_is_the_mean_over_adapted_matrices(weight: float) -> None:
    # A = 2 I: |A A^T - I|^2 = 2 * 3^2 = 18; A = I: 0; B = 0: |B^T B - I|^2 = 2 both times
    first, second = torch.eye(2, 3) * 2, torch.eye(2, 3)
    named = [
        ("layers.0.lora_A.default.weight", nn.Parameter(first)),
        ("layers.0.lora_B.default.weight", nn.Parameter(torch.zeros(4, 2))),
        ("layers.1.lora_A.default.weight", nn.Parameter(second)),
        ("layers.1.lora_B.default.weight", nn.Parameter(torch.zeros(4, 2))),
    ]
    params = Parameters(named)
    notes = Bare(params, TaskInfo(index=0, name="first", steps=1))
    method = KIF(units="rank", orthogonality=weight)
    begin(method, notes)
    method.end_task(notes)
    (event,) = notes.events
    assert event["kind"] == "orthogonality"
    assert event["weighted_penalty"] == pytest.approx(weight * (20 + 2) / 2)
