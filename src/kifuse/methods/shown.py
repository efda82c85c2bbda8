"""How a method's measurements and events are shown to people: plain data in the method's own file.

A run's record contains this data as it is. So the page and the terminal need not know any method, and a
record can be read where the method is not installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Series:
    """A series of `Context.measure`: one number for each trainable tensor. The page shows it by layers.

    Attributes:
        name: Its name in `measure`.
        title: Title of its heatmap. A series without a title has no heatmap.
        meaning: One sentence that says what the numbers are.
        unit: Unit of the numbers, if they can be compared between tasks. Without a unit each task is scaled
            by its own largest value.
        drift_from: The series that holds the same importance before the task, for a picture of the change.
            Name the series itself to compare with its value after the previous task.
        beside: The series of how far each tensor moved, for a picture of both.
        fused: For shares of a fusion: the share of each tensor that it took from the new model (`new`), kept
            from the old one (`old`), or would have taken from `both`.
    """

    name: str
    title: str = ""
    meaning: str = ""
    unit: str = ""
    drift_from: str = ""
    beside: str = ""
    fused: Literal["", "new", "old", "both"] = ""


@dataclass(frozen=True)
class Event:
    """An event of `Context.event`: something that happened once.

    Attributes:
        kind: Its kind in `event`.
        text: The terminal's text, in parts such as `"weight {weight:.2f}"`. A part is left out if the event
            lacks its value. `(s)` becomes an s unless the number before it is 1. Without parts, the terminal
            shows nothing.
        fusion_of: For a fusion of old and new weights: what the event's numbers `kept`, `shared`,
            `overwritten` and `neither` count. The page marks such events at their `steps`, or else at their
            step.
    """

    kind: str
    text: tuple[str, ...] = ()
    fusion_of: str = ""


@dataclass(frozen=True)
class Shown:
    """Everything that a method declares about how it is shown.

    Attributes:
        series: The series in the order of the page.
        events: Events with more to show than their name and values, which the page lists for every event.
        logged: For numbers of `Context.log`, the texts that the terminal shows during training.
    """

    series: tuple[Series, ...] = ()
    events: tuple[Event, ...] = ()
    logged: Mapping[str, str] = field(default_factory=dict)

    def event_text(self, kind: str, values: Mapping[str, Any]) -> str:
        """Put an event into words.

        Args:
            kind: The event's kind.
            values: The event's values by name.

        Returns:
            The text; empty if the method declares none.
        """
        found = next((event for event in self.events if event.kind == kind), Event(kind))
        return in_words(found.text, values)

    def logged_text(self, values: Mapping[str, Any]) -> str:
        """Put those numbers of a log line into words for which the method declares a text."""
        return in_words((text for name, text in self.logged.items() if name in values), values)


def in_words(parts: Iterable[str], values: Mapping[str, Any]) -> str:
    """Fill the parts of a text and join them with commas; see `Event.text`."""
    filled = []
    for part in parts:
        try:
            text = part.format_map(values)
        except (KeyError, ValueError, TypeError):
            continue  # a value is missing, or is not a number
        filled.append(text.replace("(s)", "" if text.startswith("1 ") else "s"))
    return ", ".join(filled)


IMPORTANCE = Series(
    "importance",
    "Importance to the task",
    "Where the loss of each task was most sensitive.",
    beside="moved",
)
HISTORY = Series(
    "history",
    "Earlier tasks, before",
    "What mattered to the earlier tasks before the row's task was learned.",
)
HISTORY_AFTER = Series(
    "history_after",
    "Earlier tasks, after",
    "What matters to all tasks so far, once the row's task has been added.",
    drift_from="history",
)
WEIGHT_OF_PREVIOUS = Series(
    "weight_of_previous",
    "Weight of the old model",
    "How much of the model before the task is in the fused one: 1 keeps it whole, 0 takes the new one.",
    unit="weight (0 to 1)",
)
MOVED = Series(
    "moved",
    "Task vectors",
    "How far the weights are from where they were before the row's task (mean absolute change).",
)
FUSION = Event(
    "fusion",
    (
        "fused",
        "{kept} kept",
        "{overwritten} overwritten",
        "{shared} shared",
        "{neither} neither",
        "weight of the old model {mean_weight_of_previous:.2f} on average",
    ),
    fusion_of="skill units",
)
"""Series and events that several methods have."""
