"""Squares of single examples in a Trainer: what is hooked, what is scaled, what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from kifuse.driving.example_squares import StepSquares
from kifuse.driving.taps import Taps
from kifuse.errors import RunError
from kifuse.methods.parameters import Parameters


class Accelerator:
    """As much of an accelerator as clipping needs."""

    num_processes = 1
    scaler: Any = None

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Tensor:
        """Clip by torch."""
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def _trainer(**changes: Any) -> Any:
    accelerator = Accelerator()
    accelerator.scaler = changes.pop("scaler", None)
    return SimpleNamespace(
        accelerator=accelerator,
        training_step=None,
        args=SimpleNamespace(**{"torch_compile": False, **changes}),
    )


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("limit", [0.1, 1e6, float("inf")])
def test_squares_are_of_the_clipped_gradient(limit: float):
    torch.manual_seed(0)
    model, trainer = nn.Linear(3, 2), _trainer()
    params = Parameters(model.named_parameters())
    squares = StepSquares(Taps(trainer), model, params)
    for _ in range(2):
        squares.clear()
        model.zero_grad()
        # one example: its square is that of the gradient, clipped or not
        model(torch.randn(1, 5, 3)).square().sum().backward()
        trainer.accelerator.clip_grad_norm_(params.tensors, limit)
        for square, grad in zip(squares.take(), params.grads, strict=True):
            assert grad is not None
            torch.testing.assert_close(square, grad**2)


def test_hooks_are_taken_off():
    model = nn.Linear(3, 2)
    squares = StepSquares(Taps(_trainer()), model, Parameters(model.named_parameters()))
    assert _hooks(model)
    squares.remove()
    assert not _hooks(model)
    squares.remove()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaler": object()}, "does not work under fp16.*use bf16 or fp32"),
        ({"torch_compile": True}, "torch_compile.*turn it off"),
    ],
)
def test_set_ups_that_hide_or_scale_gradients_are_refused(changes: dict[str, Any], message: str):
    model = nn.Linear(3, 2)
    with pytest.raises(RunError, match=message):
        StepSquares(Taps(_trainer(**changes)), model, Parameters(model.named_parameters()))
    assert not _hooks(model)


def test_trainable_parameters_of_other_modules_are_refused_by_name(tiny_t5: T5ForConditionalGeneration):
    with pytest.raises(RunError, match=r"fisher: per_example.*shared\.weight \(Embedding\)"):
        StepSquares(Taps(_trainer()), tiny_t5, Parameters(tiny_t5.named_parameters()))
    assert not _hooks(tiny_t5)


def test_a_layer_that_mixes_examples_is_refused_in_the_first_step():
    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(0, 1))

    model = Flattening()
    squares = StepSquares(Taps(_trainer()), model, Parameters(model.named_parameters()))
    model(torch.randn(4, 5, 3)).sum().backward()
    with pytest.raises(RunError, match="layer: the examples are not the rows of its input"):
        squares.take()
