"""DER++: what is stored of a position, and the divergence from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from kifuse.errors import ConfigError
from kifuse.methods.derpp import divergence, likeliest
from kifuse.registry import build_method
from tests.reference import derpp

seeds = st.integers(0, 2**31)


def logits(seed: int, positions: int = 3, vocabulary: int = 9) -> torch.Tensor:
    return 2 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed))


@effort(max_examples=25, deadline=None)
@given(seeds, seeds, st.integers(1, 12))
def test_the_divergence_is_the_literal_one(before: int, now: int, kept: int):
    old, new = logits(before), logits(now)
    found = divergence(likeliest(old, kept), new)
    wanted = [derpp.divergence(a, b, min(kept, 8)) for a, b in zip(old, new, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=5e-3, atol=5e-3)
    assert bool((found > -1e-6).all())


@given(seeds)
@effort(max_examples=10, deadline=None)
def test_a_model_that_says_the_same_has_no_divergence_and_no_gradient(seed: int):
    now = logits(seed).requires_grad_()
    found = divergence(likeliest(now.detach(), 4), now).sum()
    found.backward()
    assert now.grad is not None
    assert float(found.detach()) < 1e-5 and float(now.grad.abs().max()) < 2e-3


def test_what_is_kept_of_a_position_does_not_grow_with_the_vocabulary():
    found = likeliest(logits(0, positions=5, vocabulary=5000), 64)
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "ids": (5, 64),
        "logs": (5, 64),
        "rest": (5,),
    }
    assert sum(t.nbytes for t in found.values()) == 5 * (64 * 6 + 4)


@pytest.mark.parametrize("settings", [{"strength": -1.0}, {"tokens": 0}, {"label_weight": -0.1}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, float]):
    with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}: found"):
        build_method("der++", settings)
