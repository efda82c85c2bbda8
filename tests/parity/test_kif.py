"""KIF and KIFLoRA under the real Trainer: identification and fusion recomputed from what the steps were."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.config import TrainingConfig
from kifuse.driving.context import TrainerContext
from kifuse.errors import ConfigError
from kifuse.methods.base import Method
from kifuse.methods.context import Context
from kifuse.methods.kif import KIF
from kifuse.methods.parameters import Parameters
from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from kifuse.running.one_task import train_task
from tests.parity.literal import Values, loss_of, task_batches, trainable
from tests.reference import fusion, importance, per_example, units
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
    "kif, running average": {"name": "kif", "fusion": "ema", "ema_decay": 0.6},
    "kif by share": {"name": "kif", "threshold": "share", "importance_share": 0.6},
    "kif within layers": {"name": "kif", "scope": "layer", "quantile": 0.5},
    "ranks within modules": {"name": "kiflora", "fusion": "static", "scope": "module", "quantile": 0.5},
    "elements by share of each module": {
        "name": "kif",
        "units": "element",
        "threshold": "share",
        "importance_share": 0.8,
        "scope": "module",
    },
    "modules within layers": {"name": "tasl", "units": "module", "scope": "layer", "quantile": 0.5},
    "kif, single examples": {"name": "kif", "order": "second", "fisher": "per_example"},
    "kiflora, single examples": {"name": "kiflora", "fisher": "per_example", "reading": "after"},
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
    squares: list[Values] = field(default_factory=list)
    """Of each step, where the method asked for them."""
    fused: Values = field(default_factory=dict)
    """Values at the end of it all."""
    history: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    """By name, one number per trainable tensor."""


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

    def see_gradients(self: KIF, ctx: Context) -> None:
        params = ctx.params
        tasks[-1].before.append(_copies(params))
        if self.needs:
            squares = [square.clone() for square in ctx.squares]
            tasks[-1].squares.append(dict(zip(params.names, squares, strict=True)))
        on_gradients(self, ctx)

    def see_update(self: KIF, ctx: Context) -> None:
        tasks[-1].after.append(_copies(ctx.params))
        on_update(self, ctx)

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
            assert done.per_tensor["names"] == list(tasks[-1].start)
            tasks[-1].series = done.per_tensor["series"]
            assert method.state().tensors.keys() == {"history", "current"}
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


def _by_name(task: Training, method: KIF) -> Values:
    """The importance of every scalar for a task (Eq. 8-12)."""
    names = list(task.start)
    seen = task.after
    if method.reading == "before":
        seen = task.before
        if method.orthogonality:
            seen = [(values, _with_penalty(values, grads, method)) for values, grads in seen]
    steps = [([values[n] for n in names], [grads[n] for n in names]) for values, grads in seen]
    fishers = None
    if method.fisher == "per_example":
        fishers = [[squares[n] for n in names] for squares in task.squares]
    plain = importance.run(
        steps, method.order, method.alpha1, method.alpha2, method.smoothing, method.uncertainty, fishers
    )
    return dict(zip(names, plain, strict=True))


def _scores(task: Training, method: KIF) -> list[float]:
    """The importance of every unit for a task (Eq. 6)."""
    names, by_name = list(task.start), _by_name(task, method)
    if method.units == "rank" and method.unit_score == "outer":
        pairs = [(n, n.replace("lora_A", "lora_B")) for n in names if "lora_A" in n]
        return [s for a, b in pairs for s in units.outer_importance(by_name[a], by_name[b])]
    return units.mean_importance(by_name, _members(task.start, method.units))


def _spread(task: Training, values: list[float], method: KIF) -> Values:
    """One value per unit as one per scalar."""
    spread = {name: torch.full(value.shape, float("nan")) for name, value in task.start.items()}
    for unit, its in zip(_members(task.start, method.units), values, strict=True):
        for name, index in unit:
            spread[name][index] = its
    return spread


def _fused(task: Training, weights: list[float], method: KIF) -> Values:
    """The model after fusion: previous and current scalars blended by the weight of their unit."""
    if method.fusion == "ema":
        averages = {
            name: fusion.running_average(start, [values[name] for values, _ in task.after], method.ema_decay)
            for name, start in task.start.items()
        }
        return {name: torch.tensor(flat).view_as(task.start[name]) for name, flat in averages.items()}
    weight, learned = _spread(task, weights, method), task.after[-1][0]
    return {
        name: torch.tensor(fusion.blend(start, learned[name], weight[name])).view_as(start)
        for name, start in task.start.items()
    }


def _important(task: Training, scores: list[float], method: KIF) -> list[bool]:
    """Which units matter by their normalised scores, within their scope."""
    groups = [_group(unit[0][0], method.scope) for unit in _members(task.start, method.units)]
    rule = {"share": method.importance_share}
    if method.threshold == "quantile":
        rule = {"fraction": 1 - method.quantile}
    return fusion.important(importance.min_max(scores), groups=groups, **rule)


def _group(name: str, scope: str) -> str:
    if scope == "global":
        return ""
    module = name.partition(".lora_")[0]
    return module if scope == "module" else module.partition(".self_attn")[0]


def _weights(task: Training, past: list[float], now: list[float], method: KIF) -> list[float]:
    if method.fusion == "static":
        mattered, matters = (_important(task, scores, method) for scores in (past, now))
        return fusion.case_weights(mattered, matters, method.gamma)
    p, c = torch.tensor(importance.min_max(past)), torch.tensor(importance.min_max(now))
    if method.fusion == "adaptive":
        return fusion.adaptive_weights(p, c, method.tau)
    if method.fusion == "ema":
        return [method.ema_decay ** len(task.after)] * len(past)
    return [method.average] * len(past)


def _assert_counts(event: dict[str, Any], task: Training, past: list[float], now: list[float], method: KIF):
    """A fusion's record counts the units of each case, or gives the range of the weights."""
    cases = list(
        zip(_important(task, past, method), _important(task, now, method), strict=True)
        if method.fusion == "static"
        else []
    )
    expected = {
        "kept": cases.count((True, False)),
        "overwritten": cases.count((False, True)),
        "shared": cases.count((True, True)),
        "neither": cases.count((False, False)),
    }
    found = {key: event[key] for key in expected if key in event}
    assert found == (expected if method.fusion == "static" else {})
    if method.fusion == "adaptive":
        weights = _weights(task, past, now, method)
        assert event["min_weight_of_previous"] == pytest.approx(min(weights), rel=1e-3)
        assert event["max_weight_of_previous"] == pytest.approx(max(weights), rel=1e-3)


def _assert_series(task: Training, expected: dict[str, Values]):
    """What was measured of each tensor is the mean over its scalars."""
    assert task.series.keys() == expected.keys()
    for name, by_tensor in expected.items():
        means = [float(value.double().mean()) for value in by_tensor.values()]
        assert task.series[name] == pytest.approx(means, rel=1e-3, abs=1e-7), name


def _moved(task: Training) -> Values:
    """How far training alone has moved each scalar."""
    return {name: (value - task.start[name]).abs() for name, value in task.after[-1][0].items()}


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

    weights = _weights(second, past, now, method)
    torch.testing.assert_close(second.fused, _fused(second, weights, method), rtol=1e-4, atol=2e-6)
    assert second.history == pytest.approx(importance.cumulative(past, now, method.beta), rel=1e-3, abs=1e-5)
    kinds = {event["kind"]: event for event in second.events}
    assert set(kinds) == ({"fusion", "orthogonality"} if method.orthogonality else {"fusion"})
    event = kinds["fusion"]
    assert event["units"] == len(weights)
    assert event["mean_weight_of_previous"] == pytest.approx(sum(weights) / len(weights), rel=1e-4)
    _assert_counts(event, second, past, now, method)

    history = importance.cumulative(past, now, method.beta)
    _assert_series(
        first,
        {
            "importance": _by_name(first, method),
            "moved": _moved(first),
            "history_after": _spread(first, past, method),
        },
    )
    _assert_series(
        second,
        {
            "importance": _by_name(second, method),
            "moved": _moved(second),
            "history": _spread(second, past, method),
            "weight_of_previous": _spread(second, weights, method),
            "history_after": _spread(second, history, method),
        },
    )


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


@pytest.mark.parametrize(
    "training", [{}, {"accumulation": 2}, {"max_grad_norm": 0.0}, {"max_grad_norm": 1e-3, "accumulation": 4}]
)
def test_squares_are_of_each_example_by_itself(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, training: dict[str, Any]
):
    settings = {"name": "kif", "order": "second", "fisher": "per_example"}
    task = _train(backbone, tiny_stream, settings, tmp_path, **training)[0]
    mine = adapted(backbone)
    loss = loss_of(mine)
    batches = task_batches(encoded(mine, tiny_stream)[0], epochs=2, seed=0)
    names = list(task.start)
    for batch, (values, grads), squares in zip(batches, task.before, task.squares, strict=True):
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        tokens = sum(len(example.target_ids) for example in batch)
        shares = [
            lambda e=e, leaves=leaves, tokens=tokens: loss(leaves, [e]) * len(e.target_ids) / tokens
            for e in batch
        ]
        found, total = per_example.sum_of_squares(list(leaves.values()), shares)
        expected = per_example.clipped(found, total, training.get("max_grad_norm", 1.0))
        for name, square in zip(names, expected, strict=True):
            least = 1e-5 * float(square.max())
            torch.testing.assert_close(squares[name].double(), square, rtol=2e-3, atol=least)
        # four examples: their squares are not the square of the whole
        assert any(not torch.allclose(squares[name], grads[name] ** 2, rtol=0.1) for name in names)


def test_one_example_a_step_has_the_fisher_information_of_its_batch(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path
):
    settings = {"name": "kiflora", "orthogonality": 0.0}
    options = {"batch_size": 1, "epochs": 1, "max_grad_norm": 0.05}
    plain = _train(backbone, tiny_stream, settings, tmp_path, **options)
    single = _train(backbone, tiny_stream, {**settings, "fisher": "per_example"}, tmp_path, **options)
    for one, other in zip(plain, single, strict=True):
        torch.testing.assert_close(other.fused, one.fused, rtol=1e-4, atol=1e-6)
        for (_, grads), squares in zip(other.before, other.squares, strict=True):
            for name, grad in grads.items():
                torch.testing.assert_close(squares[name], grad**2, rtol=1e-3, atol=1e-9)


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


@pytest.mark.parametrize(
    "kind",
    [
        {"name": "kif-m", "units": "element"},
        {"name": "kiflora-m"},
        {"name": "kif-m", "units": "rank", "threshold": "share", "scope": "module", "importance_share": 0.5},
    ],
)
def test_replay_after_fusion_moves_all_but_the_units_of_the_current_task(
    backbone: Backbone,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
):
    settings = {**kind, "replay_epochs": 2, "replay_lr": 1e-3}
    fused: list[Values] = []
    moments: Values = {}
    original = TrainerContext.memory_step

    def memory_step(self: TrainerContext, **options: Any) -> None:
        fused.append(dict(zip(self.params.names, self.params.clone(), strict=True)))
        original(self, **options)
        assert self._own is not None
        states = [self._own.state[p] for p in self.params.tensors]
        for name, state in zip(self.params.names, states, strict=True):
            moments[name] = torch.stack([state["exp_avg"], state["exp_avg_sq"]]).abs().sum(0)

    monkeypatch.setattr(TrainerContext, "memory_step", memory_step)
    method = build_method(kind["name"], {k: v for k, v in settings.items() if k != "name"})
    assert isinstance(method, KIF)
    first, second = _train(backbone, tiny_stream, settings, tmp_path, weight_decay=0.1)
    past, now = _scores(first, method), _scores(second, method)
    expected = _fused(second, _weights(second, past, now, method), method)
    torch.testing.assert_close(fused[0], expected, rtol=1e-4, atol=2e-6)

    mattered, matters = (_important(second, scores, method) for scores in (past, now))
    frozen = [is_now and not was for was, is_now in zip(mattered, matters, strict=True)]
    assert any(frozen), "the case is about frozen units"
    scalars, still, touched = 0, {True: [], False: []}, {True: [], False: []}
    for unit, held in zip(_members(second.start, method.units), frozen, strict=True):
        still[held] += [bool(second.fused[n][index] == fused[0][n][index]) for n, index in unit]
        touched[held] += [bool(moments[n][index] > 0) for n, index in unit]
        scalars += held * len(unit)
    assert all(still[True]) and sum(still[False]) < len(still[False]) / 20
    assert not any(touched[True]) and sum(touched[False]) > len(touched[False]) * 0.95
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
