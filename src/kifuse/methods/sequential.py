"""Sequential fine-tuning (SeqLoRA): one adapter goes on from task to task, nothing is protected.

The lower reference of every table. With a single task it equals ordinary LoRA training.
"""

from __future__ import annotations

from typing import final

from pydantic.dataclasses import dataclass

from kifuse.methods.base import SETTINGS, Method, MethodState


@final
@dataclass(kw_only=True, config=SETTINGS)
class Sequential(Method):
    """Ordinary training on each task in turn (SeqLoRA)."""

    def state(self) -> MethodState:
        """Nothing to remember."""
        return MethodState()

    def load_state(self, state: MethodState) -> None:
        """Nothing to take back."""
