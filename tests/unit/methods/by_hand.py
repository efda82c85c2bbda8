"""Call a method's hooks on plain tensors, without a model or a Trainer; the loss is a formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.methods.base import Method
from kifuse.methods.context import TaskInfo
from kifuse.methods.parameters import Parameters
from tests.unit.methods.hand_passes import HandPasses

Values = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]

SHAPES = {
    f"layers.{layer}.{module}.lora_{side}.weight": shape
    for layer in (0, 1)
    for module in ("q", "v")
    for side, shape in (("A", (2, 4)), ("B", (4, 2)))
}
"""Two layers of two linear modules, each adapted at rank 2."""


def values(seed: int = 0) -> Values:
    """Make starting values by name, in float64."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=draw) / 2 for name, shape in SHAPES.items()
    }


def batches(count: int, seed: int = 1) -> list[Batch]:
    """Make batches of inputs and targets of a regression, with five examples each."""
    draw = torch.Generator().manual_seed(seed)
    shape = (5, 4)
    return [
        (
            torch.randn(shape, dtype=torch.float64, generator=draw),
            torch.randn(shape, dtype=torch.float64, generator=draw),
        )
        for _ in range(count)
    ]


def loss(theta: Values, batch: Batch) -> Tensor:
    """Compute the squared error of two residual layers."""
    x, target = batch
    for layer in (0, 1):
        for module in ("q", "v"):
            a, b = (theta[f"layers.{layer}.{module}.lora_{side}.weight"] for side in "AB")
            x = x + torch.tanh(x @ a.mT @ b.mT)
    return ((x - target) ** 2).mean()


class ByHand:
    """Trains one task, and is the `kifuse.methods.context.Context` of its method.

    Args:
        method: The method, which may be replaced between steps.
        theta: Starting values by name.
        current: The task's batches, one for each step.
        memory: Batches of the memory, taken in turn.
        rates: Learning rate of each step; or one number for all steps.
        index: 0-based position of the task.
        total_steps: The number of steps that the method is told; None: the number of batches.
    """

    def __init__(
        self,
        method: Method,
        theta: Values,
        current: Sequence[Batch],
        memory: Sequence[Batch],
        *,
        rates: float | Sequence[float] = 0.02,
        index: int = 1,
        total_steps: int | None = None,
    ) -> None:
        self.method = method
        self.params = Parameters((name, nn.Parameter(value.clone())) for name, value in theta.items())
        self.current, self.memory = list(current), list(memory)
        self.rates = [rates] * len(self.current) if isinstance(rates, float) else list(rates)
        self.total_steps = len(self.current) if total_steps is None else total_steps
        self.task = TaskInfo(index, f"task {index}", self.total_steps)
        self.step, self.lr, self.base_lr = 0, 0.0, self.rates[0]
        self.optimizer, self.own = (
            torch.optim.AdamW(self.params.tensors, lr=self.base_lr, weight_decay=0.01) for _ in range(2)
        )
        self.events: list[dict[str, Any]] = []
        self.measured: dict[str, Tensor] = {}
        self.memory_rates: list[float] = []
        self.before_memory: Values = {}
        self.after_memory: Values = {}
        self._drawn = 0
        self.batch = self.current[0]
        self.passes = HandPasses(self, loss)
        for name in ("step_batch", "draw_memory", "gradient", "batch_loss", "memory_loss", "clip"):
            setattr(self, name, getattr(self.passes, name))

    @property
    def next_lr(self) -> float:
        """The learning rate of the next step; 0 after the last one."""
        return self.rates[self.step] if self.step < len(self.rates) else 0.0

    @property
    def memory_size(self) -> int:
        """The number of examples in the memory."""
        return 5 * len(self.memory)

    @property
    def memory_batches(self) -> int:
        """The number of batches in one epoch over the memory."""
        return len(self.memory)

    def values(self) -> Values:
        """Copies of the values by name."""
        return dict(zip(self.params.names, self.params.clone(), strict=True))

    def steps(self) -> Iterator[int]:
        """Begin the task and take its steps, one after another; do not call the hook of the task's end."""
        self.begin()
        for batch, rate in zip(self.current, self.rates, strict=True):
            self.batch = batch
            self._gradients(batch)
            self.method.on_gradients(self)
            self.lr = rate
            self._move(self.optimizer, rate)
            self.method.on_update(self)
            self.optimizer.zero_grad()
            self.step += 1
            self.before_memory = {}
            self.method.on_step(self)
            yield self.step

    def train(self) -> list[Values]:
        """Train the whole task; return the values after each step."""
        reached = [self.values() for _ in self.steps()]
        self.end()
        return reached

    def begin(self) -> None:
        """Begin the task as the engine does."""
        self.method.take_up(self.params)
        self.method.begin_task(self)

    def go_on(self) -> None:
        """Begin the task in its middle, after the method was given the state of that moment."""
        weights, state = self.params.clone(), self.method.state()
        self.begin()
        self.params.assign(weights)
        self.method.go_on(state, self.params)

    def end(self) -> None:
        """End the task as the engine does."""
        self.method.end_task(self)
        self.method.forget_task()

    def _gradients(self, batch: Batch) -> None:
        loss(dict(zip(self.params.names, self.params.tensors, strict=True)), batch).backward()

    def _move(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()

    def memory_step(
        self,
        *,
        lr: float | None = None,
        optimizer: str = "shared",
        weight: float = 1.0,
        before: Callable[[Parameters], None] | None = None,
        after: Callable[[Parameters], None] | None = None,
    ) -> None:
        """Take one step on the next memory batch."""
        self.before_memory = self.before_memory or self.values()
        rate = self.lr if lr is None else lr
        self._gradients(self.memory[self._drawn % len(self.memory)])
        self._drawn += 1
        for p in self.params.tensors:
            if p.grad is not None:
                p.grad.mul_(weight)
        if before is not None:
            before(self.params)
        self._move(self.optimizer if optimizer == "shared" else self.own, rate)
        if after is not None:
            after(self.params)
        self.optimizer.zero_grad()
        self.memory_rates.append(rate)
        self.after_memory = self.values()

    def reset_moments(self) -> None:
        """Forget the moments of both optimizers."""
        self.optimizer.state.clear()
        self.own.state.clear()

    @property
    def logging(self) -> bool:
        """True: a log line is due after each step."""
        return True

    def log(self, **values: float) -> None:
        """Do nothing, since nobody reads the log."""

    def event(self, kind: str, **values: Any) -> None:
        """Keep what happened."""
        self.events.append({"kind": kind, "step": self.step, **values})

    def measure(self, **series: Tensor) -> None:
        """Keep what was measured."""
        for name, each in series.items():
            assert each.shape == (len(self.params.names),)
            self.measured[name] = each.detach().clone()


class Bare:
    """A context that has only parameters, for single hooks.

    Args:
        params: The parameters.
        task: The task; the second one if it is not given.
        more: Other attributes that a hook asks for.
    """

    logging, step, memory_size = False, 0, 0

    def __init__(self, params: Parameters, task: TaskInfo | None = None, **more: Any) -> None:
        self.params, self.task = params, task or TaskInfo(1, "second", 3)
        self.events: list[dict[str, Any]] = []
        vars(self).update(more)

    def event(self, kind: str, **values: Any) -> None:
        """Keep what happened."""
        self.events.append({"kind": kind, **values})

    def measure(self, **series: Tensor) -> None:
        """Do nothing, since nobody looks at the pictures."""


def begin(method: Any, ctx: Any) -> None:
    """Begin a task as the engine does."""
    method.take_up(ctx.params)
    method.begin_task(ctx)
