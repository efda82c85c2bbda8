"""Answers that are sampled, and how far two models differ over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from kifuse.answering.sampling import SeededChoice
from kifuse.driving.sampled_batches import prompts_of
from kifuse.errors import ConfigError
from kifuse.methods.sampled import Direction, divergence
from kifuse.registry import build_method
from tests.reference import sampled

seeds = st.integers(0, 2**31)
directions = st.sampled_from(["reverse", "forward", "jsd"])


def logits(seed: int, positions: int = 3, vocabulary: int = 9) -> torch.Tensor:
    return 2 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed))


@effort(max_examples=25, deadline=None)
@given(seeds, seeds, directions)
def test_the_divergence_is_the_literal_one(student: int, teacher: int, direction: Direction):
    q, p = logits(student), logits(teacher)
    wanted = [sampled.divergence(a, b, direction) for a, b in zip(q, p, strict=True)]
    torch.testing.assert_close(divergence(q, p, direction), torch.tensor(wanted), rtol=1e-4, atol=1e-5)


@effort(max_examples=10, deadline=None)
@given(seeds, directions)
def test_a_student_that_says_the_same_is_taught_nothing(seed: int, direction: Direction):
    student = logits(seed).requires_grad_()
    found = divergence(student, student.detach(), direction)
    found.sum().backward()
    assert student.grad is not None and float(student.grad.abs().max()) < 1e-5
    assert float(found.detach().abs().max()) < 1e-5


def test_a_seeded_choice_draws_from_the_softmax_of_the_likeliest_tokens():
    scores = torch.tensor([[1.0, 0.0, 2.0, -1.0]])
    count, temperature = 4000, 0.7
    choice = SeededChoice(range(count), 3, temperature, scores.device)
    drawn = choice(torch.zeros(count, 1, dtype=torch.long), scores.expand(count, -1)).argmax(dim=-1)
    share = torch.bincount(drawn, minlength=4) / count
    wanted = torch.tensor([1.0, 0.0, 2.0, float("-inf")]).div(temperature).softmax(dim=-1)
    assert share[3] == 0
    torch.testing.assert_close(share, wanted, rtol=0, atol=0.03)


def test_a_rows_draw_depends_on_its_own_seed_alone():
    scores = logits(3, positions=2)
    alone = SeededChoice([7], 5, 1.0, scores.device)(torch.zeros(1, 1), scores[1:])
    beside = SeededChoice([1, 7], 5, 1.0, scores.device)(torch.zeros(2, 1), scores)
    assert torch.equal(alone[0], beside[1])


def test_what_a_row_asks_is_found_in_batches_of_either_form():
    ids, mask = torch.tensor([[0, 5, 6, 7, 8], [5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 1, 1, 1], [1] * 5])
    labels = torch.tensor([[-100, -100, -100, 7, 8], [-100, -100, -100, -100, 9]])
    asked = [[5, 6], [5, 6, 7, 8]]
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    assert prompts_of(batch, encoder_decoder=False) == asked
    # labels cut to the last columns
    assert prompts_of({**batch, "labels": labels[:, -3:]}, encoder_decoder=False) == asked
    read = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([[3], [4]])}
    assert prompts_of(read, encoder_decoder=True) == [[5, 6, 7, 8], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sdft", {"demonstration": "nothing shown"}),
        ("sdft", {"direction": "sideways"}),
        ("sdft", {"follow": 2.0}),
        ("on-policy-repair", {"steps": 0}),
    ],
)
def test_settings_without_a_meaning_are_refused(name: str, settings: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}"):
        build_method(name, settings)
