"""A guard against broken numbers: a step with a non-finite loss or gradient is skipped, counted, reported.

A step is judged before the optimizer changes any weight: by the loss of each of its micro-batches, and by the
largest gradient of each tensor after the backward pass. This is before clipping, which would spread a NaN to
all tensors. A bad step leaves weights, moments and whatever a method gathers bit-identical. The schedule, the
data and the step count go on as if the step had been taken.

Cost: two numbers are read from the device in each step. The Trainer reads the loss of each micro-batch anyway
(`logging_nan_inf_filter`, on by default), so hardly any work is queued on the device by then.

Under fp16 it is normal that a gradient overflows now and then: the gradient scaler halves its scale and skips
the step by itself. The method does not see such a step either. It counts as bad only if the scale is below 1,
because then the gradient itself must be broken.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kifuse.driving.shards import piece_of
from kifuse.driving.taps import Taps
from kifuse.driving.under_way import UnderWay
from kifuse.errors import RunError
from kifuse.methods.base import Parameters

MAX_BAD_STEPS = 10
"""Bad steps in a row after which training stops, unless a user says otherwise."""

Kind = Literal["task", "memory"]
_KINDS: tuple[Kind, ...] = ("task", "memory")

_log = logging.getLogger(__name__)


class Guard:
    """Judges the steps of one task's training.

    Args:
        max_bad_steps: Training stops at this many bad steps in a row, of the task or of the memory.

    Raises:
        RunError: The number is below 1.
    """

    def __init__(self, max_bad_steps: int = MAX_BAD_STEPS) -> None:
        if max_bad_steps < 1:
            raise RunError(f"max_bad_steps is {max_bad_steps!r}, expected a whole number of at least 1.")
        self.limit = max_bad_steps
        self.bad: dict[str, int] = dict.fromkeys(_KINDS, 0)
        self.in_a_row: dict[str, int] = dict.fromkeys(_KINDS, 0)
        self.overflows = 0
        self.taken = 0
        self._losses: list[Tensor] = []
        self._largest: Tensor | None = None

    def watch(self, taps: Taps, params: Parameters) -> None:
        """Observe the losses and unclipped gradients of a Trainer's steps."""
        self.clear()

        def look(step: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss = step(*args, **kwargs)
            self._losses.append(loss.detach())
            if taps.trainer.accelerator.sync_gradients:
                self._largest = largest_gradients(params)
            return loss

        taps.training_step(look)

    def clear(self) -> None:
        """Forget losses and gradients that were seen."""
        self._losses, self._largest = [], None

    def take(self, params: Parameters) -> tuple[list[Tensor], Tensor]:
        """Return the losses and largest gradients seen since the last call."""
        largest = largest_gradients(params) if self._largest is None else self._largest
        seen = (self._losses, largest)
        self.clear()
        return seen

    def healthy(
        self, context: UnderWay, kind: Kind, step: int, losses: Sequence[Tensor], largest: Tensor
    ) -> bool:
        """Whether a step may be taken; otherwise it is counted and put on record.

        Args:
            context: The context of the training.
            kind: Whether it is a step on the task's own batches or on the memory.
            step: Its 1-based number in the task; for a memory step, the number of the task's step before it.
            losses: Losses of its micro-batches on this process, scalars.
            largest: `largest_gradients` of the step.

        Raises:
            RunError: The step is bad, and the limit of bad steps in a row is reached.
        """
        accelerator = context.trainer.accelerator
        bad_loss, bad_gradient = _judge(losses, largest, accelerator)
        if not bad_loss and not bad_gradient:
            self.in_a_row[kind] = 0
            return True
        scaler = getattr(accelerator, "scaler", None)
        if scaler is not None and not bad_loss and scaler.get_scale() >= 1.0:
            self.overflows += 1
            return False
        self.bad[kind] += 1
        self.in_a_row[kind] += 1
        loss = float(sum(losses)) if losses else math.nan
        largest_by_name = zip(context.params.names, largest.tolist(), strict=True)
        broken = [name for name, value in largest_by_name if not math.isfinite(value)]
        # as text, since JSON has no NaN
        context.event("bad step", step=step, of=kind, loss=str(loss), tensors=len(broken), first=broken[:3])
        self._tell(context, kind, step, loss, broken)
        return False

    def _tell(self, context: UnderWay, kind: Kind, step: int, loss: float, broken: list[str]) -> None:
        where = f"step {step} of {context.task.steps}" + (", memory batch" if kind == "memory" else "")
        tensors = f"{len(broken)} of {len(context.params.names)} tensors"
        found = f"loss {loss:.6g}, non-finite gradients in {tensors}"
        if broken:
            found += f" ({', '.join(broken[:3])}{', …' if len(broken) > 3 else ''})"
        if self.in_a_row[kind] < self.limit:
            count = self.bad[kind]
            # the 1st, 2nd, 4th, 8th, ... so that a long training does not print too many of them
            if count & (count - 1) == 0:
                _log.warning("%s skipped: %s; %d skipped so far", where, found, count)
            return
        if all(bool(torch.isfinite(p).all()) for p in context.params.tensors):
            weights = "The weights are finite, as they were before these steps."
        else:
            weights = "The weights themselves hold NaN or infinity: they were broken before these steps."
        raise RunError(
            f"{where}: {self.in_a_row[kind]} steps in a row had a loss or gradient that is not finite; the "
            f"last one: {found}. None of them changed the weights. {weights} Look at the examples of these "
            "steps, lower the learning rate, use more warm-up steps, or train in bf16 or fp32 instead of "
            "fp16. max_bad_steps sets how many such steps are allowed in a row."
        )

    def note(self, context: UnderWay) -> None:
        """Put the number of fp16 overflows on record, at the end of a task."""
        if self.overflows:
            context.event("fp16 overflows", skipped_steps=self.overflows)

    def state(self) -> dict[str, Any]:
        """The counts, as JSON."""
        counts = {"bad": dict(self.bad), "in_a_row": dict(self.in_a_row)}
        return {**counts, "overflows": self.overflows, "taken": self.taken}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        self.bad, self.in_a_row = dict(state["bad"]), dict(state["in_a_row"])
        self.overflows = int(state["overflows"])
        self.taken = int(state.get("taken", 1))  # an earlier kifuse did not count them


def largest_gradients(params: Parameters) -> Tensor:
    """The largest absolute gradient of each parameter, NaN where one is NaN, 0 where there is none.

    If a tensor is cut into pieces, only this process's piece counts.

    Returns:
        float32 `(parameters,)` on the first parameter's device; no value is read from the device.
    """
    device = params.tensors[0].device
    pieces = [None if g is None else piece_of(g) for g in params.grads]
    grads = [g for g in pieces if g is not None and g.numel()]
    fused = device.type != "cpu" and bool(grads)
    found = iter(torch._foreach_norm(grads, math.inf) if fused else _largest_on_cpu(grads))
    zero = torch.zeros((), device=device)
    empty = [g is None or not g.numel() for g in pieces]
    return torch.stack([zero if nothing else next(found).to(device, torch.float32) for nothing in empty])


def _largest_on_cpu(grads: Sequence[Tensor]) -> Iterator[Tensor]:
    """Compute the same as the fused norm, which has no fast kernel on a CPU."""
    for grad in grads:
        low, high = torch.aminmax(grad)
        yield torch.maximum(-low, high)


def _judge(losses: Sequence[Tensor], largest: Tensor, accelerator: Any) -> tuple[bool, bool]:
    """Whether a loss, and whether a gradient, is not finite on any process."""
    device = largest.device
    flags = torch.stack(
        [
            ~torch.isfinite(torch.stack([loss.to(device) for loss in losses])).all()
            if losses
            else torch.zeros((), dtype=torch.bool, device=device),
            ~torch.isfinite(largest).all(),
        ]
    ).float()
    if accelerator.num_processes > 1:
        # each process has its own losses, but all must decide alike
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    bad_loss, bad_gradient = flags.tolist()
    return bool(bad_loss), bool(bad_gradient)
