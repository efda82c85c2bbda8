"""Squared gradients of single examples against one backward pass for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM, T5ForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from kifuse.knowledge.per_example import SquaredGradients
from tests.reference import per_example as reference

Shares = list[Callable[[], Tensor]]


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _assert_squares(found: Sequence[Tensor], model: nn.Module, shares: Shares) -> None:
    expected, total = reference.sum_of_squares(_trainable(model), shares)
    assert all(t.abs().max() > 0 for t in total)
    for square, wanted, p in zip(found, expected, _trainable(model), strict=True):
        assert square.dtype == torch.float32 and square.shape == p.shape
        torch.testing.assert_close(
            square.double(), wanted, rtol=1e-4, atol=1e-7 * float(wanted.max()) + 1e-12
        )


class Net(nn.Module):
    """Linear layers of every kind that is known, one of them called twice."""

    def __init__(self, checkpointing: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4)
        self.twice = nn.Linear(4, 4, bias=False)
        self.turned = Conv1D(2, 4)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        for _ in range(2):
            if self.checkpointing:
                reentrant = self.checkpointing == "reentrant"
                hidden = checkpoint(self._block, hidden, use_reentrant=reentrant)  # type: ignore[assignment]
            else:
                hidden = self._block(hidden)
        return self.turned(hidden)

    def _block(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.twice(hidden)) * 2


def _losses(model: nn.Module, x: Tensor) -> Shares:
    return [lambda row=row: model(row[None]).square().sum() / 7 for row in x]


@pytest.mark.parametrize("checkpointing", ["", "reentrant", "other"])
@pytest.mark.parametrize("shape", [(5, 3), (5, 6, 3), (1, 6, 3), (4, 2, 3, 3)])
def test_squares_are_those_of_each_example_alone(checkpointing: str, shape: tuple[int, ...]):
    model, x = Net(checkpointing), torch.randn(shape)
    squares = SquaredGradients(model, _trainable(model))
    (model(x).square().sum() / 7).backward()
    found = [square.clone() for square in squares.sums()]
    squares.remove()
    plain = Net()  # of the same weights
    _assert_squares(found, plain, _losses(plain, x))


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), tokens=st.integers(1, 4), parts=st.integers(1, 4), seed=st.integers(0, 99))
def test_micro_batches_add_up(rows: int, tokens: int, parts: int, seed: int):
    model = Net()
    x = torch.randn(rows, tokens, 3, generator=torch.Generator().manual_seed(seed))
    squares = SquaredGradients(model, _trainable(model))
    for part in x.chunk(parts):
        (model(part).square().sum() / 7).backward()
    found = [square.clone() for square in squares.sums()]
    squares.remove()
    _assert_squares(found, model, _losses(model, x))


def test_many_rows_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kifuse.knowledge.per_example._MOST", 25)  # one or two rows at once
    test_squares_are_those_of_each_example_alone("", (5, 6, 3))


def test_a_single_example_gives_the_squared_gradient():
    model, x = Net(), torch.randn(1, 6, 3)
    squares = SquaredGradients(model, _trainable(model))
    model(x).square().sum().backward()
    for square, p in zip(squares.sums(), _trainable(model), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(square, p.grad**2)


def test_mixed_precision_is_squared_and_summed_in_float32():
    model, x = Net(), torch.randn(4, 6, 3)
    squares = SquaredGradients(model, _trainable(model))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().sum() / 7
    loss.backward()
    found = [square.clone() for square in squares.sums()]
    squares.remove()
    expected, _ = reference.sum_of_squares(_trainable(model), _losses(model, x))
    for square, wanted in zip(found, expected, strict=True):
        assert square.dtype == torch.float32
        torch.testing.assert_close(square.double(), wanted, rtol=0.1, atol=0.02 * float(wanted.max()))


def test_only_backward_passes_since_the_last_clear_count():
    model, x = Net(), torch.randn(4, 3)
    squares = SquaredGradients(model, _trainable(model))
    with torch.no_grad():
        model(x)
    model(x)  # and a forward pass without a backward pass
    assert not any(square.any() for square in squares.sums())
    model(x).sum().backward()
    assert all(square.any() for square in squares.sums())
    squares.clear()
    assert not squares.flat.any()
    model(2 * x).square().sum().div(7).backward()
    found = [square.clone() for square in squares.sums()]
    squares.remove()
    _assert_squares(found, model, _losses(model, 2 * x))


def test_frozen_parameters_are_left_out_and_no_hook_is_left():
    model = Net()
    model.first.weight.requires_grad_(False)
    model.turned.requires_grad_(False)
    squares = SquaredGradients(model, _trainable(model))
    x = torch.randn(4, 3)
    model(x).square().sum().div(7).backward()
    found = [square.clone() for square in squares.sums()]
    assert len(found) == 2  # the first layer's bias and the layer called twice
    squares.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    _assert_squares(found, model, _losses(model, x))


# real models

PAD = 0
DRAW = [([7, 9, 11, 8, 30], [12, 13]), ([21, 22], [14, 2]), ([31, 5, 6], [9, 9, 2]), ([40], [3])]
"""Prompts and targets of unlike lengths."""
TOKENS = sum(len(target) for _, target in DRAW)


def _llama_loss(model: nn.Module, examples: Sequence[Any], width: int = 0) -> Tensor:
    """The summed loss of the target tokens, right-padded, divided by the token count of all examples."""
    width = max(width, *(len(p) + len(t) for p, t in examples))
    ids = torch.tensor([p + t + [PAD] * (width - len(p) - len(t)) for p, t in examples])
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (prompt, target) in enumerate(examples):
        labels[row, len(prompt) : len(prompt) + len(target)] = torch.tensor(target)
        mask[row, : len(prompt) + len(target)] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return (
        nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / TOKENS
    )


def _t5_loss(model: nn.Module, examples: Sequence[Any], width: int = 0) -> Tensor:
    width = max(width, *(len(p) for p, _ in examples))
    longest = max(len(t) for _, t in examples)
    ids = torch.tensor([p + [PAD] * (width - len(p)) for p, _ in examples])
    mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p, _ in examples])
    start = torch.tensor([[PAD] + t[:-1] + [PAD] * (longest - len(t)) for _, t in examples])
    labels = torch.tensor([t + [-100] * (longest - len(t)) for _, t in examples])
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits
    return _cross_entropy(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / TOKENS


def _adapted(model: Any, targets: list[str]) -> nn.Module:
    config = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=targets)
    wrapped = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return wrapped


@pytest.fixture(params=["llama", "llama, whole layers", "t5", "t5, whole layers"])
def language_model(
    request: pytest.FixtureRequest, tiny_llama: LlamaForCausalLM, tiny_t5: T5ForConditionalGeneration
) -> tuple[nn.Module, Callable[..., Tensor]]:
    """A model with trainable linear layers, and its loss."""
    if request.param.startswith("llama"):
        model, loss, names = tiny_llama, _llama_loss, ["q_proj", "v_proj", "up_proj", "down_proj"]
    else:
        model, loss, names = tiny_t5, _t5_loss, ["q", "v", "wo"]
    if "whole" not in request.param:
        return _adapted(model, names), loss
    for name, p in model.named_parameters():
        p.requires_grad_(any(name.endswith(f".{each}.weight") for each in names))
    return model.eval(), loss


def test_squares_of_language_models(language_model: tuple[nn.Module, Callable[..., Tensor]]):
    model, loss = language_model
    squares = SquaredGradients(model, _trainable(model))
    for part in (DRAW[:3], DRAW[3:]):
        loss(model, part).backward()
    found = [square.clone() for square in squares.sums()]
    squares.remove()
    _assert_squares(found, model, [lambda e=e: loss(model, [e]) for e in DRAW])


def test_padding_and_batch_mates_add_nothing(language_model: tuple[nn.Module, Callable[..., Tensor]]):
    model, loss = language_model
    squares = SquaredGradients(model, _trainable(model))
    found = []
    for batches, width in (([DRAW], 0), ([DRAW[:2], DRAW[2:]], 0), ([DRAW], 23)):
        squares.clear()
        for batch in batches:
            loss(model, batch, width).backward()
        found.append(squares.flat.clone())
    squares.remove()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-9)


def test_rows_without_a_target_add_nothing(tiny_llama: LlamaForCausalLM):
    model = _adapted(tiny_llama, ["q_proj"])
    squares = SquaredGradients(model, _trainable(model))
    _llama_loss(model, DRAW).backward()
    expected = squares.flat.clone()
    squares.clear()
    _llama_loss(model, [*DRAW, ([9, 9, 9], [])]).backward()
    torch.testing.assert_close(squares.flat, expected, rtol=1e-4, atol=1e-9)


# what cannot be known is refused


def test_other_modules_are_refused_by_name(tiny_t5: T5ForConditionalGeneration):
    with pytest.raises(ValueError, match=r"shared\.weight \(Embedding\).* and \d+ more.*fisher: batch"):
        SquaredGradients(tiny_t5, _trainable(tiny_t5))
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    with pytest.raises(ValueError, match=r"1\.weight \(LayerNorm\), 1\.bias \(LayerNorm\)\. Freeze"):
        SquaredGradients(model, _trainable(model))


def test_a_linear_layer_with_a_forward_pass_of_its_own_is_refused():
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = Scaled(3, 3)
    with pytest.raises(ValueError, match=r"weight \(Scaled\)"):
        SquaredGradients(model, _trainable(model))


def test_shared_and_foreign_parameters_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"1\.weight is the same parameter as 0\.weight"):
        SquaredGradients(model, _trainable(model))
    with pytest.raises(ValueError, match="found 0 of the 1 parameters"):
        SquaredGradients(nn.Linear(2, 2), [nn.Parameter(torch.zeros(2))])


class Flattening(nn.Module):
    """Forgets which token is of which example, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1))


class Unhooked(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.layer.weight)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Flattening, "layer: the examples are not the rows"), (Unhooked, "layer: its weight")],
)
def test_examples_that_cannot_be_told_apart_are_refused(kind: type[nn.Module], message: str):
    model = kind()
    squares = SquaredGradients(model, _trainable(model))
    model(torch.randn(4, 5, 3)).sum().backward()
    with pytest.raises(ValueError, match=message):
        squares.sums()
