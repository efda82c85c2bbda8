"""General data besides the tasks: mixed into each task's training, or kept instead of its examples.

Mixing (`memory.generic_share` rho): a share rho of what a task is trained on is general data,

    D_k' = D_k + G_k,   |G_k| = round(rho / (1 - rho) |D_k|),

with G_k drawn anew for each task. Keeping (`memory.source: generic`): the memory holds rows of the general
data under the task's name, as many as it would keep of the task. Users report that a share of 1% is enough to
prevent collapse, and that general data helps the new task as well (arXiv 2603.04964).

A row with the same input as a train, dev or test example of the task is never drawn; it is counted as a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kifuse.methods.base import Method
from kifuse.methods.generated import normal
from kifuse.methods.kept import Unsaved
from kifuse.methods.shown import Event, Shown
from kifuse.methods.texts import TextExample, Texts

_SHOWN = Shown(
    events=(
        Event("general data mixed in", ("{added} examples of general data from {file}", "{copies} copies")),
        Event("general data kept", ("{added} examples of general data kept", "{copies} copies")),
    )
)


class GeneralData(Method):
    """Base of the two uses of general data.

    Args:
        rows: The general data.
        of_file: The file and its SHA-256, for the record.
    """

    shown = _SHOWN
    rows: Unsaved[Sequence[Any]]
    _of_file: Unsaved[dict[str, str]]

    def __init__(self, rows: Sequence[Any], of_file: dict[str, str]) -> None:
        self.rows, self._of_file = rows, of_file

    def _drawn(self, ctx: Texts, count: int, kind: str) -> list[TextExample]:
        """Draw examples, every one once before any is drawn twice, and record the draw."""
        asked = {normal(text) for text in ctx.inputs}
        able = [row for row in self.rows if normal(row.body) not in asked]
        found = ctx.draw(able, count)
        ctx.event(
            kind,
            **self._of_file,
            wanted=count,
            added=len(found),
            distinct=min(len(able), len(found)),
            held=len(self.rows),
            copies=len(self.rows) - len(able),
        )
        return found


class MixedIn(GeneralData):
    """Mixes general data into what each task is trained on.

    Args:
        rows: The general data.
        of_file: The file and its SHA-256, for the record.
        share: Share of general data in what a task is trained on, below 1.
    """

    _share: Unsaved[float] = 0.0

    def __init__(self, rows: Sequence[Any], of_file: dict[str, str], share: float) -> None:
        super().__init__(rows, of_file)
        self._share = share

    @property
    def more_examples(self) -> float:
        """Number of general examples for each of the task's own: rho / (1 - rho)."""
        return self._share / (1.0 - self._share)

    def training_examples(self, ctx: Texts, rows: Sequence[TextExample]) -> list[TextExample]:
        """Add the general data."""
        count = round(self.more_examples * len(rows))
        return [*rows, *self._drawn(ctx, count, "general data mixed in")]


class KeptInstead(GeneralData):
    """Makes the memory keep general data instead of a task's own examples."""

    def remember(self, ctx: Texts, rows: Sequence[TextExample], count: int) -> list[TextExample]:
        """Draw the rows to keep from the general data."""
        return self._drawn(ctx, count, "general data kept")
