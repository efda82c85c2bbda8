"""MIGU: exactly the most used rows move, and the others stay bit for bit, whatever the optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kifuse.errors import ConfigError
from kifuse.methods.context import TaskInfo
from kifuse.methods.migu import MIGU, held_back
from kifuse.methods.parameters import Parameters
from kifuse.registry import build_method
from tests.reference import migu
from tests.unit.methods.by_hand import Bare, begin

SECOND = TaskInfo(1, "second", 3)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True), st.integers(0, 99))
def test_kept_are_the_most_used_of_the_units(numbers: list[int], percent: int):
    n = torch.tensor(numbers, dtype=torch.float32)
    (held,) = held_back([n], percent / 100)
    assert held is not None
    kept = {j for j in range(len(n)) if not held[j]}
    assert kept == migu.kept_rows(n, percent / 100)
    # (1 - q) n in whole numbers
    assert len(kept) == -(-(100 - percent) * len(n) // 100)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0, 0.99))
def test_more_are_kept_only_where_they_tie(numbers: list[int], quantile: float):
    n = torch.tensor(numbers, dtype=torch.float32)
    (held,) = held_back([n], quantile)
    assert held is not None
    kept = n[~held]
    assert len(kept) >= math.ceil((1 - quantile) * len(n) - 1e-9)
    assert int((kept > kept.min()).sum()) < (1 - quantile) * len(n) or len(kept) == 1
    assert not held.any() or bool(n[held].max() < kept.min())


def test_layers_are_judged_each_on_its_own():
    shapes = [(8, 1), (8, 1), (1, 3), (20, 1)]
    draw = torch.Generator().manual_seed(0)
    magnitudes: list[Tensor | None] = [torch.rand(s, generator=draw) * 10**i for i, s in enumerate(shapes)]
    found = held_back([*magnitudes, None], 0.7)
    assert found[-1] is None
    for n, held in zip(magnitudes, found, strict=False):
        assert n is not None and held is not None and held.shape == n.shape
        assert {j for j, h in enumerate(held.flatten()) if not h} == migu.kept_rows(n.flatten(), 0.7)


def _parameters() -> Parameters:
    draw = torch.Generator().manual_seed(1)
    shapes = {"lora_A": (4, 6), "lora_B": (10, 4), "norm": (6,), "conv": (6, 10)}
    return Parameters((n, nn.Parameter(torch.randn(s, generator=draw))) for n, s in shapes.items())


class Watching(Bare):
    """A context that watches layers: what is to be found there, `magnitudes`, is set by the test."""

    magnitudes: list[Tensor | None]
    output_dims = (0, 0, None, 1)

    def watch(self, function: Any) -> Any:
        """It is its own sums."""
        return self

    @property
    def sums(self) -> list[Tensor | None]:
        """What the test has set."""
        return self.magnitudes


def _train(method: MIGU, params: Parameters, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[Any]:
    """Of each step the values before and after, and which units were the most used."""
    draw = torch.Generator().manual_seed(2)
    seen, ctx = [], method._magnitudes
    for _ in range(steps):
        for p in params.tensors:
            p.grad = torch.randn(p.shape, generator=draw)
        sizes = [4, 10, None, 10]
        ctx.magnitudes = [None if s is None else torch.rand(s, generator=draw) for s in sizes]
        before = params.clone()
        method.on_gradients(ctx)
        grads = [None if g is None else g.clone() for g in params.grads]
        optimizer.step()
        method.on_update(ctx)
        seen.append((before, params.clone(), grads, ctx.magnitudes))
        optimizer.zero_grad()
    return seen


def _rows(values: Tensor, n: Tensor) -> Tensor:
    """With the output units in the rows."""
    return values if len(values) == len(n) else values.mT


def test_rows_that_are_held_back_stay_bit_for_bit_under_adamw():
    params, method = _parameters(), MIGU()
    optimizer = torch.optim.AdamW(params.tensors, lr=0.1, weight_decay=0.3)
    begin(method, Watching(params, SECOND))
    once: dict[tuple[int, int], int] = {}
    for before, after, grads, magnitudes in _train(method, params, optimizer, steps=6):
        for place, (b, a, g, n) in enumerate(zip(before, after, grads, magnitudes, strict=True)):
            if n is None:
                assert bool((a != b).all())
                continue
            kept = migu.kept_rows(n.flatten(), 0.7)
            assert len(kept) == {4: 2, 10: 3}[n.numel()]
            for j, (old, new, grad) in enumerate(zip(_rows(b, n), _rows(a, n), _rows(g, n), strict=True)):
                assert torch.equal(old, new) == (j not in kept)
                assert bool(grad.any()) == (j in kept)
                once[place, j] = once.get((place, j), 0) + (j in kept)
    # rows with moments of an earlier step were held back too
    assert any(0 < count < 6 for count in once.values())


def test_the_paper_s_rule_leaves_rows_alone_under_plain_sgd_only():
    params, method = _parameters(), MIGU(mask="gradient")
    begin(method, Watching(params, SECOND))
    steps = _train(method, params, torch.optim.SGD(params.tensors, lr=0.1))
    for before, after, _, magnitudes in steps:
        for b, a, n in zip(before, after, magnitudes, strict=True):
            for j in range(0 if n is None else n.numel()):
                kept = migu.kept_rows(n.flatten(), 0.7)
                assert torch.equal(_rows(b, n)[j], _rows(a, n)[j]) == (j not in kept)
    params = _parameters()
    steps = _train(method, params, torch.optim.AdamW(params.tensors, lr=0.1, weight_decay=0.3))
    before, after, _, _ = steps[-1]
    assert all(bool((b != a).all()) for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize(("settings", "task"), [({}, TaskInfo(0, "first", 3)), ({"quantile": 0.0}, SECOND)])
def test_the_first_task_and_quantile_zero_are_plain_training(settings: dict[str, Any], task: TaskInfo):
    params, plain = _parameters(), _parameters()
    method = MIGU(**settings)
    begin(method, Watching(params, task))
    _train(method, params, torch.optim.AdamW(params.tensors, lr=0.1))
    never = MIGU(quantile=0.0)
    begin(never, Watching(plain, task))
    optimizer = torch.optim.AdamW(plain.tensors, lr=0.1)
    draw = torch.Generator().manual_seed(2)
    for _ in range(3):
        for p in plain.tensors:
            p.grad = torch.randn(p.shape, generator=draw)
        [torch.rand(s, generator=draw) for s in ((4, 1), (10, 1), (1, 10))]
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params.clone(), plain.clone(), strict=True))


@pytest.mark.parametrize("settings", [{"quantile": 1.0}, {"quantile": -0.1}, {"mask": "rows"}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}: found"):
        build_method("migu", settings)
