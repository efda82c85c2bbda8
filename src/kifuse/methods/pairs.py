"""What methods that keep one LoRA pair a task share: the pairs of the layers, a penalty on the new ones."""

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
    """The two factors of a layer, and what is stored of the t tasks before.

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
    """The LoRA pairs among the parameters with the name of their A, layer by layer."""
    by_name = dict(zip(params.names, params.tensors, strict=True))
    for name, a in by_name.items():
        other = name.replace("lora_A", "lora_B")
        if other != name and other in by_name:
            yield name, Pair(a, by_name[other], params.frozen.get(name), params.frozen.get(other))


def add_gradient(p: nn.Parameter, gradient: Tensor, weight: float) -> None:
    """Add a penalty's gradient to the loss's, where there is one."""
    if p.grad is not None:
        p.grad.add_(gradient.to(p.grad.dtype), alpha=weight)


class PairPenalty(Method):
    """Base of the methods that train a fresh pair a task under a penalty, and keep the others frozen.

    The gradient of the penalty is added after that of the loss was clipped. Its size is noted at the start of
    the task and beside each log line of the loss, and put on record.
    """

    adapter = "stack"

    _penalty: OfTask[tuple[list[int], list[float]] | None] = None
    """Steps, and the size of the penalty after each of them, before it is weighted; step 0 is the start."""

    @property
    @abstractmethod
    def weight(self) -> float:
        """What the penalty is multiplied by in the objective."""

    @abstractmethod
    def parts(self, params: Parameters) -> Iterator[Tensor]:
        """The penalty of each layer, before it is weighted; nothing in a task without a penalty."""

    def begin_task(self, ctx: Context) -> None:
        """Note the penalty of the fresh pairs."""
        self._penalty = ([], [])
        self._note(0, ctx.params)

    def on_step(self, ctx: Context) -> None:
        """Note the penalty where the loss is logged, and log it beside the loss."""
        if ctx.logging:
            size = self._note(ctx.step, ctx.params)
            if size is not None:
                ctx.log(penalty=size, weighted_penalty=self.weight * size)

    def end_task(self, ctx: Context) -> None:
        """Put on record what was noted."""
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
