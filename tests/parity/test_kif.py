"""KIF and KIFLoRA under the real Trainer: identification and fusion recomputed from what the steps were."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.config import TrainingConfig
from kifuse.errors import ConfigError
from kifuse.methods.base import Method, Parameters
from kifuse.methods.kif import KIF
from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from kifuse.training.context import TrainerContext
from kifuse.training.one_task import train_task
from tests.parity.literal import Values, loss_of, task_batches, trainable
from tests.reference import fusion, importance, units
from tests.reference.selection import threshold
from tests.two_tasks import adapted, encoded, load

pytestmark = pytest.mark.usefixtures("quick")
TRAINING: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 2, "batch_size": 4, "scheduler": "constant"}

VARIANTS: dict[str, dict[str, Any]] = {
    "kif": {"name": "kif"},
    "kif, authors' timing": {"name": "kif", "reading": "after"},
    "kif by module": {"name": "kif", "units": "module", "fusion": "adaptive"},
    "kif by element": {"name": "kif", "units": "element"},
    "kif without uncertainty": {"name": "kif", "uncertainty": False, "alpha1": 0.5, "order": "gradient"},
    "kif averaged": {"name": "kif", "fusion": "average", "average": 0.3},
    "kiflora": {"name": "kiflora"},
    "kiflora by mean": {"name": "kiflora", "unit_score": "mean", "fusion": "static", "beta": 0.5},
    "kiflora, authors' penalty": {"name": "kiflora", "orthogonality_squared": False},
}


@dataclass
class Training:
    """What went on while one task was trained."""

    start: Values
    before: list[tuple[Values, Values]] = field(default_factory=list)
    """Values and gradients when the gradients were complete, before the method saw them."""
    after: list[tuple[Values, Values]] = field(default_factory=list)
    """Values that the optimizer has moved, with the gradients that it moved them by."""
    fused: Values = field(default_factory=dict)
    """Values at the end of it all."""
    history: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def backbone(tiny_folder_llama: Path, quick: None) -> Backbone:
    return load(tiny_folder_llama)


def _copies(params: Parameters) -> tuple[Values, Values]:
    grads = [p.grad for p in params.tensors]
    assert all(grad is not None for grad in grads)
    return (
        dict(zip(params.names, params.clone(), strict=True)),
        {n: g.clone() for n, g in zip(params.names, grads, strict=True) if g is not None},
    )


def _train(
    backbone: Backbone, stream: Path, settings: dict[str, Any], folder: Path, **training: Any
) -> list[Training]:
    """Train two tasks and take down every step."""
    mine = adapted(backbone)
    first, second, memory = encoded(mine, stream)
    method: Method = build_method(settings["name"], {k: v for k, v in settings.items() if k != "name"})
    tasks: list[Training] = []
    on_gradients, on_update = KIF.on_gradients, KIF.on_update

    def see_gradients(self: KIF, params: Parameters) -> None:
        tasks[-1].before.append(_copies(params))
        on_gradients(self, params)

    def see_update(self: KIF, params: Parameters) -> None:
        tasks[-1].after.append(_copies(params))
        on_update(self, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KIF, "on_gradients", see_gradients)
        patch.setattr(KIF, "on_update", see_update)
        for index, examples in enumerate((first, second)):
            tasks.append(Training(trainable(mine)))
            done = train_task(
                mine.model,
                mine,
                method,
                TrainingConfig(**{**TRAINING, **training}),
                index=index,
                name=str(index),
                current=examples,
                memory=memory if index and method.old_data == "steps" else [],
                folder=folder,
            )
            tasks[-1].fused = trainable(mine)
            tasks[-1].history = method.state().tensors["history"].tolist()
            tasks[-1].events = done.events
    return tasks


def _penalty(a: Tensor, b: Tensor, squared: bool) -> Tensor:
    parts = [a @ a.T - torch.eye(len(a)), b.T @ b - torch.eye(b.shape[1])]
    return torch.stack([(p**2).sum() if squared else (p**2).sum().sqrt() for p in parts]).sum()


def _with_penalty(values: Values, grads: Values, method: KIF) -> Values:
    """Add the gradient of the orthogonality term, by automatic differentiation of Eq. 5."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    pairs = [(n, n.replace("lora_A", "lora_B")) for n in leaves if "lora_A" in n]
    terms = [_penalty(leaves[a], leaves[b], method.orthogonality_squared) for a, b in pairs]
    (method.orthogonality * torch.stack(terms).mean()).backward()
    added = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {name: grads[name] + added[name] for name in grads}


def _members(start: Values, level: str) -> list[list[tuple[str, tuple[int, ...]]]]:
    shapes = {name: tuple(value.shape) for name, value in start.items()}
    if level == "matrix":
        return units.matrix_units(shapes)
    if level == "element":
        return [[scalar] for whole in units.matrix_units(shapes) for scalar in whole]
    pairs = [(n, n.replace("lora_A", "lora_B")) for n in shapes if "lora_A" in n]
    if level == "module":
        return units.joined(shapes, pairs)
    return [unit for a, b in pairs for unit in units.rank_units(a, shapes[a], b, shapes[b])]


def _scores(task: Training, method: KIF) -> list[float]:
    """The importance of every unit for a task (Eq. 6, 8-12)."""
    names = list(task.start)
    seen = task.after
    if method.reading == "before":
        seen = task.before
        if method.orthogonality:
            seen = [(values, _with_penalty(values, grads, method)) for values, grads in seen]
    steps = [([values[n] for n in names], [grads[n] for n in names]) for values, grads in seen]
    plain = importance.run(
        steps, method.order, method.alpha1, method.alpha2, method.smoothing, method.uncertainty
    )
    by_name = dict(zip(names, plain, strict=True))
    if method.units == "rank" and method.unit_score == "outer":
        pairs = [(n, n.replace("lora_A", "lora_B")) for n in names if "lora_A" in n]
        return [s for a, b in pairs for s in units.outer_importance(by_name[a], by_name[b])]
    return units.mean_importance(by_name, _members(task.start, method.units))


def _fused(task: Training, weights: list[float], method: KIF) -> Values:
    """The model after fusion: previous and current scalars blended by the weight of their unit."""
    weight = {name: torch.full(value.shape, float("nan")) for name, value in task.start.items()}
    for unit, share in zip(_members(task.start, method.units), weights, strict=True):
        for name, index in unit:
            weight[name][index] = share
    learned = task.after[-1][0]
    return {
        name: torch.tensor(fusion.blend(start, learned[name], weight[name])).view_as(start)
        for name, start in task.start.items()
    }


def _weights(past: list[float], now: list[float], method: KIF) -> list[float]:
    p, c = torch.tensor(importance.min_max(past)), torch.tensor(importance.min_max(now))
    if method.fusion == "static":
        return fusion.static_weights(p, c, method.gamma, method.quantile)
    if method.fusion == "adaptive":
        return fusion.adaptive_weights(p, c, method.tau)
    return [method.average] * len(past)


@pytest.mark.parametrize("name", VARIANTS)
def test_fusion_follows_from_the_gradients(backbone: Backbone, tiny_stream: Path, tmp_path: Path, name: str):
    settings = VARIANTS[name]
    method = build_method(settings["name"], {k: v for k, v in settings.items() if k != "name"})
    assert isinstance(method, KIF)
    first, second = _train(backbone, tiny_stream, settings, tmp_path)

    # nothing to fuse with after the first task
    torch.testing.assert_close(first.fused, first.after[-1][0], rtol=0, atol=0)
    past, now = _scores(first, method), _scores(second, method)
    assert first.history == pytest.approx(past, rel=1e-4)

    weights = _weights(past, now, method)
    torch.testing.assert_close(second.fused, _fused(second, weights, method), rtol=1e-4, atol=2e-6)
    assert second.history == pytest.approx(importance.cumulative(past, now, method.beta), rel=1e-3, abs=1e-5)
    kinds = {event["kind"]: event for event in second.events}
    assert set(kinds) == ({"fusion", "orthogonality"} if method.orthogonality else {"fusion"})
    event = kinds["fusion"]
    assert event["units"] == len(weights)
    assert event["mean_weight_of_previous"] == pytest.approx(sum(weights) / len(weights), rel=1e-4)


def test_the_steps_in_between_are_plain_training(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    """Gradients are those of the loss at each step's values, and AdamW moves the values by them alone."""
    task = _train(backbone, tiny_stream, {"name": "kif"}, tmp_path, max_grad_norm=0.0)[0]
    mine = adapted(backbone)
    loss = loss_of(mine)
    batches = task_batches(encoded(mine, tiny_stream)[0], epochs=2, seed=0)
    moving = {name: value.clone().requires_grad_() for name, value in task.start.items()}
    adam = torch.optim.AdamW(moving.values(), lr=5e-3, weight_decay=0.0)
    for batch, (values, grads), (moved, _) in zip(batches, task.before, task.after, strict=True):
        torch.testing.assert_close(values, {n: v.detach() for n, v in moving.items()}, rtol=1e-4, atol=2e-6)
        adam.zero_grad()
        loss(moving, batch).backward()
        torch.testing.assert_close(grads, {n: v.grad for n, v in moving.items()}, rtol=1e-3, atol=2e-6)
        adam.step()
        torch.testing.assert_close(moved, {n: v.detach() for n, v in moving.items()}, rtol=1e-4, atol=2e-6)


def test_importance_is_read_from_clipped_gradients(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    task = _train(backbone, tiny_stream, {"name": "kif"}, tmp_path, max_grad_norm=1e-3)[0]
    for _, grads in task.before:
        norm = torch.cat([grad.flatten() for grad in grads.values()]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_the_orthogonality_term_makes_ranks_more_orthogonal(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path
):
    def residual(values: Values) -> float:
        pairs = [(n, n.replace("lora_A", "lora_B")) for n in values if "lora_A" in n]
        return sum(float(_penalty(values[a], values[b], squared=True)) for a, b in pairs)

    plain, strong = (
        _train(backbone, tiny_stream, {"name": "kiflora", "orthogonality": weight}, tmp_path)[0]
        for weight in (0.0, 10.0)
    )
    assert residual(strong.fused) < 0.95 * residual(plain.fused)


@pytest.mark.parametrize("kind", [{"name": "kif", "units": "element"}, {"name": "kiflora"}])
def test_replay_after_fusion_moves_all_but_the_units_of_the_current_task(
    backbone: Backbone,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
):
    settings = {**kind, "replay_epochs": 2, "replay_lr": 1e-3}
    fused: list[Values] = []
    original = TrainerContext.memory_step

    def memory_step(self: TrainerContext, **options: Any) -> None:
        fused.append(dict(zip(self.params.names, self.params.clone(), strict=True)))
        original(self, **options)

    monkeypatch.setattr(TrainerContext, "memory_step", memory_step)
    method = build_method(kind["name"], {k: v for k, v in settings.items() if k != "name"})
    assert isinstance(method, KIF)
    first, second = _train(backbone, tiny_stream, settings, tmp_path, weight_decay=0.1)
    past, now = _scores(first, method), _scores(second, method)
    expected = _fused(second, _weights(past, now, method), method)
    torch.testing.assert_close(fused[0], expected, rtol=1e-4, atol=2e-6)

    p, c = torch.tensor(past), torch.tensor(now)
    share = 1 - method.quantile
    limit_p, limit_c = threshold([p], share), threshold([c], share)
    frozen = [b > limit_c and a <= limit_p for a, b in zip(p.tolist(), c.tolist(), strict=True)]
    assert any(frozen), "the case is about frozen units"
    scalars, still = 0, {True: [], False: []}
    for unit, held in zip(_members(second.start, method.units), frozen, strict=True):
        still[held] += [bool(second.fused[n][index] == fused[0][n][index]) for n, index in unit]
        scalars += held * len(unit)
    assert all(still[True]) and sum(still[False]) < len(still[False]) / 20
    # five kept examples are two batches of four, in two passes
    assert len(fused) == 4
    stage = second.events[-1]
    total = sum(value.numel() for value in second.start.values())
    assert stage["kind"] == "replay stage" and stage["frozen_share"] == pytest.approx(scalars / total)


@pytest.mark.parametrize(("settings", "rate"), [({}, 5e-3), ({"replay_lr": 1e-4}, 1e-4)])
def test_replay_after_fusion_has_the_rate_of_training_not_of_its_end(
    backbone: Backbone,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    rate: float,
):
    rates: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    _train(
        backbone, tiny_stream, {"name": "kif", "replay_epochs": 1, **settings}, tmp_path, scheduler="linear"
    )
    assert rates[-3:] == pytest.approx([5e-3 / 6, rate, rate])


@pytest.mark.parametrize("key", ["alpha1", "alpha2"])
def test_an_average_that_never_takes_in_anything_is_refused(key: str):
    with pytest.raises(ConfigError, match=key):
        build_method("kif", {key: 1.0})
