"""IncLoRA: a new LoRA pair for each task; the earlier pairs are frozen and active.

    y = W x + s sum_{i<=t} B_i A_i x

Only A_t and B_t train, with the task's loss alone. s = alpha/r with the rank of one task. IncLoRA is O-LoRA,
N-LoRA or ELLA without the penalty.
"""

from __future__ import annotations

from typing import final

from pydantic.dataclasses import dataclass

from kifuse.methods.base import SETTINGS, Method


@final
@dataclass(kw_only=True, config=SETTINGS)
class IncLoRA(Method):
    """One pair per task, nothing else."""

    adapter = "stack"
    plain_first_task = True
