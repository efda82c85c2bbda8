"""Losses and gradients under a live Trainer, with its batches and loss, at any weights; nothing changes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kifuse.driving.batches import MemoryBatches
from kifuse.driving.model_at_rest import at_rest
from kifuse.driving.taps import Taps
from kifuse.driving.trainer_batch import Inputs, TrainerBatch, refuse_joined, rows_of
from kifuse.driving.under_way import UnderWay
from kifuse.errors import RunError
from kifuse.methods.context import Weights

FORWARD = Fraction(1, 3)
"""Cost of a forward pass alone; the unit is one forward and backward pass."""

TWICE = 2
"""Cost of a gradient that is differentiated again; the unit is one forward and backward pass."""


class StepInputs:
    """Remembers the micro-batches of a Trainer's step until its optimizer moves.

    Args:
        taps: The taps of a Trainer that is about to train.
        model: The Trainer's model without wrappers.
        curvature: Whether gradients of gradients will be asked for.

    Raises:
        RunError: The set-up cannot give gradients at other weights, or gradients of gradients.
    """

    def __init__(self, taps: Taps, model: nn.Module, *, curvature: bool) -> None:
        _refuse(taps.trainer, model, curvature)
        self._seen: list[Inputs] = []
        self._looked = False

        def remember(step: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            if not self._looked:
                refuse_joined(inputs, "parts of a batch by rows")
            self._looked = True
            # a loss may take its labels out of what it is given
            self._seen.append(dict(inputs))
            return step(model, inputs, *args, **kwargs)

        taps.training_step(remember)

    def clear(self) -> None:
        """Start a new optimizer step."""
        self._seen = []

    def remove(self) -> None:
        """Forget what was seen."""
        self.clear()

    def take(self) -> tuple[Inputs, ...]:
        """Return the micro-batches since `clear`."""
        seen, self._seen = tuple(self._seen), []
        return seen


def _refuse(trainer: Any, model: nn.Module, curvature: bool) -> None:
    why = "gradients on a step's batch at other weights"
    if getattr(trainer.accelerator, "scaler", None) is not None:
        raise RunError(f"{why} are not scaled as fp16 needs it; use bf16 or fp32.")
    # the newer name of the two comes with transformers 6
    names = ("gradient_checkpointing", "activation_checkpointing")
    if any(getattr(each, name, False) for each in (trainer.args, *model.modules()) for name in names):
        raise RunError(
            f"{why} do not work with gradient_checkpointing, which would use the present weights. Turn "
            "it off."
        )
    if not curvature:
        return
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None) or "eager"
    if attention not in ("eager", "sdpa"):
        raise RunError(
            f"second_order: the attention implementation {attention!r} cannot be differentiated twice. Load "
            "the model with attn_implementation='eager' or 'sdpa', or use second_order: false."
        )
    if trainer.args.world_size > 1:
        raise RunError("second_order: works in one process only. Use second_order: false with several.")
    if getattr(model, "is_quantized", False) or getattr(model, "is_loaded_in_8bit", False):
        raise RunError("second_order: quantised layers have no second derivative. Use second_order: false.")


class BatchGradients:
    """Losses and gradients on batches, at any weights, for a Trainer that is training; no weight changes.

    Args:
        context: The context of the training; its counts include these passes.
    """

    def __init__(self, context: UnderWay) -> None:
        self._context = context
        self._batch: TrainerBatch | None = None
        self._loss: _Loss | None = None
        self._probes: MemoryBatches | None = None
        self._uncounted = Fraction(0)

    @property
    def _processes(self) -> int:
        return self._context.trainer.accelerator.num_processes

    def begin_step(self, parts: tuple[Inputs, ...] | None) -> None:
        """Take the step's own batch, if one was kept."""
        self._batch = None if parts is None else TrainerBatch(parts, self._processes)
        if self._batch is not None and self._context.shards.together:
            self._refuse_uneven([rows_of(part) for part in self._batch.parts])

    def _refuse_uneven(self, rows: list[int]) -> None:
        """Refuse a step of which the processes have different numbers of rows: they would call layers apart.

        Raises:
            RunError: They have.
        """
        found: list[Any] = [None] * self._processes
        torch.distributed.all_gather_object(found, rows)
        if any(each != rows for each in found):
            raise RunError(
                f"the processes have {found} rows in the parts of a step, but all must call the layers of a "
                "model in pieces equally often. Let each process have as many rows, for example with "
                "dataloader_drop_last=True, or use plain data parallelism (torchrun, accelerate launch)."
            )

    def end_step(self) -> None:
        """Forget the step's batch."""
        self._batch = None

    def step_batch(self) -> TrainerBatch:
        """See `Context.step_batch`.

        Raises:
            RunError: No step's batch was kept.
        """
        if self._batch is None:
            raise RunError("a step's batch is known in on_gradients only, for a method that needs 'batch'.")
        return self._batch

    def draw_memory(self) -> TrainerBatch:
        """See `Context.draw_memory`.

        Raises:
            RunError: There is no memory.
        """
        context = self._context
        if context.memory is None or not context.memory.encoded:
            raise RunError("a memory batch was asked for, but the method has no memory to draw from.")
        drawn = context.memory.next()
        context.replayed += len(drawn)
        return TrainerBatch(tuple(context.parts(drawn)), self._processes)

    def gradient(
        self,
        batch: Any,
        *,
        at: Sequence[Tensor] | None = None,
        noise: int = 0,
        create_graph: bool = False,
    ) -> list[Tensor]:
        """See `Context.gradient`."""
        values = list(self._context.params.tensors if at is None else at)
        if self._context.shards.cut:
            return self._from_pieces(batch, [value.detach() for value in values], noise)
        if not create_graph:
            values = [value.detach().requires_grad_() for value in values]
        total: list[Tensor] | None = None
        with torch.enable_grad():
            for loss in self._losses(batch, values, noise, create_graph):
                grads = torch.autograd.grad(
                    loss, values, create_graph=create_graph, allow_unused=True, materialize_grads=True
                )
                total = list(grads) if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        self._count(batch.passes * (TWICE if create_graph else 1))
        return self._reduced(total or [torch.zeros_like(value) for value in values])

    def _from_pieces(self, batch: Any, values: list[Tensor], noise: int) -> list[Tensor]:
        """The gradient where the model's tensors are pieces, which hold the values meanwhile."""
        shards, total = self._context.shards, [torch.zeros_like(value) for value in values]
        with shards.holding(self._context.trainer.model, values), torch.enable_grad():
            for loss in self._losses(batch, None, noise, False):
                for whole, grad in zip(total, shards.gradients(loss), strict=True):
                    if grad is not None:
                        whole += grad
        self._count(batch.passes)
        return total if shards.averages else self._reduced(total)

    def batch_loss(self, batch: Any, *, at: Sequence[Tensor], noise: int = 0) -> Tensor:
        """See `Context.batch_loss`."""
        with torch.enable_grad():
            losses = list(self._losses(batch, at, noise, True))
        self._count(batch.passes)
        return torch.stack(losses).sum()

    @torch.no_grad()
    def forward(self, batch: TrainerBatch, *, at: Weights | Sequence[Tensor]) -> Any:
        """See `Context.forward`; the weights before the task are given as values."""
        model, inputs = self._context.trainer.model, self._without_labels(batch)
        self._count(FORWARD * batch.passes)
        shards, given = self._context.shards, None if isinstance(at, str) else at
        with at_rest(model, self._context.params.tensors[0].device), shards.holding(model, given):
            if at == "now" or (given is not None and shards.cut):
                return model(**inputs)
            if not isinstance(at, str):
                named = dict(zip(self._names(), at, strict=True))
                return torch.func.functional_call(model, named, kwargs=inputs)
            if not hasattr(model, "disable_adapter"):
                raise RunError(
                    "the base model is not available: there is no adapter, and its own weights are trained."
                )
            with model.disable_adapter():
                return model(**inputs)

    def train_forward(self, batch: TrainerBatch) -> Any:
        """See `Context.train_forward`; with its backward pass it counts as one more pass."""
        self._count(batch.passes)
        # not through the wrapper, which shares buffers among processes: another one may have no such pass
        return self._context.trainer.model(**self._without_labels(batch))

    def _without_labels(self, batch: TrainerBatch) -> dict[str, Any]:
        """The arguments of a forward pass without a loss."""
        inputs = dict(batch.only_part)
        two_sided = getattr(self._context.trainer.model.config, "is_encoder_decoder", False)
        if not two_sided or "decoder_input_ids" in inputs:
            inputs.pop("labels", None)
        inputs.pop("num_items_in_batch", None)
        return inputs

    def memory_loss(self, *, train: bool) -> float:
        """See `Context.memory_loss`.

        Raises:
            RunError: There is no memory.
        """
        context = self._context
        batch = TrainerBatch(tuple(context.parts(self._memory_probes().next())), self._processes)
        model = context.trainer.model
        before = model.training
        model.train(train)
        try:
            with torch.no_grad(), context.shards.holding(model):
                loss = torch.stack(list(self._losses(batch, None, 0, False))).sum()
        finally:
            model.train(before)
        self._count(FORWARD)
        return float(self._reduced([loss])[0])

    def clip(self) -> None:
        """See `Context.clip`."""
        limit = self._context.trainer.args.max_grad_norm
        if limit and limit > 0:
            torch.nn.utils.clip_grad_norm_(self._context.params.tensors, limit)

    def _memory_probes(self) -> MemoryBatches:
        memory = self._context.memory
        if memory is None or not memory.encoded:
            raise RunError("the loss of a memory batch was asked for, but the method has no memory.")
        if self._probes is None:
            # another order than that of the memory steps; their seeds are not negative
            self._probes = MemoryBatches(memory.encoded, memory.batch_size, -1 - memory.seed)
            self._probes.batch_size = memory.batch_size
        return self._probes

    def _losses(
        self, batch: TrainerBatch, values: Sequence[Tensor] | None, noise: int, twice: bool
    ) -> Iterator[Tensor]:
        """The loss of each part, whose sum is the mean over the target tokens of all processes' parts."""
        trainer = self._context.trainer
        if self._loss is None:
            self._loss = _Loss(trainer)
        at = None
        if values is not None:
            at = {f"model.{n}": v for n, v in zip(self._names(), values, strict=True)}
        _, items = trainer.get_batch_samples(iter(batch.parts), len(batch.parts), trainer.args.device)
        share = 1.0 if self._scaled(items) else 1.0 / len(batch.parts)
        for place, part in enumerate(batch.parts):
            inputs = trainer._prepare_inputs(dict(part))
            # fused attention kernels have no second derivative
            attention = sdpa_kernel(SDPBackend.MATH) if twice else contextlib.nullcontext()
            with self._noise(noise, place), trainer.compute_loss_context_manager(), attention:
                if at is None:
                    loss = self._loss(inputs, items)
                else:
                    loss = torch.func.functional_call(self._loss, at, (inputs, items))
            yield loss * share

    def _names(self) -> list[str]:
        """The parameters' names in the model itself, which may contain the name of its adapter."""
        own = {id(p): name for name, p in self._context.trainer.model.named_parameters()}
        return [own[id(p)] for p in self._context.params.tensors]

    def _scaled(self, items: Any) -> bool:
        """Whether a part's loss is already its share of the whole batch's, as in `Trainer.training_step`."""
        trainer = self._context.trainer
        said = getattr(trainer, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        by_model = trainer.model_accepts_loss_kwargs and items is not None
        return bool(by_model or trainer.compute_loss_func is not None)

    @contextlib.contextmanager
    def _noise(self, noise: int, place: int) -> Iterator[None]:
        """Give a part's pass random numbers of its own; those of training are not touched."""
        args = self._context.trainer.args
        step = self._context.trainer.state.global_step
        # a text as seed gives the same numbers on every machine
        draw = random.Random(f"{args.seed}:{step}:{noise}:{place}:{args.process_index}")  # noqa: S311
        device = args.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(draw.getrandbits(63))
            yield

    def _reduced(self, tensors: list[Tensor]) -> list[Tensor]:
        """The mean over processes."""
        if self._processes == 1:
            return tensors
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self._processes
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]

    def _count(self, passes: Fraction) -> None:
        """Count work in whole passes; a fraction waits until it is part of a whole pass."""
        self._uncounted += passes
        whole = int(self._uncounted)
        self._uncounted -= whole
        self._context.extra_passes += whole

    def state(self) -> dict[str, Any]:
        """The place in the memory, and the fraction of a pass that is not counted yet, as JSON."""
        rest = self._uncounted
        return {
            "drawn": self._probes.drawn if self._probes else 0,
            "uncounted": [rest.numerator, rest.denominator],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self._uncounted = Fraction(*state["uncounted"])
        if state["drawn"]:
            self._memory_probes().drawn = state["drawn"]


class _Loss(nn.Module):
    """A Trainer's loss as a module, so that its model can be called with other weights."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.model = trainer.model
        self.trainer = trainer

    def forward(self, inputs: Any, items: Any) -> Tensor:
        """Compute the loss of one part."""
        return self.trainer.compute_loss(self.model, inputs, num_items_in_batch=items)
