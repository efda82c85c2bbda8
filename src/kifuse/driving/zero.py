"""Trained tensors under DeepSpeed's ZeRO, whose engine holds gradients, weights and moments in pieces.

Accelerate has the engine step inside the backward pass. Here the step waits until the Trainer calls its
optimizer, so that a method's hooks come where they come without DeepSpeed. After the last backward pass of a
step the gradients are put together on every process; they are clipped as torch does it, shown to the method,
and given back to the engine before it steps. The engine's own clipping rests meanwhile, since what a method
has made of the gradients is not clipped again.

Under stages 1 and 2 in full precision, a method sees the model's own tensors, which every process has whole.
Under stage 3, and where DeepSpeed trains in bf16 beside float32 masters, it sees whole float32 copies. At the
end of a task the masters become what the model holds, rounded, since a script saves only that.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.driving.shards import Shards, joined_in
from kifuse.driving.taps import Taps
from kifuse.errors import RunError
from kifuse.methods.parameters import Parameters

ENGINE = "kifuse_engine"
"""Attribute of a model that an engine has trained."""


class _OwnParameters(Parameters):
    """The model's own tensors, whose gradients are those that were put together from the engine."""

    held: list[Tensor | None]

    @property
    def grads(self) -> list[Tensor | None]:
        """See `Parameters.grads`."""
        return self.held


class ZeroShards(Shards):
    """What DeepSpeed's engine trains, and what a method sees of it.

    Args:
        named: See `Shards`.
        frozen: See `Shards`.
        engine: A DeepSpeed engine that is about to train with ZeRO of stage 1, 2 or 3.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], frozen: Any, engine: Any) -> None:
        self.engine = engine
        self._api: Any = importlib.import_module("deepspeed.utils")
        self.own = self._own = own = _OwnParameters(named, frozen)
        own.held = [None] * len(own.names)
        self.stage = int(engine.zero_optimization_stage())
        self._skips, self._last = False, True
        whole = self.stage < 3 and all(p.dtype == torch.float32 for p in own.tensors)
        self.cut, self.together, self.averages = not whole, self.stage == 3, False
        self._shown = False
        self.params: Parameters = own
        if self.cut:
            copies = [(n, nn.Parameter(self._weight(p).clone())) for n, p in own.pairs]
            self.params = Parameters(copies, frozen)
        self.moved = self.params

    def listen(self, taps: Taps) -> None:
        """See `Shards.listen`."""
        taps.engine_backward(self._backward)
        taps.optimizer_step(self._step)
        taps.clip_grad_norm(self._clip)

    def _backward(self, original: Any, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Run a backward pass without the step that would follow it."""
        last = sync_gradients and self._last
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(loss, **kwargs)
        if last:
            self._take()

    @torch.no_grad()
    def _take(self) -> None:
        """Put the gradients of the step together."""
        self._own.held = [self._api.safe_get_full_grad(p).clone() for p in self.own.tensors]
        for p in self.own.tensors:
            p.grad = None

    def _clip(self, original: Any, parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Tensor:
        """Clip as torch does, before the method sees the gradients."""
        grads = [grad for grad in self._own.held if grad is not None]
        norm = nn.utils.get_total_norm(grads)
        nn.utils.clip_grads_with_norm_(grads_of(grads), max_norm, norm)
        return norm

    def _step(self, original: Any, *args: Any, **kwargs: Any) -> None:
        """Let the engine step, without clipping once more; or pass over a bad step."""
        optimizer = self.engine.optimizer
        if self._skips:
            self._skips = False
            return self._pass_over(optimizer)
        self._give(self._own.held)
        limit, optimizer.clip_grad = optimizer.clip_grad, 0.0
        try:
            self.engine.step()
        finally:
            optimizer.clip_grad = limit

    def _pass_over(self, optimizer: Any) -> None:
        """End a step without moving anything: the engine does so where a gradient is infinite.

        The schedule goes on, as it does without DeepSpeed.
        """
        device = self.own.tensors[0].device
        broken = torch.full(tuple(self._shape(self.own.tensors[0])), torch.inf, device=device)
        self._give([broken, *self._own.held[1:]])
        checks = getattr(optimizer, "check_grad_overflow", None)
        optimizer.check_grad_overflow = True
        try:
            self.engine.step()
        finally:
            optimizer.check_grad_overflow = checks
        if not optimizer.overflow:
            raise RunError("deepspeed: its engine took a step that has an infinite gradient.")
        optimizer.overflow = False
        if self.engine.lr_scheduler is not None:
            self.engine.lr_scheduler.step()

    @torch.no_grad()
    def _give(self, grads: Sequence[Tensor | None]) -> None:
        """Give the engine this process's part of the gradients."""
        for p, grad in zip(self.own.tensors, grads, strict=True):
            value = torch.zeros(self._shape(p), device=p.device) if grad is None else grad
            if self.stage == 3:
                self._api.safe_set_local_grad(p, self._piece(p, value))
            else:
                self._api.safe_set_full_grad(p, value)

    def skip(self, optimizer: Any) -> None:
        """See `Shards.skip`."""
        self._skips = True

    def discard(self) -> None:
        """See `Shards.discard`."""
        with self._schedule_rests():
            self._pass_over(self.engine.optimizer)

    def end_step(self) -> None:
        """See `Shards.end_step`."""
        self._own.held = [None] * len(self.own.names)
        for p in self.params.tensors:
            p.grad = None

    @contextlib.contextmanager
    def part(self, accelerator: Any, model: Any, *, last: bool) -> Iterator[None]:
        """See `Shards.part`."""
        self._last = last
        try:
            yield
        finally:
            self._last = True

    @contextlib.contextmanager
    def _schedule_rests(self) -> Iterator[None]:
        """The engine's own schedule, if it has one, stays where it is."""
        schedule, self.engine.lr_scheduler = self.engine.lr_scheduler, None
        try:
            yield
        finally:
            self.engine.lr_scheduler = schedule

    @contextlib.contextmanager
    def stepping(self, *, shared: bool) -> Iterator[None]:
        """See `Shards.stepping`."""
        if shared:
            with self._schedule_rests():
                yield
            return
        with self.whole():
            yield
        self.discard()

    def groups(self, optimizer: Any) -> list[list[nn.Parameter]]:
        """See `Shards.groups`."""
        places = {id(p): place for place, p in enumerate(self.own.tensors)}
        inner, groups = self.engine.optimizer, [[] for _ in optimizer.param_groups]
        own = inner.fp16_groups if self.stage == 3 else inner.bit16_groups
        for number, members in enumerate(own):
            group = inner.sub_group_to_group_id[number] if self.stage == 3 else number
            groups[group] += [self.params.tensors[places[id(p)]] for p in members]
        return groups

    def gradients(self, value: Tensor) -> list[Tensor | None]:
        """See `Shards.gradients`; the engine puts away what it has put together, as it does after a step."""
        found = super().gradients(value)
        if self.stage == 3:
            # otherwise layers whose input needs no gradient stay whole, and no later engine can cut them
            self.engine.optimizer.parameter_offload.partition_all_parameters()
        return found

    @torch.no_grad()
    def gather(self) -> None:
        """See `Shards.gather`."""
        for p, copy, grad in zip(self.own.tensors, self.params.tensors, self._own.held, strict=True):
            if self.cut:
                copy.data.copy_(self._weight(p))
            copy.grad = grad

    @torch.no_grad()
    def scatter(self) -> None:
        """See `Shards.scatter`."""
        self._own.held = [p.grad for p in self.params.tensors]
        for p, copy in zip(self.own.tensors, self.params.tensors, strict=True):
            copy.grad = None
            self._put(p, copy.detach())

    @torch.no_grad()
    def settle(self) -> None:
        """See `Shards.settle`: in bf16 a script saves the model's rounded weights, not the masters."""
        for tensor in self.own.tensors:
            p: Any = tensor
            if self.stage == 3:
                self._api.safe_set_local_fp32_param(p, p.ds_tensor.detach().float())
            elif self.cut:
                self._api.safe_set_full_fp32_param(p, p.detach().float())
        self.gather()

    @torch.no_grad()
    def _hold(self, values: Sequence[Tensor]) -> list[Tensor]:
        """See `Shards._hold`; the float32 masters stay as they are."""
        held = [self._weight(p).clone() for p in self.own.tensors]
        self._let_go(values)
        return held

    @torch.no_grad()
    def _let_go(self, held: Sequence[Tensor]) -> None:
        """See `Shards._let_go`."""
        for p, value in zip(self.own.tensors, held, strict=True):
            self._show(p, value)

    def _weight(self, p: nn.Parameter) -> Tensor:
        """A whole weight in float32."""
        return self._api.safe_get_full_fp32_param(p).detach()

    def _put(self, p: Any, value: Tensor) -> None:
        """Write this process's part of a weight into the engine, and where the model computes with it."""
        if self.stage < 3:
            self._api.safe_set_full_fp32_param(p, value)
        else:
            self._api.safe_set_local_fp32_param(p, self._piece(p, value))
        if self.cut:
            self._show(p, value)

    def _show(self, p: Any, value: Tensor) -> None:
        """Write a weight where the model computes with it."""
        if self.stage == 3:
            p.ds_tensor.data.copy_(self._piece(p, value).view_as(p.ds_tensor))
        if p.numel() == value.numel():
            p.data.copy_(value)  # under stage 3 one that lies whole on every process beside its pieces

    def _piece(self, p: Any, value: Tensor) -> Tensor:
        """This process's piece of a whole tensor of stage 3, with zeros where the last one is longer."""
        size, flat = p.ds_tensor.numel(), value.reshape(-1)
        start = torch.distributed.get_rank() * size
        piece = flat[start : start + size]
        return torch.cat([piece, piece.new_zeros(size - piece.numel())])

    def _shape(self, p: Any) -> Sequence[int]:
        return p.ds_shape if self.stage == 3 else p.shape


@contextlib.contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Have what is trained lie whole in a model between trainings; what is changed goes back into the pieces.

    All processes enter and leave together, and change alike what they change. The base stays in pieces.

    Args:
        model: A model, in pieces or not.
    """
    trained: list[Any] = [p for p in model.parameters() if p.requires_grad]
    if any(hasattr(p, "ds_id") for p in trained):
        gathered = importlib.import_module("deepspeed").zero.GatheredParameters(trained, modifier_rank=0)
    else:
        gathered = joined_in(model)
    with gathered:
        yield


def hold_engine(trainer: Any) -> None:
    """Remember which engine has trained a Trainer's model: under stage 3 the model answers through it."""
    wrapped = getattr(trainer.accelerator, "deepspeed_engine_wrapped", None)
    if wrapped is not None:
        vars(trainer.model)[ENGINE] = wrapped.engine


def let_go_of_engine(model: nn.Module) -> None:
    """Take what the last engine has put on a model off it again, before another one trains it."""
    engine = vars(model).pop(ENGINE, None)
    if engine is None:
        return
    engine.destroy()
    for p in model.parameters():
        if p.data.is_inference():
            p.data = p.data.clone()  # put together while the model answered, when autograd was off


def grads_of(grads: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that hold others as their gradients, as torch's clipping wants them."""
    holders = [torch.empty_like(grad) for grad in grads]
    for holder, grad in zip(holders, grads, strict=True):
        holder.grad = grad
    return holders


def shards_of(trainer: Any, named: Iterable[tuple[str, nn.Parameter]], frozen: Any = None) -> Shards:
    """The trained tensors of a Trainer that is about to train, however they are cut.

    Args:
        trainer: The Trainer, with its model prepared.
        named: See `Shards`.
        frozen: See `Shards`.
    """
    wrapped = getattr(trainer.accelerator, "deepspeed_engine_wrapped", None)
    return Shards(named, frozen) if wrapped is None else ZeroShards(named, frozen, wrapped.engine)
