"""Shared by methods that keep one LoRA pair per task: the layers' pairs, and a penalty on the new ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kifuse.methods.base import Context, Method
from kifuse.methods.kept import OfTask
from kifuse.methods.parameters import Parameters


@dataclass(frozen=True)
class Pair:
    """The two factors of a layer, and the stored factors of the t earlier tasks.

    Attributes:
        a: (r, in), trained.
        b: (out, r), trained.
        past_a: (t r, in), frozen; None in the first task.
        past_b: (out, t r), frozen; None in the first task.
    """

    a: nn.Parameter
    b: nn.Parameter
    past_a: Tensor | None = None
    past_b: Tensor | None = None


def named_pairs(params: Parameters) -> Iterator[tuple[str, Pair]]:
    """Yield the LoRA pairs among the parameters with the name of their A, layer by layer."""
    by_name = dict(zip(params.names, params.tensors, strict=True))
    for name, a in by_name.items():
        other = name.replace("lora_A", "lora_B")
        if other != name and other in by_name:
            yield name, Pair(a, by_name[other], params.frozen.get(name), params.frozen.get(other))


def add_gradient(p: nn.Parameter, gradient: Tensor, weight: float) -> None:
    """Add a penalty's gradient to the loss's gradient, if there is one."""
    if p.grad is not None:
        p.grad.add_(gradient.to(p.grad.dtype), alpha=weight)


class PairPenalty(Method):
    """Base of methods that train a new pair per task under a penalty, and keep the other pairs frozen.

    The penalty's gradient is added after the loss's gradient was clipped. The size of the penalty is noted at
    the start of the task and with each log line of the loss, and is recorded.
    """

    adapter = "stack"

    _penalty: OfTask[tuple[list[int], list[float]] | None] = None
    """Steps, and the size of the penalty after each of them, without its weight; step 0 is the start."""

    @property
    @abstractmethod
    def weight(self) -> float:
        """The factor of the penalty in the objective."""

    @abstractmethod
    def parts(self, params: Parameters) -> Iterator[Tensor]:
        """Yield the penalty of each layer, without its weight; nothing in a task without a penalty."""

    def begin_task(self, ctx: Context) -> None:
        """Note the penalty of the new pairs."""
        self._penalty = ([], [])
        self._note(0, ctx.params)

    def on_step(self, ctx: Context) -> None:
        """Note the penalty where the loss is logged, and log it too."""
        if ctx.logging:
            size = self._note(ctx.step, ctx.params)
            if size is not None:
                ctx.log(penalty=size, weighted_penalty=self.weight * size)

    def end_task(self, ctx: Context) -> None:
        """Record the noted penalties."""
        steps, values = self._penalty or ([], [])
        if steps:
            weighted = [self.weight * value for value in values]
            ctx.event("penalty", weight=self.weight, steps=steps, values=values, weighted=weighted)

    @torch.no_grad()
    def _note(self, step: int, params: Parameters) -> float | None:
        parts = list(self.parts(params))
        if not parts:
            return None
        size = float(torch.stack(parts).sum())
        steps, values = self._penalty or ([], [])
        steps.append(step)
        values.append(size)
        return size
