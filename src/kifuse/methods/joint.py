"""Joint training (MTL): one adapter trained on the union of all tasks at once.

This is not continual learning, but the reference that other methods are compared with. Each example is seen
as often as in sequential training. The protocol scores it after all tasks, since there is no earlier moment.
"""

from __future__ import annotations

from typing import final

from pydantic.dataclasses import dataclass

from kifuse.methods.base import SETTINGS, Method, OldData


@final
@dataclass(kw_only=True, config=SETTINGS)
class Joint(Method):
    """One training over the shuffled union of all tasks (MTL)."""

    @property
    def old_data(self) -> OldData:
        """All tasks at once."""
        return "all"
