"""What KIF writes down of its penalty, so that its scale can be held against the task loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kifuse.methods.base import Parameters, TaskInfo
from kifuse.methods.kif import KIF


class Notes:
    """A step context that only listens."""

    memory_size = 0

    def __init__(self, params: Parameters) -> None:
        self.params = params
        self.events: list[dict[str, Any]] = []

    def measure(self, **series: torch.Tensor) -> None:
        """Not what this is about."""

    def event(self, kind: str, **values: Any) -> None:
        self.events.append({"kind": kind, **values})


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
    notes = Notes(params)
    method = KIF(units="rank", orthogonality=weight)
    task = TaskInfo(index=0, name="first", steps=1)
    method.begin_task(task, params)
    method.end_task(task, notes)  # type: ignore[arg-type]
    (event,) = notes.events
    assert event["kind"] == "orthogonality"
    assert event["weighted_penalty"] == pytest.approx(weight * (20 + 2) / 2)
