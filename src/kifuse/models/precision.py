"""Lets a user call a model in the precision in which its weights are kept."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from kifuse.models.loading import Backbone


def cast_by_itself(backbone: Backbone) -> None:
    """Run the model's forward pass under its own autocast wherever autocast is not already on.

    Frozen weights are kept in the precision in which they are multiplied, and fit the other weights only
    under autocast. With this, a user's own `model.generate(...)` works as well.

    Args:
        backbone: The loaded model; nothing is done in fp32.
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
    # always_call: also if the forward pass fails
    backbone.model.register_forward_hook(after, always_call=True)
