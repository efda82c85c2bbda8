"""Describes a user's wrong values: what was found, what was expected, and what to do.

Used for a run's configuration and for a method's settings, so that both read the same. Imports no torch.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from kifuse.errors import did_you_mean

Key = tuple[str, ...]

NOTHING = "nothing"
"""The text for a missing value."""

_LONGEST_VALUE = 80


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in the user's input.

    Attributes:
        key: Its place, from the outermost section inwards, e.g. ``("training", "epochs")``; may be empty.
        found: The value that is there, ready to print.
        expected: The values that are allowed there, ready to print.
        advice: What to do about it, as a sentence; may be empty.
    """

    key: Key
    found: str
    expected: str
    advice: str = ""

    def render(self, place: str = "") -> str:
        """Write the problem as one line.

        Args:
            place: Where the value was given, e.g. ``run.yaml:7`` or ``--set training.epochs``.

        Returns:
            ``place: key: found X, expected Y. Advice``.
        """
        key = ".".join(self.key)
        if place.endswith(" " + key):  # "--set training.epochs" already contains the key
            key = ""
        head = ": ".join(part for part in (place, key) if part)
        text = f"found {self.found}, expected {self.expected}. {self.advice.strip()}".rstrip()
        return f"{head}: {text}" if head else text


def show_value(value: Any) -> str:
    """Show a value as the user would recognise it, with its kind if that is not obvious.

    Args:
        value: Anything that YAML or the command line can hold.

    Returns:
        A short text for a message.
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return f"{str(value).lower()} (a truth value)"
    if isinstance(value, str):
        return f"{_shorten(repr(value))} (text)"
    if isinstance(value, Mapping):
        return (
            f"a mapping with the keys {_shorten(', '.join(map(str, value)))}" if value else "an empty mapping"
        )
    if isinstance(value, Sequence):
        return f"the list {_shorten(repr(list(value)))}"
    return _shorten(str(value))


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def describe_field(field: FieldInfo) -> str:
    """Describe in words what a field accepts, from its type and its limits.

    Args:
        field: A field of a pydantic model or dataclass.

    Returns:
        E.g. ``a number above 0 and at most 1, or null``.
    """
    return _describe_type(field.annotation, field.metadata)


def _describe_type(kind: Any, limits: Iterable[Any] = ()) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *more = get_args(kind)
        extra = [item for each in more for item in (each.metadata if isinstance(each, FieldInfo) else [each])]
        return _describe_type(inner, [*limits, *extra])
    if origin in (Union, types.UnionType):
        members = get_args(kind)
        parts = [_describe_type(member, limits) for member in members if member is not type(None)]
        return ", or ".join(parts + (["null"] if type(None) in members else []))
    if origin is Literal:
        values = [f"'{value}'" if isinstance(value, str) else str(value) for value in get_args(kind)]
        return "one of " + ", ".join(values) if len(values) > 1 else values[0]
    if origin in (list, tuple, Sequence):
        plural = {"text": "texts", "a whole number": "whole numbers", "a number": "numbers"}
        item = _describe_type(next(iter(get_args(kind)), Any))
        if item.startswith("one of "):
            return "a list with any of " + item.removeprefix("one of ")
        return "a list of " + next((many for one, many in plural.items() if item.startswith(one)), "values")
    if (isinstance(kind, type) and issubclass(kind, (BaseModel, Mapping, dict))) or origin in (dict, Mapping):
        return "a section (indented 'key: value' lines)"
    if isinstance(kind, type) and issubclass(kind, Path):
        return "a path (text)"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, "another value") + _describe_limits(limits)


def _describe_limits(limits: Iterable[Any]) -> str:
    words = {
        "ge": "of at least",
        "gt": "above",
        "le": "at most",
        "lt": "below",
        "multiple_of": "a multiple of",
    }
    parts = []
    for name, word in words.items():
        values = [getattr(limit, name) for limit in limits if getattr(limit, name, None) is not None]
        if values:
            parts.append(f"{word} {values[0]:g}" if isinstance(values[0], float) else f"{word} {values[0]}")
    if any(getattr(limit, "min_length", None) for limit in limits):
        parts.append("that is not empty")
    return " " + " and ".join(parts) if parts else ""


def from_pydantic(
    errors: Iterable[ErrorDetails], fields: Mapping[str, FieldInfo], data: Mapping[str, Any]
) -> list[Problem]:
    """Turns pydantic's errors into problems, one for each key.

    Args:
        errors: The result of ``ValidationError.errors()``.
        fields: The fields of the outermost model or dataclass.
        data: The value that was validated.

    Returns:
        The problems in pydantic's order.
    """
    problems: dict[Key, Problem] = {}
    for error in errors:
        problem = _from_error(error, fields, data)
        problems.setdefault(problem.key, problem)
    return list(problems.values())


def _from_error(error: ErrorDetails, fields: Mapping[str, FieldInfo], data: Mapping[str, Any]) -> Problem:
    """Follows the error's location down to its field; a list index or a branch of a union ends the search."""
    key: list[str] = []
    value: Any = data
    field: FieldInfo | None = None
    for part in error["loc"]:
        part = str(part)
        key.append(part)
        value = value.get(part) if isinstance(value, Mapping) else None
        fields = {each.alias or name: each for name, each in fields.items()}
        if part not in fields:
            return unknown_key(tuple(key), value, fields)
        field = fields[part]
        inner = _section(field)
        if inner is None:
            break
        fields = inner.model_fields
    if field is None or error["type"] in ("value_error", "assertion_error"):
        message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
        return Problem(tuple(key), show_value(value) if key else "these settings", message)
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        meaning = f": {field.description[0].lower()}{field.description[1:]}" if field.description else "."
        return Problem(tuple(key), NOTHING, describe_field(field), f"Add the key '{key[-1]}'{meaning}")
    return Problem(tuple(key), show_value(value), describe_field(field), _advise(field, value))


def unknown_key(key: Key, value: Any, fields: Mapping[str, FieldInfo]) -> Problem:
    """Make the problem of a key that no field has."""
    names = [name for name, field in fields.items() if field.init is not False]
    advice = did_you_mean(key[-1], names) or "Correct or remove it."
    expected = "one of the keys " + ", ".join(names) if names else "no key here"
    return Problem(key, f"the unknown key '{key[-1]}' with {show_value(value)}", expected, advice)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _advise(field: FieldInfo, value: Any) -> str:
    choices = [str(each) for each in get_args(field.annotation) if isinstance(each, str)]
    if isinstance(value, str) and (nearest := did_you_mean(value, choices)):
        return nearest
    if isinstance(value, str) and _is_number(value) and "number" in describe_field(field):
        return "Write the number without quotes."
    if "a list of texts" in describe_field(field) and isinstance(value, (list, tuple)):
        return "Put each entry that looks like a number, a date or a truth value in quotes."
    default = field.get_default(call_default_factory=False)
    if field.is_required() or default is PydanticUndefined or isinstance(default, BaseModel):
        return "Correct the value."
    shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
    return f"Correct the value, or leave the key out for the default ({shown})."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
