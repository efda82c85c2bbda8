"""IncLoRA: a fresh LoRA pair for each task, the earlier ones frozen and active.

    y = W x + s sum_{i<=t} B_i A_i x

Only A_t and B_t train, with the task's loss alone. s = alpha/r with the rank of one task. It is what O-LoRA,
N-LoRA and ELLA are without their penalties.
"""

from __future__ import annotations

from typing import final

from pydantic.dataclasses import dataclass

from kifuse.methods.base import SETTINGS, Method


@final
@dataclass(kw_only=True, config=SETTINGS)
class IncLoRA(Method):
    """One pair a task, nothing else."""

    adapter = "stack"
    plain_first_task = True
