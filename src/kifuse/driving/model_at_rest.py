"""Uses a model in the middle of its training, and leaves it as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def at_rest(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put the model in eval mode; afterwards restore every module's mode and the random numbers."""
    modes = [(module, module.training) for module in model.modules()]
    with same_numbers(device):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextlib.contextmanager
def same_numbers(device: torch.device) -> Iterator[None]:
    """Restore the state of the random numbers after the block."""
    numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(numbers[0])
            np.random.set_state(numbers[1])
