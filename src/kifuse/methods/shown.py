"""How what a method measures and notes is shown to people: plain data that the method's own file holds.

It goes into the record of a run as it is. So the page and the terminal know no method, and a record can be
read where the method is not installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Series:
    """What `Context.measure` takes: one number for each trainable tensor. The page shows it by layers.

    Attributes:
        name: Its name in `measure`.
        title: Title of its heatmap. Without a title it has no heatmap of its own.
        meaning: One sentence that says what the numbers are.
        unit: What a number is, for numbers that can be compared between tasks. Without a unit each task is
            scaled by its own largest value.
        drift_from: The series that holds the same importance before the task, for a picture of the change.
            The series itself, if its value after the task before is meant.
        beside: The series of how far each tensor moved, for a picture of both.
        fused: For the share of each tensor that a fusion took from the new model (`new`), kept of the old one
            (`old`), or would have taken from `both`.
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
    """What `Context.event` takes: something that happened once.

    Attributes:
        kind: Its kind in `event`.
        text: What the terminal says, in parts such as `"weight {weight:.2f}"`. A part whose value the event
            lacks is left out. `(s)` is an s unless the number before it is 1. No parts: nothing is said.
        fusion_of: For a fusion of old and new weights: of what the event counts `kept`, `shared`,
            `overwritten` and `neither`. The page marks such events at their `steps`, or else at their step.
    """

    kind: str
    text: tuple[str, ...] = ()
    fusion_of: str = ""


@dataclass(frozen=True)
class Shown:
    """All that a method declares.

    Attributes:
        series: In the order of the page.
        events: Those that mean more than their name and values, which the page lists for every event.
        logged: For a number of `Context.log`, the text that the terminal shows while training goes on.
    """

    series: tuple[Series, ...] = ()
    events: tuple[Event, ...] = ()
    logged: Mapping[str, str] = field(default_factory=dict)

    def event_text(self, kind: str, values: Mapping[str, Any]) -> str:
        """Put an event into words.

        Args:
            kind: Its kind.
            values: Its values by name.

        Returns:
            The text; empty where the method declares none.
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
            continue  # a value is missing, or is no number
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
