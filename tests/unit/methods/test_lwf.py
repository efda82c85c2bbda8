"""LwF: the divergence from the teacher at a position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from kifuse.errors import ConfigError
from kifuse.methods.lwf import distillation
from kifuse.registry import build_method
from tests.reference import lwf

seeds = st.integers(0, 2**31)


def logits(seed: int, positions: int = 3, vocabulary: int = 9) -> torch.Tensor:
    return 2 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed))


@effort(max_examples=25, deadline=None)
@given(seeds, seeds, st.floats(0.5, 5.0))
def test_the_distillation_is_the_literal_one(before: int, now: int, temperature: float):
    old, new = logits(before), logits(now)
    wanted = [lwf.distillation(a, b, temperature) for a, b in zip(old, new, strict=True)]
    found = distillation(old, new, temperature)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-4)


@effort(max_examples=10, deadline=None)
@given(seeds)
def test_a_model_that_says_the_same_is_taught_nothing(seed: int):
    now = logits(seed).requires_grad_()
    distillation(now.detach(), now, 2.0).sum().backward()
    assert now.grad is not None and float(now.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("settings", [{"strength": -1.0}, {"temperature": 0.0}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, float]):
    with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}: found"):
        build_method("lwf", settings)
