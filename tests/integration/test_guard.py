"""Numbers that go wrong: the step moves nothing, is counted and told; too many of them stop the training."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainerControl, TrainerState

from kifuse.config import TrainingConfig
from kifuse.driving.batches import MemoryBatches
from kifuse.driving.callback import MethodCallback
from kifuse.driving.context import TrainerContext
from kifuse.driving.finite_guard import Guard, largest_gradients
from kifuse.driving.shards import Shards
from kifuse.driving.taps import Taps
from kifuse.driving.target_loss import TargetLoss
from kifuse.errors import RunError
from kifuse.methods.base import Method
from kifuse.methods.context import TaskInfo
from kifuse.methods.kept import Unsaved
from kifuse.methods.kif import KIF
from kifuse.methods.parameters import Parameters
from kifuse.methods.sequential import Sequential
from kifuse.running.runner import run
from tests.months import OWN, make_trainer, method_of, new_model, rows, same, weights
from tests.runs import make_config

pytestmark = pytest.mark.usefixtures("quick")


def _nan(loss: Tensor) -> Tensor:
    return loss * math.nan


def _infinite(loss: Tensor) -> Tensor:
    return loss / 0.0


def _nan_without_gradient(loss: Tensor) -> Tensor:
    return loss + math.nan


def _nan_gradient_only(loss: Tensor) -> Tensor:
    # the root of 0 is 0, its slope infinite
    return loss + (loss * 0.0).sqrt()


BROKEN = [_nan, _infinite, _nan_without_gradient, _nan_gradient_only]


class Breaking:
    """The usual loss, broken in the calls of these numbers."""

    def __init__(self, calls: set[int], how: Callable[[Tensor], Tensor] = _nan) -> None:
        self.calls, self.how, self.count = calls, how, 0
        self.usual = TargetLoss(shift=True)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        loss = self.usual(outputs, labels, num_items_in_batch)
        self.count += 1
        return self.how(loss) if self.count in self.calls else loss


class Watch(TrainerCallback):
    """Copies weights, moments and the method's state at the beginning and end of each step."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.seen: list[dict[str, Tensor]] = []

    def _take(self, model: nn.Module, optimizer: Any) -> None:
        moments = {
            f"{place}.{key}": value.clone()
            for place, state in enumerate(optimizer.state.values())
            for key, value in state.items()
        }
        state = {name: tensor.clone() for name, tensor in self.method.state().tensors.items()}
        self.seen.append({**weights(model), **moments, **state})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._take(kwargs["model"], kwargs["optimizer"])

    on_step_end = on_step_begin


@pytest.fixture
def train(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Trainer]:
    """Trains on six batches of four rows, at a constant rate and in the order of the rows."""

    def go(*callbacks: Any, left_out: int | None = None, model: Any = None, **changes: Any) -> Trainer:
        data = rows(tiny_tokenizer, "colour", 24)
        if left_out is not None:
            first = 4 * (left_out - 1)
            data = data.select([row for row in range(24) if not first <= row < first + 4])
        settings: dict[str, Any] = {
            "num_train_epochs": 1,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "compute_loss_func": TargetLoss(shift=True),
            "save_strategy": "no",
        }
        model = model or new_model(tiny_tokenizer, dropout=0.0)
        trainer = make_trainer(tiny_tokenizer, model, tmp_path, data, callbacks, **{**settings, **changes})
        trainer.train()
        return trainer

    return go


Train = Callable[..., Trainer]


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_bad_step_moves_nothing(train: Train, how: Callable[[Tensor], Tensor], optim: str):
    """One bad part of two is enough; weights, moments and importance stay as they were, bit for bit."""
    method = KIF()
    callback, watch = method.callback(), Watch(method)
    trainer = train(callback, watch, compute_loss_func=Breaking({5}, how), optim=optim, weight_decay=0.1)
    moved = [not same(before, after) for before, after in zip(watch.seen[::2], watch.seen[1::2], strict=True)]
    assert moved == [True, True, False, True, True, True]
    assert trainer.state.global_step == 6
    (event,) = [event for event in callback.context.events if event["kind"] == "bad step"]
    assert (event["step"], event["of"]) == (3, "task")
    json.dumps(callback.context.events, allow_nan=False)


# rounds of Recurrent-KIF are counted in steps, and a step left out moves them; a method that looks at the
# task's examples once more sees that there are fewer; EAFT and its kin put their own loss in place of the
# Trainer's, which is what is broken here; what answers questions itself needs a tokenizer
AS_IF = [
    name
    for name, settings in OWN.items()
    if settings["name"] not in ("recurrent-kif", "dft", "eaft", "asft")
    and not {"examples", "kept", "answers"} & method_of(settings).needs
]


@pytest.mark.parametrize("name", AS_IF)
def test_a_bad_step_is_as_if_its_batch_had_not_been(train: Train, name: str):
    broken, without = method_of(OWN[name]), method_of(OWN[name])
    memory = {"per_task": 4} if broken.old_data == "steps" else {}
    first = train(broken.callback(**memory), compute_loss_func=Breaking({5}))
    second = train(without.callback(**memory), left_out=3)
    assert same(weights(first.model), weights(second.model))
    one, other = broken.state().tensors, without.state().tensors
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_bad_steps_are_shown_and_logged(train: Train, caplog: pytest.LogCaptureFixture):
    callback = Sequential().callback()
    with caplog.at_level(logging.WARNING, "kifuse"):
        trainer = train(callback, compute_loss_func=Breaking({3, 9, 11}))
    told = [record.getMessage() for record in caplog.records if record.name.startswith("kifuse")]
    assert len(told) == 2  # the first and the second; the third is told with the fourth
    found = "loss nan, non-finite gradients in 8 of 8 tensors (base_model"
    assert told[0].startswith(f"step 2 of 6 skipped: {found}")
    assert told[1].startswith("step 5 of 6 skipped") and told[1].endswith("2 skipped so far")
    history = trainer.state.log_history
    logged = [(entry["step"], entry["skipped_steps"]) for entry in history if "skipped_steps" in entry]
    assert logged == [(2, 1), (5, 2), (6, 3)]
    # and the Trainer's own log of these steps is there too
    assert [entry["step"] for entry in history if "grad_norm" in entry] == [1, 2, 3, 4, 5, 6]


def test_too_many_bad_steps_in_a_row_stop_the_training(train: Train):
    callback = Sequential().callback(max_bad_steps=2)
    with pytest.raises(RunError) as raised:
        train(callback, compute_loss_func=Breaking({3, 7, 9}))
    message = str(raised.value)
    assert message.startswith("step 5 of 6: 2 steps in a row")
    for known in ("loss nan", "8 of 8 tensors (base_model", "weights are finite", "lower the learning rate"):
        assert known in message
    assert callback.context.step == 4


def test_weights_that_were_broken_before_are_said_to_be(train: Train, tiny_tokenizer: Any):
    model = new_model(tiny_tokenizer, dropout=0.0)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(math.nan)
    with pytest.raises(RunError, match="they were broken before these steps"):
        train(Sequential().callback(max_bad_steps=1), model=model)


def test_a_limit_below_one_is_refused():
    with pytest.raises(RunError, match="max_bad_steps is 0, expected"):
        Sequential().callback(max_bad_steps=0)


# ---- memory steps ----


class BreakingMemory(Breaking):
    """Broken in memory steps only, which come outside of a step."""

    def __init__(self, times: int) -> None:
        super().__init__(set())
        self.times, self.callback = times, None

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        loss = self.usual(outputs, labels, num_items_in_batch)
        if self.in_memory and self.times > 0:
            self.times -= 1
            return loss * math.nan
        return loss

    in_memory = False


class Replaying(Sequential.__base__):  # type: ignore[misc, name-defined]
    """Takes one memory step after each step, and notes what it saw."""

    old_data = "steps"
    optimizer: Unsaved[str] = "shared"
    moved: Unsaved[list[bool]]
    read: Unsaved[int] = 0

    def __init__(self, loss: BreakingMemory, optimizer: str) -> None:
        self.loss, self.optimizer = loss, optimizer
        self.moved = []

    def settings(self) -> dict[str, Any]:
        return {}

    def on_step(self, ctx: Any) -> None:
        before = ctx.params.clone()
        self.loss.in_memory = True
        ctx.memory_step(optimizer=self.optimizer, before=self.look)
        self.loss.in_memory = False
        self.moved.append(any(not torch.equal(a, b) for a, b in zip(before, ctx.params.tensors, strict=True)))
        assert all(p.grad is None for p in ctx.params.tensors)

    def look(self, params: Parameters) -> None:
        self.read += 1
        assert all(bool(torch.isfinite(g).all()) for g in params.grads if g is not None)


@pytest.mark.parametrize("optimizer", ["shared", "own"])
def test_a_bad_memory_step_moves_nothing_and_is_not_read(train: Train, tiny_tokenizer: Any, optimizer: str):
    loss = BreakingMemory(3)  # both parts of the first batch, one of the second
    method = Replaying(loss, optimizer)
    callback = method.callback(memory=rows(tiny_tokenizer, "fruit"))
    train(callback, compute_loss_func=loss)
    assert method.moved == [False, False, True, True, True, True] and method.read == 4
    told = [(event["of"], event["step"]) for event in callback.context.events]
    assert told == [("memory", 1), ("memory", 2)]
    assert callback.guard.bad == {"task": 0, "memory": 2}


def test_too_many_bad_memory_steps_stop_the_training(train: Train, tiny_tokenizer: Any):
    loss = BreakingMemory(99)
    callback = Replaying(loss, "shared").callback(memory=rows(tiny_tokenizer, "fruit"), max_bad_steps=3)
    with pytest.raises(RunError, match="step 3 of 6, memory batch: 3 steps in a row"):
        train(callback, compute_loss_func=loss)


# ---- fp16 ----


class Counting(Sequential.__base__):  # type: ignore[misc, name-defined]
    """Counts what it is shown."""

    gradients: Unsaved[int] = 0
    updates: Unsaved[int] = 0

    def on_gradients(self, ctx: Any) -> None:
        self.gradients += 1

    def on_update(self, ctx: Any) -> None:
        self.updates += 1


@pytest.mark.parametrize("fused", [False, True])
def test_an_fp16_overflow_is_kept_from_the_method_and_is_no_bad_step(fused: bool):
    """With a real gradient scaler; a fused optimizer skips the overflow itself, and nobody says so."""
    AcceleratorState()
    layer = nn.Linear(2, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    inner = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    optimizer = AcceleratedOptimizer(inner, device_placement=False, scaler=scaler)
    accelerator = SimpleNamespace(
        scaler=scaler, num_processes=1, sync_gradients=True, mixed_precision="fp16", native_amp=False
    )
    args = SimpleNamespace(learning_rate=0.1, max_grad_norm=0.0)
    control = TrainerControl()
    trainer = SimpleNamespace(
        args=args,
        accelerator=accelerator,
        optimizer=optimizer,
        data_collator=None,
        control=control,
        training_step=lambda factor: _scaled_step(layer, scaler, factor),
        log=lambda values: None,
    )
    method = Counting()
    callback = MethodCallback(method, index=0, name="task", max_bad_steps=3)
    callback.trainer = trainer
    callback.guard.watch(Taps(trainer), Parameters(layer.named_parameters()))
    callback.context = callback._new_context(Shards(layer.named_parameters()), TaskInfo(0, "task", 4))
    state, moved = TrainerState(), []
    for factor in (1.0, 1e38, 1.0, 1e38):
        before = weights(layer)
        trainer.training_step(factor)
        scaler.unscale_(inner)
        callback.on_pre_optimizer_step(args, state, control, optimizer=optimizer)
        optimizer.step()
        callback.on_optimizer_step(args, state, control, optimizer=optimizer)
        optimizer.zero_grad()
        moved.append(not same(before, weights(layer)))
        state.global_step += 1
    assert moved == [True, False, True, False]
    assert (method.gradients, method.updates) == (2, 2)
    assert scaler.get_scale() == 2.0
    assert callback.guard.overflows == 2 and callback.guard.bad["task"] == 0
    with pytest.raises(RunError, match="bf16"):
        for _ in range(9):  # 2, 1, then below 1: the gradient itself is broken
            trainer.training_step(math.inf)
            scaler.unscale_(inner)
            callback.on_pre_optimizer_step(args, state, control, optimizer=optimizer)
            optimizer.step()
            optimizer.zero_grad()
    assert (callback.guard.overflows, callback.guard.bad["task"]) == (4, 3)


def _scaled_step(layer: nn.Linear, scaler: Any, factor: float) -> Tensor:
    loss = layer(torch.ones(1, 2)).sum()
    # a gradient that is finite in truth, and overflows when it is scaled
    scaler.scale(loss * factor).backward()
    return loss.detach()


class Scaled:
    """What memory steps use of a Trainer under fp16, with a real gradient scaler on the CPU."""

    def __init__(self, max_grad_norm: float) -> None:
        torch.manual_seed(0)
        self.layer = self.model_wrapped = nn.Linear(2, 1)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
        self.inner = torch.optim.AdamW(self.layer.parameters(), lr=0.1)
        self.optimizer = AcceleratedOptimizer(self.inner, device_placement=False, scaler=self.scaler)
        self.accelerator = self
        self.num_processes, self.process_index, self.sync_gradients = 1, 0, True
        self.args = SimpleNamespace(
            learning_rate=0.1,
            max_grad_norm=max_grad_norm,
            per_device_train_batch_size=2,
            device="cpu",
            adam_beta1=0.9,
            adam_beta2=0.999,
            adam_epsilon=1e-8,
            weight_decay=0.01,
        )

    def data_collator(self, rows: list[dict[str, float]]) -> dict[str, Tensor]:
        return {"factor": torch.tensor([row["factor"] for row in rows])}

    def get_batch_samples(self, batches: Any, count: int, device: Any) -> tuple[list[Any], None]:
        return list(batches), None

    def training_step(self, model: nn.Linear, inputs: dict[str, Tensor], items: None) -> Tensor:
        loss = model(torch.ones(1, 2)).sum()
        self.scaler.scale(loss * inputs["factor"].mean()).backward()
        return loss.detach()

    def clip_grad_norm_(self, params: Any, limit: float) -> Tensor:
        self.scaler.unscale_(self.inner)
        return nn.utils.clip_grad_norm_(params, limit)


@pytest.mark.parametrize("optimizer", ["shared", "own"])
@pytest.mark.parametrize(("max_grad_norm", "weight"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.25)])
def test_memory_steps_under_fp16_are_unscaled_and_survive_overflows(
    optimizer: Any, max_grad_norm: float, weight: float
):
    AcceleratorState()
    trainer, read, read_after = Scaled(max_grad_norm), [], []
    factors = [1.0, 1e38, 0.5]
    batches = MemoryBatches([{"factor": factor} for factor in factors for _ in range(2)], 2, 0)
    batches._index = lambda position: position
    context = TrainerContext(
        trainer, Shards(trainer.layer.named_parameters()), batches, task=TaskInfo(0, "task", 4)
    )
    moved = []
    for _ in factors:
        before = weights(trainer.layer)
        context.memory_step(
            lr=0.1,
            optimizer=optimizer,
            weight=weight,
            before=lambda p: read.append(p.grads[1].item()),
            after=lambda p: read_after.append((p.grads[1].item(), same(before, weights(trainer.layer)))),  # noqa: B023
        )
        moved.append(not same(before, weights(trainer.layer)))
    assert moved == [True, False, True]
    # the gradients of both weights and the bias are the factor: clipped, they have length 1
    scaled = [factor * weight for factor in (1.0, 0.5)]
    expected = [min(factor, max_grad_norm / 3**0.5 if max_grad_norm else factor) for factor in scaled]
    assert read == pytest.approx(expected, rel=1e-4)
    # the same gradients again, when the weights have moved
    assert read_after == [(found, False) for found in read]
    assert trainer.scaler.get_scale() == 4.0
    assert context.guard.overflows == 1 and context.guard.bad["memory"] == 0


# ---- kifuse's own runs, and the pieces ----


def test_a_run_skips_bad_steps_and_keeps_them_on_record(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loss = Breaking({2})
    monkeypatch.setattr("kifuse.running.one_task.TargetLoss", lambda shift: loss)
    record = run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "kif"}))
    events = [event for task in record.tasks for event in task.events if event["kind"] == "bad step"]
    assert [(event["step"], event["loss"]) for event in events] == [(2, "nan")]
    again = json.loads((tmp_path / "run" / "record.json").read_text("utf-8"))
    assert "bad step" in json.dumps(again, allow_nan=False)


def test_a_run_stops_at_its_limit(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kifuse.running.one_task.TargetLoss", lambda shift: Breaking(set(range(1, 99))))
    assert "max_bad_steps" in TrainingConfig.model_fields
    config = make_config(
        tiny_folder_llama, tiny_stream, tmp_path, {"name": "kif"}, training={"max_bad_steps": 2}
    )
    with pytest.raises(RunError, match="step 2 of 3: 2 steps in a row"):
        run(config)


def test_largest_gradients_show_what_is_not_finite():
    layers = nn.ParameterList([torch.zeros(2), torch.zeros(3), torch.zeros(1), torch.zeros(2)])
    for p, grad in zip(layers, ([1.0, -3.0], [0.0, math.nan, math.inf], None, [-math.inf, 1.0]), strict=True):
        p.grad = None if grad is None else torch.tensor(grad)
    found = largest_gradients(Parameters(layers.named_parameters())).tolist()
    assert found[0] == 3.0 and math.isnan(found[1]) and found[2:] == [0.0, math.inf]


def test_gradients_whose_norm_overflows_are_finite(train: Train):
    """The squares of 1e20 are beyond float32; the step is clipped, not skipped."""
    callback = Sequential().callback()
    train(callback, compute_loss_func=Breaking({1}, lambda loss: loss * 1e20))
    assert callback.guard.bad["task"] == 0


def test_counts_come_back_from_a_checkpoint():
    first, second = Guard(), Guard()
    first.bad["task"], first.in_a_row["memory"], first.overflows = 3, 2, 1
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
