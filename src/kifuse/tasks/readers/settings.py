"""Settings for all rows of a task: from ``task.json``, options of `learn`, or a run's configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kifuse.errors import DataError, did_you_mean
from kifuse.scoring.metrics import metric_name
from kifuse.scoring.own_function import refuse_unnamed
from kifuse.tasks.readers.formats import FORMATS, KNOWN_FIELDS
from kifuse.tasks.readers.rows import checked_labels, checked_text, kind_of
from kifuse.tasks.readers.text_files import read_value
from kifuse.tasks.task import Metric

# Notes for people; they never reach the model.
_NOTES = ("title", "about")


OF_STREAM = "the section data of the run's YAML (in Python: columns=)"
"""The place where format and columns for all tasks of a stream are set."""
OF_CALLER = "learn()"
"""The place where the settings for rows in memory and for a learner's files are given."""


@dataclass(frozen=True)
class Settings:
    """Settings for all rows of a task.

    Attributes:
        instruction: Text before each input that has no instruction of its own.
        labels: The closed set of outputs, or None for free text.
        list_labels: Whether the prompt lists the labels.
        metric: How predictions are scored; None: exact match with labels, perplexity of texts to continue,
            else ROUGE-L.
        format: The format of the rows; with None it is recognised for each row from the row's fields.
        columns: Names of the data's own columns by their contents.
        origin: The place where the settings were given, for messages.
    """

    instruction: str | None = None
    labels: tuple[str, ...] | None = None
    list_labels: bool = False
    metric: Metric | None = None
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    origin: str = "task.json"

    @property
    def place(self) -> str:
        """The place where the user could give labels."""
        return (
            "task.json, in a folder of the task with train.jsonl" if self.origin == OF_STREAM else self.origin
        )

    @property
    def way_of_columns(self) -> str:
        """The way in which a user says what the columns contain."""
        more = {
            OF_STREAM: ", or for one task in its task.json",
            OF_CALLER: "; in the shell with --column input=... --column output=...",
        }
        return (
            f'Say which columns hold them with columns: {{"input": ..., "output": ...}} in {self.origin}'
            f"{more.get(self.origin, '')}; or rename them."
        )

    @cached_property
    def known(self) -> dict[str, None]:
        """The labels as a dictionary, for quick look-up."""
        return dict.fromkeys(self.labels or ())


_KEYS = tuple(each.name for each in fields(Settings) if each.name != "origin")


def checked_settings(
    where: str, values: Mapping[str, Any], origin: str, *, by_caller: bool = True
) -> Settings:
    """Check a user's settings for a task.

    Args:
        where: What holds the settings, for messages.
        values: Some of the attributes of `Settings`, as JSON values; None is left out.
        origin: The place where a user would correct them.
        by_caller: Whether the caller of kifuse gave them, who may name code; a file may not.

    Returns:
        The settings.

    Raises:
        DataError: A value is wrong, labels are to be listed but there are none, or a file names code.
    """
    given = {key: value for key, value in values.items() if value is not None}
    list_labels = given.get("list_labels", False)
    if not isinstance(list_labels, bool):
        raise DataError(f"{where}: 'list_labels' is {kind_of(list_labels)}, expected true or false.")
    if list_labels and "labels" not in given:
        raise DataError(f"{where}: 'list_labels' is true without 'labels', expected a list of labels.")
    found = Settings(list_labels=list_labels, origin=origin)
    if "instruction" in given:
        found = replace(found, instruction=checked_text(given["instruction"], where, "'instruction'"))
    if "labels" in given:
        found = replace(found, labels=checked_labels(given["labels"], where, "'labels'"))
    if "metric" in given:
        found = replace(found, metric=_checked_metric(given["metric"], where, by_caller))
    if "format" in given:
        found = replace(found, format=_checked_format(given["format"], where))
    if "columns" in given:
        found = replace(found, columns=_checked_columns(given["columns"], where))
    return found


def settings_of_rows(
    where: str,
    *,
    instruction: str | None = None,
    labels: Iterable[str] | None = None,
    list_labels: bool = False,
    metric: Any = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Settings:
    """Check the settings of rows that are given in Python; see `checked_settings`."""
    values = {
        "instruction": instruction,
        "labels": ordered(labels),
        "list_labels": list_labels,
        "metric": metric,
        "format": format,
        "columns": columns,
    }
    return checked_settings(where, values, OF_CALLER)


def ordered(labels: Iterable[str] | None) -> list[str] | None:
    """Return labels in their order; a set is sorted, because its order changes between processes."""
    if isinstance(labels, Set):
        return sorted(labels)
    return labels if labels is None or isinstance(labels, str) else list(labels)  # pyright: ignore


def folder_settings(folder: Path, given: Settings) -> Settings:
    """Read a folder's ``task.json``, if there is one.

    Args:
        folder: The task's folder.
        given: Settings for all tasks; the format and columns in the file replace theirs.

    Returns:
        The settings of the task.

    Raises:
        DataError: If the file cannot be read, a key is unknown, or a value is wrong.
    """
    path = folder / "task.json"
    if not os.path.lexists(path):
        return given
    value = read_value(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: found {kind_of(value)}, expected an object with {', '.join(_KEYS)}.")
    for key in value:
        if key not in (*_KEYS, *_NOTES):
            raise DataError(
                f"{path}: unknown key '{key}', expected {', '.join(_KEYS)}.{did_you_mean(key, _KEYS)}"
            )
    own = checked_settings(str(path), value, str(path), by_caller=False)
    for key in ("instruction", "labels", "metric"):
        if getattr(given, key) is not None and getattr(own, key) not in (None, getattr(given, key)):
            raise DataError(
                f"{path}: '{key}' is given here and in {given.origin}. Leave it out in one of the two."
            )
    return replace(
        own,
        instruction=own.instruction or given.instruction,
        labels=own.labels or given.labels,
        list_labels=own.list_labels or given.list_labels,
        metric=own.metric or given.metric,
        format=own.format or given.format,
        columns=own.columns or given.columns,
    )


def _checked_metric(value: Any, where: str, by_caller: bool) -> Metric:
    if not by_caller:
        refuse_unnamed(value, where)
    try:
        return metric_name(value)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _checked_format(value: Any, where: str) -> str:
    names = [format.name for format in FORMATS]
    if value not in names:
        raise DataError(
            f"{where}: 'format' is {value!r}, expected one of {', '.join(names)}."
            f"{did_you_mean(str(value), names)}"
        )
    return value


def _checked_columns(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not value:
        raise DataError(
            f"{where}: 'columns' is {kind_of(value)}, expected an object such as "
            '{"input": "question", "output": "answer"}.'
        )
    for key, column in value.items():
        if key not in KNOWN_FIELDS:
            raise DataError(
                f"{where}: 'columns' names '{key}', expected one of {', '.join(KNOWN_FIELDS)}, each with the "
                f"name of a column of the data.{did_you_mean(str(key), KNOWN_FIELDS)}"
            )
        checked_text(column, where, f"'columns' '{key}'")
    return dict(value)
