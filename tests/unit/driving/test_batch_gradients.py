"""Losses and gradients that move nothing: against the Trainer's own, at other weights, twice, and refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kifuse.config import TrainingConfig
from kifuse.driving.batch_gradients import BatchGradients, StepInputs
from kifuse.driving.batches import MemoryBatches
from kifuse.driving.taps import Taps
from kifuse.driving.trainer_batch import TrainerBatch
from kifuse.errors import RunError
from kifuse.methods.base import SETTINGS, Context, Method, Need, OldData
from kifuse.models.loading import Backbone
from kifuse.running.one_task import TaskTraining, train_task
from tests.parity.literal import loss_of, task_batches, trainable
from tests.two_tasks import adapted, encoded, load

pytestmark = pytest.mark.usefixtures("quick")
Look = Callable[[Context], None]


@dataclass(kw_only=True, config=SETTINGS)
class Looking(Method):
    """Trains as ever, and lets a test look at each step."""

    curvature: bool = False
    at_batch: Any = None
    at_step: Any = None

    @property
    def old_data(self) -> OldData:
        return "steps"

    @property
    def needs(self) -> frozenset[Need]:
        wanted: dict[Need, bool] = {"batch": self.at_batch is not None, "curvature": self.curvature}
        return frozenset(need for need, is_so in wanted.items() if is_so)

    def on_gradients(self, ctx: Context) -> None:
        if self.at_batch is not None:
            self.at_batch(ctx)

    def on_step(self, ctx: Context) -> None:
        if self.at_step is not None:
            self.at_step(ctx)

    def settings(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def backbone(tiny_folder_llama: Path, quick: None) -> Backbone:
    return load(tiny_folder_llama)


@pytest.fixture(scope="module")
def t5(tiny_folder_t5: Path, quick: None) -> Backbone:
    return load(tiny_folder_t5)


def train(
    backbone: Backbone, stream: Path, folder: Path, method: Method, *, dropout: float = 0.0, **settings: Any
) -> tuple[Backbone, TaskTraining]:
    """Learn a later task of eleven examples in batches of four."""
    mine = adapted(backbone, dropout=dropout)
    _, current, memory = encoded(mine, stream)
    given = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "max_grad_norm": 0.0, **settings}
    done = train_task(
        mine.model,
        mine,
        method,
        TrainingConfig(**given),
        index=1,
        name="second",
        current=current,
        memory=memory,
        folder=folder,
    )
    return mine, done


def rows(batch: Any) -> int:
    """Examples of this process."""
    return sum(len(part["labels"]) for part in batch.parts)


def equal(first: list[Tensor], second: list[Tensor], atol: float = 1e-6) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("family", ["backbone", "t5"])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_on_its_own_batch_it_is_the_step_s_gradient(
    family: str, accumulation: int, tiny_stream: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    looked = []

    def look(ctx: Context) -> None:
        batch = ctx.step_batch()
        own = [p.grad.clone() for p in ctx.params.tensors]
        equal(ctx.gradient(batch), own)
        # minibatches, weighed by their target tokens, make up the batch
        parts = batch.split(3)
        assert [rows(part) for part in parts] in ([3, 1], [3])
        joined = parts[0] + parts[1] if len(parts) > 1 else parts[0]
        equal(ctx.gradient(joined), own)
        assert all(torch.equal(p.grad, g) for p, g in zip(ctx.params.tensors, own, strict=True))
        looked.append(rows(batch))

    method = Looking(at_batch=look)
    mine = request.getfixturevalue(family)
    _, done = train(mine, tiny_stream, tmp_path, method, accumulation=accumulation)
    assert looked == [4, 4, 3]
    assert done.extra_passes == 2 * 3


def test_at_other_weights_it_is_the_gradient_there(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    loss = loss_of(adapted(backbone))

    def look(ctx: Context) -> None:
        batch = ctx.step_batch()
        before = ctx.params.clone()
        other = [p + 0.1 * torch.randn_like(p) for p in before]
        found = ctx.gradient(batch, at=other)
        value = ctx.batch_loss(batch, at=other)
        assert all(torch.equal(p, b) for p, b in zip(ctx.params.tensors, before, strict=True))
        ctx.params.assign(other)
        equal(found, ctx.gradient(batch))
        assert math.isclose(value.item(), ctx.batch_loss(batch, at=ctx.params.tensors).item(), rel_tol=1e-6)
        ctx.params.assign(before)
        seen.append((other, found, value.item()))

    seen: list[Any] = []
    mine, _ = train(backbone, tiny_stream, tmp_path, Looking(at_batch=look))
    _, current, _ = encoded(mine, tiny_stream)
    first = task_batches(current, epochs=1, seed=1)[0]
    other, found, value = seen[0]
    leaves = {n: v.clone().requires_grad_() for n, v in zip(trainable(mine), other, strict=True)}
    literal = loss(leaves, first)
    assert math.isclose(float(literal.detach()), value, rel_tol=1e-5)
    equal(found, list(torch.autograd.grad(literal, list(leaves.values()))))


def test_a_drawn_batch_is_the_next_of_the_memory_and_counts(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path
):
    """The gradient on a drawn batch is that of a memory step on the same examples."""
    mine = adapted(backbone)
    _, _, memory = encoded(mine, tiny_stream)
    loss, drawn = loss_of(mine), MemoryBatches(memory, 4, 1)

    def look(ctx: Context) -> None:
        batch = ctx.draw_memory()
        assert rows(batch) == 4
        values = dict(zip(ctx.params.names, ctx.params.clone(), strict=True))
        leaves = {n: v.requires_grad_() for n, v in values.items()}
        wanted = torch.autograd.grad(loss(leaves, drawn.next()), list(leaves.values()))
        equal(ctx.gradient(batch), list(wanted))

    _, done = train(backbone, tiny_stream, tmp_path, Looking(at_step=look))
    assert done.replayed == 12 and done.extra_passes == 3


@pytest.mark.parametrize("on", [False, True])
def test_the_loss_of_a_memory_batch(backbone: Backbone, tiny_stream: Path, tmp_path: Path, on: bool):
    mine = adapted(backbone)
    _, _, memory = encoded(mine, tiny_stream)
    loss, drawn, found = loss_of(mine), MemoryBatches(memory, 4, -2), []

    def look(ctx: Context) -> None:
        before = torch.get_rng_state()
        value = ctx.memory_loss(train=on)
        assert torch.equal(torch.get_rng_state(), before)
        theta = dict(zip(ctx.params.names, ctx.params.clone(), strict=True))
        found.append((value, float(loss(theta, drawn.next()))))

    _, done = train(backbone, tiny_stream, tmp_path, Looking(at_step=look), dropout=0.5 if on else 0.0)
    for value, wanted in found:
        assert math.isclose(value, wanted, rel_tol=1e-5) is not on
    # three forward passes are one pass, and nothing was replayed
    assert (done.extra_passes, done.replayed) == (1, 0)


def test_looking_changes_nothing_of_training(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    def look(ctx: Context) -> None:
        ctx.gradient(ctx.step_batch(), noise=3)
        ctx.batch_loss(ctx.draw_memory(), at=ctx.params.tensors)
        ctx.memory_loss(train=True)

    runs = [
        train(backbone, tiny_stream, tmp_path, method, dropout=0.3)[0]
        for method in (Looking(), Looking(at_batch=look))
    ]
    first, second = map(trainable, runs)
    assert all(torch.equal(first[n], v) for n, v in second.items())


def test_passes_with_one_number_have_one_dropout(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    looked: list[list[Tensor]] = []

    def look(ctx: Context) -> None:
        batch = ctx.step_batch()
        first, again, other = (ctx.gradient(batch, noise=n) for n in (1, 1, 2))
        assert all(map(torch.equal, first, again))
        assert not all(map(torch.equal, first, other))
        looked.append(first)

    train(backbone, tiny_stream, tmp_path, Looking(at_batch=look), dropout=0.3)
    assert len(looked) == 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_gradient_is_differentiated_again(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, attention: str
):
    """A gradient's derivative along a direction, against the difference of two gradients."""
    backbone = load(tiny_folder_llama)
    backbone.model.set_attn_implementation(attention)

    def look(ctx: Context) -> None:
        batch = ctx.step_batch()
        theta = [p.requires_grad_() for p in ctx.params.clone()]
        draw = torch.Generator().manual_seed(0)
        direction = [torch.randn(p.shape, generator=draw) for p in theta]
        gradient = ctx.gradient(batch, at=theta, create_graph=True)
        along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
        found = torch.autograd.grad(along, theta)
        step = 1e-2
        ends = [
            ctx.gradient(batch, at=[p + s * d for p, d in zip(theta, direction, strict=True)])
            for s in (step, -step)
        ]
        wanted = [(one - other) / (2 * step) for one, other in zip(*ends, strict=True)]
        size = max(float(w.abs().max()) for w in wanted)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.02 * size)

    train(backbone, tiny_stream, tmp_path, Looking(at_batch=look, curvature=True))


def test_a_gradient_that_is_not_finite_makes_a_bad_step(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path
):
    def look(ctx: Context) -> None:
        if ctx.step == 1:
            ctx.params.tensors[0].grad.fill_(math.nan)

    reached = []
    method = Looking(at_batch=look, at_step=lambda ctx: reached.append(ctx.params.clone()))
    _, done = train(backbone, tiny_stream, tmp_path, method)
    assert all(map(torch.equal, reached[0], reached[1]))
    assert not all(map(torch.equal, reached[1], reached[2]))
    (event,) = [e for e in done.events if e["kind"] == "bad step"]
    assert (event["step"], event["tensors"]) == (2, 1)


def test_too_many_of_them_in_a_row_end_training(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    def look(ctx: Context) -> None:
        ctx.params.tensors[0].grad.fill_(math.nan)

    with pytest.raises(RunError, match="2 steps in a row"):
        train(backbone, tiny_stream, tmp_path, Looking(at_batch=look), max_bad_steps=2)


def test_outside_of_its_moment_there_is_no_batch(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    def look(ctx: Context) -> None:
        with pytest.raises(RunError, match="in on_gradients only"):
            ctx.step_batch()

    train(backbone, tiny_stream, tmp_path, Looking(at_step=look))


def test_a_batch_is_cut_over_its_parts():
    def part(rows: int, start: int) -> dict[str, Any]:
        return {
            "input_ids": torch.arange(start, start + rows).unsqueeze(1),
            "labels": torch.zeros(rows, 2),
            "use_cache": False,
            "mask": torch.ones(7),
        }

    batch = TrainerBatch((part(3, 0), part(2, 3), part(4, 5)))
    for size in range(1, 11):
        pieces = batch.split(size)
        found = [[int(i) for p in piece.parts for i in p["input_ids"]] for piece in pieces]
        assert [i for each in found for i in each] == list(range(9))
        assert all(len(each) == size for each in found[:-1]) and 0 < len(found[-1]) <= size
        assert all(p["use_cache"] is False and len(p["mask"]) == 7 for piece in pieces for p in piece.parts)
    assert rows(batch + batch) == 18 and (batch + batch).passes == 2
    assert [piece.passes for piece in batch.split(3)] == [Fraction(1, 3)] * 3
    # every process contributes its share, at least one example
    shared = TrainerBatch((part(3, 0), part(2, 3)), processes=2)
    assert [rows(piece) for piece in shared.split(4)] == [2, 2, 1]
    assert [rows(piece) for piece in shared.split(1)] == [1] * 5


@pytest.mark.parametrize(
    ("changes", "curvature", "message"),
    [
        ({"scaler": object()}, False, "use bf16 or fp32"),
        ({"checkpointing": True}, False, "gradient_checkpointing"),
        ({"attention": "flash_attention_2"}, True, "'flash_attention_2' cannot be differentiated twice"),
        ({"processes": 2}, True, "one process only"),
        ({"quantized": True}, True, "quantised layers"),
    ],
)
def test_set_ups_that_hide_gradients_are_refused(changes: dict[str, Any], curvature: bool, message: str):
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(_attn_implementation=changes.get("attention", "sdpa"))
    model.is_quantized = changes.get("quantized", False)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(scaler=changes.get("scaler")),
        args=SimpleNamespace(
            gradient_checkpointing=changes.get("checkpointing", False), world_size=changes.get("processes", 1)
        ),
        training_step=lambda: None,
    )
    with pytest.raises(RunError, match=message):
        StepInputs(Taps(trainer), model, curvature=curvature)
    if curvature:
        StepInputs(Taps(trainer), model, curvature=False)


def test_a_step_with_unlike_rows_is_refused_where_layers_lie_in_pieces(monkeypatch: pytest.MonkeyPatch):
    def gathered(found: list[Any], mine: list[int]) -> None:
        found[:] = [mine, other]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2))
    context: Any = SimpleNamespace(trainer=trainer, shards=SimpleNamespace(together=True))
    parts = tuple({"labels": torch.zeros(rows, 3)} for rows in (2, 1))
    other = [2, 1]
    BatchGradients(context).begin_step(parts)
    other = [2, 2]
    with pytest.raises(RunError, match=r"\[\[2, 1\], \[2, 2\]\] rows .* dataloader_drop_last=True"):
        BatchGradients(context).begin_step(parts)
