"""Lets a model be called from outside in the precision that its weights are kept in."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from kifuse.models.loading import Backbone


def cast_by_itself(backbone: Backbone) -> None:
    """Run the model's forward pass under its own autocast wherever nobody else has switched autocast on.

    Frozen weights are kept in the precision that they are multiplied in, which fits the others under autocast
    only; so `model.generate(...)` of a user works as well.

    Args:
        backbone: The model; nothing is done in fp32.
    """
    if backbone.precision == "fp32":
        return
    opened: list[contextlib.AbstractContextManager[Any]] = []

    def before(module: Any, arguments: Any) -> None:
        if torch.is_autocast_enabled(backbone.device.type):
            opened.append(contextlib.nullcontext())
        else:
            opened.append(backbone.autocast())
        opened[-1].__enter__()

    def after(module: Any, arguments: Any, output: Any) -> None:
        opened.pop().__exit__(None, None, None)

    backbone.model.register_forward_pre_hook(before)
    # also where the forward pass fails
    backbone.model.register_forward_hook(after, always_call=True)
