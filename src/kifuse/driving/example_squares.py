"""Squared gradients of single examples under a live Trainer: hooks, clipping, several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kifuse.driving.shards import joined
from kifuse.driving.taps import Taps
from kifuse.driving.trainer_batch import refuse_joined
from kifuse.errors import RunError
from kifuse.knowledge.per_example import SquaredGradients
from kifuse.methods.base import Parameters


class StepSquares:
    """Computes `Context.squares` in each optimizer step, for a method that needs `squares`.

    The squares are brought to the scale of the step's gradient, g = sum_j g_j over the examples j of all
    micro-batches and processes. Clipping multiplies g, and so each g_j, by a factor c, and the squares by
    c^2. Several processes average their gradients, so an example's share is its local gradient divided by the
    number of processes.

    Args:
        taps: The taps of a Trainer that is about to train.
        model: The Trainer's model without wrappers.
        params: The trainable parameters, as a method sees them.
        own: The same as the model has them, which may be pieces; None: they are the same tensors.

    Raises:
        RunError: The set-up hides the gradients of single examples, or scales them.
    """

    def __init__(
        self, taps: Taps, model: nn.Module, params: Parameters, own: Parameters | None = None
    ) -> None:
        trainer, accelerator = taps.trainer, taps.trainer.accelerator
        why = "per-example Fisher information (fisher: per_example)"
        if getattr(accelerator, "scaler", None) is not None:
            raise RunError(f"{why} does not work under fp16, whose loss is scaled; use bf16 or fp32.")
        if trainer.args.torch_compile:
            raise RunError(f"{why} does not work with torch_compile, which runs no hooks; turn it off.")
        self._accelerator, self._params = accelerator, params
        try:
            self._squares = SquaredGradients(model, (own or params).tensors, params.shapes)
        except ValueError as error:
            raise RunError(f"{why}: {error}") from error
        taps.clip_grad_norm(self._listen)
        taps.training_step(self._look)
        self._looked = False
        self._factor: Tensor | float = 1.0

    def _look(self, step: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Make sure that the first batch has its examples in rows: a stream's rows cannot be tried before."""
        if not self._looked:
            refuse_joined(inputs, "gradients of single examples")
        self._looked = True
        return step(model, inputs, *args, **kwargs)

    def _listen(self, clip: Any, parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        """Clip as usual, and keep the factor by which clipping multiplied."""
        norm = clip(parameters, max_norm, *args, **kwargs)
        # the formula of torch.nn.utils.clip_grad_norm_
        self._factor = torch.clamp(max_norm / (torch.as_tensor(joined(norm)) + 1e-6), max=1.0)
        return norm

    def clear(self) -> None:
        """Start a new optimizer step."""
        self._squares.clear()
        self._factor = 1.0

    def take(self) -> list[Tensor]:
        """Return the sum over the step's examples of their squared shares of the gradient.

        Returns:
            One float32 tensor per parameter, of its shape; overwritten in the next step.

        Raises:
            RunError: A layer was used in a way that hides the gradients of single examples.
        """
        try:
            squares = self._squares.sums(self._params.grads)
        except ValueError as error:
            raise RunError(str(error)) from error
        flat, processes = self._squares.flat, self._accelerator.num_processes
        if processes > 1:
            torch.distributed.all_reduce(flat)
        flat.mul_((self._factor / processes) ** 2)
        return squares

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._squares.remove()
