"""Sequential fine-tuning (SeqLoRA): one adapter is trained on task after task, nothing is protected.

This is the lower reference of every table. With a single task it equals ordinary LoRA training.
"""

from __future__ import annotations

from typing import final

from pydantic.dataclasses import dataclass

from kifuse.methods.base import SETTINGS, Method


@final
@dataclass(kw_only=True, config=SETTINGS)
class Sequential(Method):
    """Ordinary training on each task in turn (SeqLoRA)."""

    plain_first_task = True
