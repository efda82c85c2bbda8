"""Orthogonality of the rank-level units."""

import pytest
import torch

from kifuse.knowledge import orthogonality_gradients, orthogonality_penalty


def _pair(dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(3, 8, dtype=dtype), torch.randn(6, 3, dtype=dtype)


@pytest.mark.parametrize("squared", [True, False])
def test_penalty_sums_the_entries_of_both_gram_residuals(squared):
    a, b = _pair()
    parts = [0.0, 0.0]
    for i in range(3):
        for j in range(3):
            rows = sum(float(a[i, k] * a[j, k]) for k in range(8))
            columns = sum(float(b[k, i] * b[k, j]) for k in range(6))
            parts[0] += (rows - (i == j)) ** 2
            parts[1] += (columns - (i == j)) ** 2
    expected = sum(parts) if squared else sum(part**0.5 for part in parts)
    assert float(orthogonality_penalty(a, b, squared=squared)) == pytest.approx(expected)


@pytest.mark.parametrize("squared", [True, False])
def test_closed_form_gradients_equal_autograd(squared):
    a, b = (x.requires_grad_() for x in _pair())
    expected = torch.autograd.grad(orthogonality_penalty(a, b, squared=squared), (a, b))
    found = orthogonality_gradients(a, b, squared=squared)
    for gradient, wanted in zip(found, expected, strict=True):
        assert not gradient.requires_grad
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("squared", [True, False])
def test_orthonormal_units_have_no_penalty_and_no_gradient(squared):
    a, b = torch.eye(3, 8), torch.eye(6, 3)
    assert orthogonality_penalty(a, b, squared=squared) == 0
    assert not any(gradient.any() for gradient in orthogonality_gradients(a, b, squared=squared))


@pytest.mark.parametrize("squared", [True, False])
def test_a_zero_b_has_the_penalty_of_the_identity_and_no_gradient(squared):
    a, b = torch.eye(3, 8), torch.zeros(6, 3)
    assert float(orthogonality_penalty(a, b, squared=squared)) == pytest.approx(3.0 if squared else 3**0.5)
    assert not orthogonality_gradients(a, b, squared=squared)[1].any()


@pytest.mark.parametrize("squared", [True, False])
def test_stacked_pairs_give_what_each_pair_gives(squared):
    a, b = torch.randn(4, 2, 5), torch.randn(4, 7, 2)
    penalties = orthogonality_penalty(a, b, squared=squared)
    grads = orthogonality_gradients(a, b, squared=squared)
    for i in range(4):
        torch.testing.assert_close(penalties[i], orthogonality_penalty(a[i], b[i], squared=squared))
        for stacked, single in zip(grads, orthogonality_gradients(a[i], b[i], squared=squared), strict=True):
            torch.testing.assert_close(stacked[i], single)


def test_half_precision_is_computed_in_float32_and_gradients_keep_their_dtype():
    a, b = (x.bfloat16() for x in _pair())
    assert orthogonality_penalty(a, b).dtype == torch.float32
    assert [g.dtype for g in orthogonality_gradients(a, b)] == [torch.bfloat16] * 2


def test_descending_the_gradient_makes_the_units_orthonormal():
    a, b = _pair()
    a, b = a / 4, b / 4
    for _ in range(500):
        grad_a, grad_b = orthogonality_gradients(a, b)
        a, b = a - 0.02 * grad_a, b - 0.02 * grad_b
    torch.testing.assert_close(a @ a.mT, torch.eye(3, dtype=a.dtype), atol=1e-6, rtol=0)
    torch.testing.assert_close(b.mT @ b, torch.eye(3, dtype=b.dtype), atol=1e-6, rtol=0)
