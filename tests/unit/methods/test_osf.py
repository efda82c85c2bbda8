"""Factors that stay clear of the frozen directions, whatever the optimizer makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kifuse.adapters.base import attached
from kifuse.adapters.osf import Osf
from kifuse.config import AdapterConfig
from kifuse.driving.context import sums_of
from kifuse.errors import ConfigError
from kifuse.methods.context import TaskInfo
from kifuse.methods.kept import MethodState
from kifuse.methods.osf import OSF
from kifuse.methods.parameters import Parameters
from kifuse.registry import build_method
from tests.adapters import close_factors, frozen_tensors
from tests.unit.methods.by_hand import Bare, begin

TASK = TaskInfo(1, "second", 5)


def model_of(rows: int, columns: int, share: float, seed: int = 0) -> Any:
    """A matrix under PEFT's tuner, opened for a task."""
    from peft import OSFConfig, get_peft_model

    torch.manual_seed(seed)
    base = nn.Sequential()
    base.add_module("layer", nn.Linear(columns, rows, bias=False))
    adapter = Osf(None, OSF())
    model = attached(adapter, get_peft_model(base, OSFConfig(effective_rank=1, target_modules=["layer"])))  # type: ignore[arg-type]
    adapter.open(share)
    return model


def params_of(model: Any) -> Parameters:
    return Parameters(model.named_parameters(), frozen_tensors(model))


def high(weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    u, _, v = torch.linalg.svd(weight.double(), full_matrices=False)
    return u[:, :k], v[:k]


def leak(params: Parameters, u: Tensor, v: Tensor) -> float:
    """The largest entry of U_h^T U_l and V_l V_h^T."""
    factors = {name.rpartition(".")[2]: p.detach().double() for name, p in params.pairs}
    return max(float((u.mT @ factors["U_low"]).abs().max()), float((factors["V_low"] @ v.mT).abs().max()))


def train(model: Any, method: OSF, optimizer: str, steps: int, rate: float) -> Parameters:
    params = params_of(model)
    ctx = Bare(params, TASK)
    begin(method, ctx)
    made = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer](
        params.tensors, lr=rate, weight_decay=0.1
    )
    draw = torch.Generator().manual_seed(1)
    columns = model.base_model.model.layer.in_features
    for _ in range(steps):
        x = torch.randn(7, columns, generator=draw)
        model(x).pow(3).mean().backward()
        method.on_gradients(ctx)
        made.step()
        method.on_update(ctx)
        made.zero_grad()
    return params


SHAPES = st.tuples(st.integers(2, 9), st.integers(2, 9), st.sampled_from([0.2, 0.5, 0.8]))


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES)
def test_after_steps_of_adamw_the_factors_are_orthogonal_to_what_is_frozen(shape: tuple[int, int, float]):
    rows, columns, share = shape
    model = model_of(rows, columns, share)
    layer = model.base_model.model.layer
    weight = layer.get_base_layer().weight.detach().clone()
    fixed = {name: b.clone() for name, b in model.named_buffers()}
    u, v = high(weight, layer.effective_rank["default"])
    before = params_of(model).clone()
    params = train(model, OSF(), "adamw", steps=12, rate=0.05)
    assert leak(params, u, v) < 1e-5
    assert any((p - old).abs().max() > 1e-2 for p, old in zip(params.tensors, before, strict=True))
    # frozen means bit for bit
    assert torch.equal(layer.get_base_layer().weight, weight)
    assert fixed and all(torch.equal(b, fixed[name]) for name, b in model.named_buffers())
    # the matrix has kept what is frozen: U_h^T W V_h^T and with it U_h^T W and W V_h^T
    close_factors(model)
    merged = layer.get_base_layer().weight.detach().double()
    torch.testing.assert_close(u.mT @ merged, u.mT @ weight.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged @ v.mT, weight.double() @ v.mT, rtol=1e-4, atol=1e-5)
    assert (merged - weight.double()).abs().max() > 1e-5


def test_projected_gradients_are_enough_for_sgd_but_not_for_adamw():
    for rows, columns in ((8, 8), (12, 6), (6, 12)):
        leaks = {}
        for optimizer, project, rate in (
            ("sgd", "gradient", 1.0),
            ("adamw", "gradient", 0.05),
            ("adamw", "update", 0.05),
        ):
            model = model_of(rows, columns, 0.5)
            layer = model.base_model.model.layer
            u, v = high(layer.get_base_layer().weight.detach(), layer.effective_rank["default"])
            params = train(model, OSF(project=project), optimizer, steps=12, rate=rate)  # type: ignore[arg-type]
            leaks[optimizer, project] = leak(params, u, v)
        assert leaks["sgd", "gradient"] < 1e-5 and leaks["adamw", "update"] < 1e-5
        assert leaks["adamw", "gradient"] > 1e-2


@pytest.mark.parametrize(("project", "small"), [("update", True), ("gradient", False)])
def test_the_record_says_how_much_is_frozen_and_how_much_has_leaked(project: Any, small: bool):
    model = model_of(9, 6, 0.5)
    method = OSF(project=project)
    params = train(model, method, "adamw", steps=12, rate=0.05)
    ctx = Bare(params, TASK)
    method.end_task(ctx)
    (event,) = ctx.events
    assert (event["kind"], event["frozen"], event["trained"]) == ("subspace", 3, 3)
    assert (event["in_frozen"] < 1e-6) if small else (event["in_frozen"] > 1e-2)
    assert method.state() == MethodState()


def test_the_frozen_share_grows_with_the_tasks_and_ends_at_all():
    def opened(growth: float, tasks: int) -> list[float]:
        found: list[float] = []
        adapter = Osf(AdapterConfig(kind="osf", preserve=0.5), OSF(growth=growth))
        adapter.open = found.append  # type: ignore[method-assign]
        for index in range(tasks):
            adapter.begin_task(index, seed=0)
        return found

    assert opened(0.0, 3) == [0.5, 0.5, 0.5]
    assert opened(0.2, 4) == pytest.approx([0.5, 0.7, 0.9, 1.0])


def test_another_last_bit_of_what_is_frozen_is_seen():
    model, again, other = (model_of(6, 6, 0.5) for _ in range(3))
    assert sums_of(frozen_tensors(model)) == sums_of(frozen_tensors(again))
    with torch.no_grad():
        buffer = next(iter(frozen_tensors(other).values()))
        buffer.view(-1)[0] = torch.nextafter(buffer.view(-1)[0], torch.tensor(9.0))
    assert sums_of(frozen_tensors(model)) != sums_of(frozen_tensors(other))


def test_other_adapters_are_refused():
    weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(
        ValueError, match=r"model\.adapter\.kind: OSF trains .* q\.lora_A is trained; use kind osf"
    ):
        OSF().check(Parameters([("q.lora_A", weight)]))


@pytest.mark.parametrize("wrong", [{"growth": -0.1}, {"growth": 1.1}, {"project": "weights"}, {"rank": 2}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build_method("osf", wrong)
