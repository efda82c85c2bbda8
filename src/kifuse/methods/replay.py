"""Replay (LoRAReplay): the memory buffer's examples are mixed into every pass over the current task.

The loss of a step is the mean over the target tokens of a batch drawn from D_k and M_<k together, so a memory
example has the same weight as one of the current task. The memory holds 2% (or a fixed number) of each
earlier task's real training examples, drawn once when that task ended.
"""

from __future__ import annotations

from typing import final

from pydantic.dataclasses import dataclass

from kifuse.methods.base import SETTINGS, Method, OldData


@final
@dataclass(kw_only=True, config=SETTINGS)
class Replay(Method):
    """Ordinary training on a mixture of the current task and the memory buffer (LoRAReplay)."""

    plain_first_task = True

    @property
    def old_data(self) -> OldData:
        """Memory examples are mixed into the current task's batches."""
        return "mixed"
