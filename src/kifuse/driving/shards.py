"""Puts trained tensors that FSDP2 has cut into pieces together, so that a method sees them whole.

A method scores units and fuses tensors as a whole, so every process holds whole copies of the trained
tensors. Before each of the method's hooks they are filled from the pieces of all processes, in one collective
call for each dtype. After the hook every process writes its own piece back. All processes compute the same
from the same numbers, and so stay equal.

The copies take memory beside the pieces: this is meant for adapters, not for training all of a large model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from kifuse.errors import RunError
from kifuse.methods.parameters import Parameters
from kifuse.models.pieces import put_away

# torch 2.13 renamed it, and the old name warns there
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class _Cut:
    """How one tensor is cut along its first dimension, into as many pieces as there are processes.

    Attributes:
        rows: Rows of a piece; the pieces of the last processes may have fewer, or none.
        width: Number of scalars in a row.
    """

    rows: int
    width: int

    def padded(self, piece: Tensor) -> Tensor:
        """Flatten a piece; if it has fewer rows, zeros follow."""
        missing = self.rows * self.width - piece.numel()
        flat = piece.reshape(-1)
        return torch.cat([flat, flat.new_zeros(missing)]) if missing else flat


class Shards:
    """The trained tensors of a model, cut or not, and the whole tensors that a method sees.

    Args:
        named: `(name, parameter)` pairs, as from `model.named_parameters()`; frozen ones are left out.
        frozen: See `Parameters`.

    Raises:
        RunError: A tensor is cut in another way than FSDP2 does it.

    Attributes:
        own: The model's own tensors, which an optimizer updates.
        params: The tensors that a method sees: the same ones, or whole copies if they are cut.
        moved: The tensors that an optimizer beside the Trainer's own updates.
        cut: Whether a method sees copies.
        together: Whether the layers put themselves together when they are called, so that all processes must
            call them equally often, and in the same order.
        averages: Whether `gradients` gives the mean over all processes.
    """

    own: Parameters
    params: Parameters
    moved: Parameters
    cut: bool
    together: bool
    averages: bool

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], frozen: Any = None) -> None:
        self.own = self.moved = Parameters(named, frozen)
        self.cut = self.together = self.averages = any(isinstance(p, DTensor) for p in self.own.tensors)
        self.params = self.own
        self._shown = False
        if not self.cut:
            return
        self._group, self._size, self._rank = _division(self.own)
        self._cuts = [_Cut(-(-p.shape[0] // self._size), p.numel() // p.shape[0]) for p in self.own.tensors]
        whole = [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in self.own.tensors]
        copies = zip(self.own.names, map(nn.Parameter, whole), strict=True)
        self.params = Parameters(copies, frozen)
        self.gather()

    def listen(self, taps: Any) -> None:
        """Put what is needed between a Trainer's events; see `kifuse.driving.taps.Taps`."""

    def part(self, accelerator: Any, model: Any, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Runs the passes of one part of a batch, whose gradients are complete after the `last`."""
        return contextlib.nullcontext() if last else accelerator.no_sync(model)

    def stepping(self, *, shared: bool) -> contextlib.AbstractContextManager[None]:
        """Runs a step on the memory, by the Trainer's optimizer (`shared`) or by one of its own."""
        return contextlib.nullcontext()

    def groups(self, optimizer: Any) -> list[list[nn.Parameter]]:
        """The tensors of each of the Trainer's optimizer's groups, as another optimizer moves them."""
        return [list(group["params"]) for group in optimizer.param_groups]

    def skip(self, optimizer: Any) -> None:
        """Leave the Trainer's optimizer nothing to do in the step that it is about to take."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = None  # it passes over such parameters, moments and all

    def discard(self) -> None:
        """Forget the gradients of a step on the memory that is not taken."""

    def end_step(self) -> None:
        """Forget the gradients of a step that was taken."""

    def settle(self) -> None:
        """Take what the model computes with for what was learned, at the end of a task."""

    @contextlib.contextmanager
    def whole(self) -> Iterator[Parameters]:
        """Give the tensors that a method sees, filled from the model; write its changes back at the end."""
        self.gather()
        self._shown = True
        try:
            yield self.params
        finally:
            self._shown = False
        self.scatter()

    @contextlib.contextmanager
    def apart(self) -> Iterator[Parameters]:
        """Give the model's own tensors in the middle of `whole`, for a step that updates them."""
        self.scatter()
        shown, self._shown = self._shown, False
        try:
            yield self.own
        finally:
            self._shown = shown
        self.gather()

    @contextlib.contextmanager
    def holding(self, model: nn.Module, values: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Let the model compute with other values than those in its pieces, which come back at the end.

        Args:
            model: The model whose tensors these are.
            values: Whole values of the trained tensors, equal on all processes; None: what a method sees at
                the moment, which it may have changed.
        """
        if not self.cut or (values is None and not self._shown):
            yield
            return
        held = self._hold(self.params.tensors if values is None else values)
        put_away(model)
        try:
            yield
        finally:
            self._let_go(held)
            put_away(model)

    @torch.no_grad()
    def _hold(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Write this process's piece of whole values; returns what was there."""
        held = [piece_of(p.detach()).clone() for p in self.own.tensors]
        for cut, p, value in zip(self._cuts, self.own.tensors, values, strict=True):
            piece, start = piece_of(p.detach()), self._rank * cut.rows
            piece.copy_(value[start : start + piece.shape[0]])
        return held

    @torch.no_grad()
    def _let_go(self, held: Sequence[Tensor]) -> None:
        """Write back what `_hold` has returned."""
        for p, before in zip(self.own.tensors, held, strict=True):
            piece_of(p.detach()).copy_(before)

    def gradients(self, value: Tensor) -> list[Tensor | None]:
        """Whole gradients of a scalar that the model has computed; None where a tensor has no part in it.

        The gradients of a step that lie on the tensors stay as they are. If `together`, all processes call
        this for values that the same layers have computed. If `averages`, what is returned is the mean of
        their gradients.
        """
        if not self.averages:
            # no gradient is put on the tensors, whose own hooks belong to the Trainer's steps
            return list(torch.autograd.grad(value, self.own.tensors, allow_unused=True))
        held = self.own.grads
        for p in self.own.tensors:
            p.grad = None
        try:
            # the pieces are no part of the graph: FSDP2 puts gradients on them at the end of a backward pass
            value.backward()
            found = self.own.grads
        finally:
            for p, grad in zip(self.own.tensors, held, strict=True):
                p.grad = grad
        present = [place for place, grad in enumerate(found) if grad is not None]
        whole: list[Tensor | None] = [None] * len(found)
        for place, grad in zip(present, self._gathered([found[i] for i in present], present), strict=True):
            whole[place] = grad
        return whole

    @torch.no_grad()
    def gather(self) -> None:
        """Fill the whole copies, and their gradients, from the pieces of all processes."""
        if not self.cut:
            return
        values = self._gathered([p.detach() for p in self.own.tensors])
        present = [place for place, grad in enumerate(self.own.grads) if grad is not None]
        found = self._gathered([self.own.grads[place] for place in present], present)
        grads = dict(zip(present, found, strict=True))
        for place, (p, value) in enumerate(zip(self.params.tensors, values, strict=True)):
            p.data.copy_(value)
            p.grad = grads.get(place)

    @torch.no_grad()
    def scatter(self) -> None:
        """Write this process's piece of the whole copies, and of their gradients, back."""
        if not self.cut:
            return
        for cut, mine, p in zip(self._cuts, self.own.tensors, self.params.tensors, strict=True):
            start = self._rank * cut.rows
            piece = piece_of(mine)
            piece.copy_(p.data[start : start + piece.shape[0]])
            if p.grad is None:
                mine.grad = None
            elif mine.grad is None:
                mine.grad = spread(p.grad, mine)
            else:
                piece_of(mine.grad).copy_(p.grad[start : start + piece.shape[0]])

    def _gathered(self, tensors: list[Any], places: list[int] | None = None) -> list[Tensor]:
        """Put cut tensors together, by one collective call for each dtype."""
        cuts = self._cuts if places is None else [self._cuts[place] for place in places]
        whole: dict[int, Tensor] = {}
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            chosen = [i for i, t in enumerate(tensors) if t.dtype == dtype]
            flat = torch.cat([cuts[i].padded(piece_of(tensors[i])) for i in chosen])
            out = flat.new_empty(self._size * flat.numel())
            _all_gather(out, flat, group=self._group)
            pieces = out.view(self._size, -1).split([cuts[i].rows * cuts[i].width for i in chosen], dim=1)
            for i, piece in zip(chosen, pieces, strict=True):
                shape = tensors[i].shape
                whole[i] = piece.reshape(-1, *shape[1:])[: shape[0]].contiguous()
        return [whole[i] for i in range(len(tensors))]


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """Cut a whole tensor, equal on all processes, like another one; unchanged if that one is not cut."""
    if not isinstance(like, DTensor):
        return whole
    # no communication is needed: each process cuts its own piece
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def joined(tensor: Tensor) -> Tensor:
    """Put a tensor together on every process; return it as it is if it is not cut."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def joined_in(model: nn.Module) -> Iterator[None]:
    """Put whole tensors in the place of trained ones that FSDP2 has cut, and take the pieces of them back."""
    swapped: list[tuple[nn.Module, str, Any]] = [
        (module, name, p)
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False)
        if p.requires_grad and isinstance(p, DTensor)
    ]
    for module, name, p in swapped:
        setattr(module, name, nn.Parameter(joined(p.detach()).clone()))
    try:
        yield
    finally:
        for module, name, p in swapped:
            put_whole(p, getattr(module, name).detach())
            setattr(module, name, p)


@torch.no_grad()
def put_whole(tensor: Tensor, whole: Tensor) -> None:
    """Overwrite a tensor, cut or not, with a whole one that is equal on all processes."""
    piece_of(tensor.detach()).copy_(piece_of(spread(whole.to(tensor.device), tensor)))


def piece_of(tensor: Any) -> Tensor:
    """This process's piece of a tensor, as a view; the tensor itself if it is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _division(own: Parameters) -> tuple[Any, int, int]:
    """The group of processes that share every tensor, their number, and the rank of this one."""
    first: Any = own.tensors[0]
    for name, parameter in own.pairs:
        p: Any = parameter
        placements = p.placements if isinstance(p, DTensor) else ()
        cut = [place for place in placements if place != Replicate()]
        alike = isinstance(p, DTensor) and isinstance(first, DTensor)
        alike = alike and (p.device_mesh, p.placements) == (first.device_mesh, first.placements)
        if cut != [Shard(0)] or not alike:
            found = f"cut as {placements}" if placements else "not cut"
            raise RunError(
                f"{name}: {found}, expected every trained tensor to be cut along its first dimension, as "
                "FSDP2 does (Shard(dim=0), perhaps also replicated). Tensor parallelism is not supported."
            )
    mesh, dim = first.device_mesh, first.placements.index(Shard(0))
    return mesh.get_group(dim), mesh.size(dim), mesh.get_local_rank(dim)
