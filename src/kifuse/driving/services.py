"""Services that look into every step, for a method that asks for them in `Method.needs`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn

from kifuse.driving.batch_gradients import StepInputs
from kifuse.driving.example_squares import StepSquares
from kifuse.driving.layer_watch import LayerWatch
from kifuse.driving.taps import Taps
from kifuse.methods.parameters import Parameters


class Service(Protocol):
    """Gathers one thing over each optimizer step."""

    def clear(self) -> None:
        """Start a new optimizer step."""
        ...

    def take(self) -> Any:
        """Return what was gathered in the step."""
        ...

    def remove(self) -> None:
        """Remove all hooks from the model."""
        ...


def open_services(
    needs: Iterable[str], taps: Taps, model: nn.Module, params: Parameters, own: Parameters
) -> dict[str, Service]:
    """The services of a method, by need.

    Args:
        needs: See `Method.needs`.
        taps: The taps of a Trainer that is about to train.
        model: The Trainer's model without wrappers.
        params: The trainable parameters, as a method sees them.
        own: The same as the model has them, which may be pieces.

    Raises:
        RunError: In this set-up, one of them cannot see what it needs.
    """
    found: dict[str, Service] = {}
    if "squares" in needs:
        found["squares"] = StepSquares(taps, model, params, own)
    if "layers" in needs:
        found["layers"] = LayerWatch(taps, model, params, own)
    if "batch" in needs:
        found["batch"] = StepInputs(taps, model, curvature="curvature" in needs)
    return found
