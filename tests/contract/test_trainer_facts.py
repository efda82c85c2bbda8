"""What kifuse takes for granted of the Trainer: a change of it fails one test here, by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

pytestmark = pytest.mark.usefixtures("quick")
ROWS = 16


class Rows(Dataset[dict[str, Tensor]]):
    """A regression problem of a few rows."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(ROWS, 4, generator=draw)
        self.y = torch.randn(ROWS, 1, generator=draw)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.y[index], "row": torch.tensor(index)}


class Line(nn.Module):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.rows: list[list[int]] = []

    def forward(self, x: Tensor, row: Tensor | None = None) -> dict[str, Tensor]:
        if row is not None:
            self.rows.append(row.tolist())
        return {"logits": self.layer(x)}


def squares(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The squared error of the whole step's rows."""
    return ((outputs["logits"] - labels) ** 2).sum() / num_items_in_batch


@dataclass
class Event:
    """What was to be seen at an event."""

    kind: str
    step: int
    weight: Tensor
    grad: Tensor | None
    rate: float
    norm: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.norm = None if self.grad is None else float(self.grad.norm())


KINDS = ("step_begin", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end")


class Watch(TrainerCallback):
    """Takes down every event of a step; `act` may do something at one."""

    def __init__(self, act: Callable[[str, nn.Module], None] = lambda *_: None) -> None:
        self.events: list[Event] = []
        self.act = act
        for kind in KINDS:
            setattr(self, f"on_{kind}", self._taker(kind))

    def _taker(self, kind: str) -> Callable[..., None]:
        def take(args: Any, state: Any, control: Any, model: Any, optimizer: Any, **kwargs: Any) -> None:
            self.act(kind, model)
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            grad = torch.cat([g.flatten() for g in grads]).clone() if grads else None
            weight = torch.cat([p.detach().flatten() for p in model.parameters()])
            rate = optimizer.param_groups[0]["lr"]
            self.events.append(Event(kind, state.global_step, weight, grad, rate))

        return take

    def of(self, kind: str) -> list[Event]:
        """The events of one kind, in their order."""
        return [event for event in self.events if event.kind == kind]


Train = Callable[..., tuple[Watch, Trainer]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Trains a line and watches it."""

    def go(act: Callable[[str, nn.Module], None] = lambda *_: None, **changes: Any) -> tuple[Watch, Trainer]:
        settings: dict[str, Any] = {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "learning_rate": 0.1,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 0.0,
            "train_sampling_strategy": "sequential",
            "remove_unused_columns": False,
        }
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"),
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **{**settings, **changes},
        )
        watch = Watch(act)
        trainer = Trainer(
            model=Line(),
            args=arguments,
            train_dataset=Rows(),
            compute_loss_func=squares,
            callbacks=[watch],
        )
        trainer.train()
        return watch, trainer

    return go


def test_events_of_a_step_come_in_this_order(train: Train):
    watch, _ = train(gradient_accumulation_steps=2)
    one = ["step_begin", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end"]
    assert [event.kind for event in watch.events] == one * 2


def test_the_optimizer_moves_between_pre_optimizer_step_and_optimizer_step(train: Train):
    watch, _ = train()
    for before, after, end in zip(
        watch.of("pre_optimizer_step"), watch.of("optimizer_step"), watch.of("step_end"), strict=True
    ):
        assert not torch.equal(before.weight, after.weight)
        assert torch.equal(after.weight, end.weight)


def test_gradients_are_there_until_the_end_of_the_step(train: Train):
    watch, _ = train()
    for event in watch.events:
        assert (event.grad is None) == (event.kind in ("step_begin", "step_end"))
    for before, after in zip(watch.of("pre_optimizer_step"), watch.of("optimizer_step"), strict=True):
        assert before.grad is not None and after.grad is not None and torch.equal(before.grad, after.grad)


def test_gradients_are_clipped_at_pre_optimizer_step(train: Train):
    watch, _ = train(max_grad_norm=0.01)
    assert [event.norm for event in watch.of("pre_optimizer_step")] == pytest.approx([0.01] * 4, rel=1e-3)
    free, _ = train(max_grad_norm=0.0)
    assert all(event.norm is not None and event.norm > 0.1 for event in free.of("pre_optimizer_step"))


def test_gradients_are_complete_at_pre_optimizer_step(train: Train):
    whole, _ = train(per_device_train_batch_size=8)
    parts, _ = train(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    pairs = zip(whole.of("pre_optimizer_step"), parts.of("pre_optimizer_step"), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad)


def test_the_rate_at_step_end_is_the_next_steps(train: Train):
    watch, _ = train()
    rates = [0.1, 0.075, 0.05, 0.025]
    assert [event.rate for event in watch.of("pre_optimizer_step")] == pytest.approx(rates)
    assert [event.rate for event in watch.of("optimizer_step")] == pytest.approx(rates)
    assert [event.rate for event in watch.of("step_end")] == pytest.approx([*rates[1:], 0.0])


def test_steps_are_counted_before_step_end(train: Train):
    watch, trainer = train()
    assert [event.step for event in watch.of("pre_optimizer_step")] == [0, 1, 2, 3]
    assert [event.step for event in watch.of("step_end")] == [1, 2, 3, 4]
    assert trainer.state.max_steps == 4


def test_a_changed_gradient_is_what_the_optimizer_uses(train: Train):
    def clear(kind: str, model: nn.Module) -> None:
        if kind == "pre_optimizer_step":
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.zero_()

    watch, _ = train(clear)
    assert all(torch.equal(event.weight, watch.events[0].weight) for event in watch.events)


def test_weights_changed_at_step_end_are_trained_on(train: Train):
    def fuse(kind: str, model: nn.Module) -> None:
        if kind == "step_end":
            for p in model.parameters():
                p.data.fill_(0.5)

    watch, _ = train(fuse)
    for event in watch.of("step_begin")[1:]:
        assert torch.equal(event.weight, torch.full_like(event.weight, 0.5))


def test_a_step_cleared_of_its_moments_starts_them_anew(train: Train):
    _, trainer = train()
    inner = trainer.optimizer.optimizer
    assert all(int(state["step"]) == 4 for state in inner.state.values()) and inner.state
    inner.state.clear()
    for p in trainer.model.parameters():
        p.grad = torch.ones_like(p)
    trainer.optimizer.step()
    assert all(int(state["step"]) == 1 for state in inner.state.values())


def test_a_backward_after_training_works_as_in_it(train: Train):
    """The replay stage of KIF-M runs in on_train_end, on the wrapped model and the live accelerator."""
    _, trainer = train()
    inputs = trainer._prepare_inputs({"x": torch.ones(2, 4), "labels": torch.zeros(2, 1)})
    loss = trainer.compute_loss(trainer.model_wrapped, inputs, num_items_in_batch=torch.tensor(2))
    trainer.accelerator.backward(loss)
    expected = torch.autograd.grad(
        (trainer.model.layer(torch.ones(2, 4)) ** 2).sum() / 2, list(trainer.model.parameters())
    )
    for p, grad in zip(trainer.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_a_loss_function_is_given_the_count_of_the_whole_step(tmp_path: Path, train: Train):
    counts: list[int] = []

    def count(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        counts.append(int(num_items_in_batch))
        return squares(outputs, labels, num_items_in_batch)

    _, trainer = train()
    arguments = trainer.args
    arguments.gradient_accumulation_steps = 2
    Trainer(model=Line(), args=arguments, train_dataset=Rows(), compute_loss_func=count).train()
    assert counts == [8] * 4


def test_sequential_sampling_keeps_the_order_of_the_data(train: Train):
    _, trainer = train(per_device_train_batch_size=4)
    assert [row for rows in trainer.model.rows for row in rows] == list(range(ROWS))


def test_a_short_last_batch_is_a_step_of_its_own(train: Train):
    watch, trainer = train(per_device_train_batch_size=3, gradient_accumulation_steps=2)
    # 16 rows are five parts of three and one of one: three steps
    assert [len(rows) for rows in trainer.model.rows] == [3, 3, 3, 3, 3, 1]
    assert len(watch.of("step_end")) == 3


def test_making_a_trainer_seeds_every_generator_from_its_arguments(train: Train):
    """Why a task's own seed is given to the Trainer: it would undo a seed set before."""
    drawn = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        train(seed=11, num_train_epochs=0.25)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [("enable_jit_checkpoint", True, "enable_jit_checkpoint"), ("load_best_model_at_end", True, "load_best")],
)
def test_set_ups_that_methods_cannot_work_in_are_refused(train: Train, name: str, value: Any, word: str):
    from kifuse.driving.callback import MethodCallback
    from kifuse.errors import RunError
    from kifuse.methods.sequential import Sequential

    _, trainer = train()
    object.__setattr__(trainer.args, name, value)
    with pytest.raises(RunError, match=word):
        MethodCallback(Sequential(), index=0, name="task").attach(trainer)
    object.__setattr__(trainer.args, name, None)


def test_a_callback_without_its_trainer_says_so(tmp_path: Path):
    from kifuse.driving.callback import MethodCallback
    from kifuse.errors import RunError
    from kifuse.methods.sequential import Sequential

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    trainer = Trainer(
        model=Line(),
        args=arguments,
        train_dataset=Rows(),
        compute_loss_func=squares,
        callbacks=[MethodCallback(Sequential(), index=0, name="task")],
    )
    with pytest.raises(RunError, match=r"attach\(trainer\)"):
        trainer.train()
