"""An optimizer's moments, forgotten."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from kifuse.driving.optimizer_moments import forget_moments

OPTIMIZERS = {
    "AdamW": partial(torch.optim.AdamW, lr=0.1),
    "AdamW with the largest": partial(torch.optim.AdamW, lr=0.1, amsgrad=True),
    "fused AdamW": partial(torch.optim.AdamW, lr=0.1, fused=True),
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "NAdam": partial(torch.optim.NAdam, lr=0.1),
}


@pytest.mark.parametrize("made", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_that_forgot_steps_as_a_new_one(made: Any):
    torch.manual_seed(0)
    old, new = nn.Parameter(torch.randn(7)), nn.Parameter(torch.zeros(7))
    optimizer = made([old])
    for _ in range(3):
        old.grad = torch.randn(7)
        optimizer.step()
    forget_moments(optimizer)
    with torch.no_grad():
        new.copy_(old)
    fresh = made([new])
    for _ in range(3):
        old.grad = torch.randn(7)
        new.grad = old.grad.clone()
        optimizer.step()
        fresh.step()
        assert torch.equal(old, new)


def test_what_adam_forgot_stays_for_a_checkpoint_to_find():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    forget_moments(optimizer)
    # FSDP2 fills an empty state before a checkpoint, by a step that was never taken
    assert {key: float(value.sum()) for key, value in optimizer.state[weight].items()} == {
        "step": 0.0,
        "exp_avg": 0.0,
        "exp_avg_sq": 0.0,
    }
