"""Makes a method from its name and settings; nothing is imported for a name until it is used."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from kifuse.errors import ConfigError, did_you_mean
from kifuse.method_catalog import METHODS, Entry
from kifuse.problems import Problem, describe_field, from_pydantic, show_value, unknown_key

if TYPE_CHECKING:
    from kifuse.methods.base import Method

OWN: dict[str, type[Method]] = {}
"""Classes that a user registered, by their target; they need not be importable."""


def method_names() -> list[str]:
    """The names of all methods."""
    return list(METHODS)


def method_entry(name: str, place: str = "") -> Entry:
    """Return the facts about a method that are known without importing it.

    Args:
        name: A name of ``method_names()``.
        place: The place where the name was given, for the message; the key ``method.name`` if empty.

    Returns:
        Its entry.

    Raises:
        ConfigError: There is no such method.
    """
    if name not in METHODS:
        advice = did_you_mean(name, METHODS) or "See 'kifuse ls methods'."
        if ":" in name:
            advice = "In Python, give a class of your own a name with kifuse.register first."
        expected = "one of " + ", ".join(METHODS)
        key = () if place else ("method", "name")
        raise ConfigError(Problem(key, show_value(name), expected, advice).render(place))
    return METHODS[name]


def build_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Makes a method from its name and settings.

    Args:
        name: A name of ``method_names()``.
        settings: Values of the method's init fields; the others keep the preset or the default.

    Returns:
        The method, ready for its first task.

    Raises:
        ConfigError: The name or a setting is wrong; the message lists every problem on its own line.
    """
    given = dict(settings or {})
    made, problems = _try_build(name, given)
    if problems:
        raise ConfigError("\n".join(problem.render() for problem in problems))
    return made


def name_of(method: Method) -> str:
    """Return the name under which a method's class is registered.

    Raises:
        ConfigError: The class is not registered.
    """
    target = f"{type(method).__module__}:{type(method).__qualname__}"
    for name, entry in METHODS.items():
        if entry.target == target:
            return name
    raise ConfigError(f"method: {type(method).__name__} has no name; register it with kifuse.register first.")


def check_settings(name: str, settings: Mapping[str, Any]) -> list[Problem]:
    """Find the problems of a method's settings, with keys under ``method``; imports the method.

    Args:
        name: A name of ``method_names()``.
        settings: Values of the method's init fields.

    Returns:
        The problems; empty if the method can be made.
    """
    return _try_build(name, dict(settings))[1]


def _try_build(name: str, given: dict[str, Any]) -> tuple[Any, list[Problem]]:
    entry = method_entry(name)
    module, _, attribute = entry.target.partition(":")
    cls: Any = OWN.get(entry.target) or getattr(import_module(module), attribute)
    fields: dict[str, FieldInfo] = {
        key: _preset(each, entry.preset[key]) if key in entry.preset else each
        for key, each in cls.__pydantic_fields__.items()
        if each.init is not False
    }
    problems = [unknown_key((key,), value, fields) for key, value in given.items() if key not in fields]
    known = {key: value for key, value in given.items() if key in fields}
    problems += [
        _truth_value(key, fields[key]) for key, value in known.items() if _is_stray_bool(value, fields[key])
    ]
    wrong = {problem.key[0] for problem in problems}
    good = {key: value for key, value in known.items() if key not in wrong}
    try:
        made = cls(**{**entry.preset, **good})
    except ValidationError as error:
        made = None
        problems += from_pydantic(error.errors(include_url=False), fields, {**entry.preset, **good})
    return made, [_under_method(problem) for problem in problems]


def _preset(wanted: FieldInfo, value: Any) -> FieldInfo:
    """Set the default of the name that the user wrote, since one class may have several names."""
    found = copy(wanted)
    found.default = value
    return found


def _is_stray_bool(value: Any, wanted: FieldInfo) -> bool:
    """Whether a truth value stands for a number: pydantic accepts true as 1, but it is the user's mistake."""
    words = describe_field(wanted)
    return isinstance(value, bool) and "number" in words and "true or false" not in words


def _truth_value(key: str, wanted: FieldInfo) -> Problem:
    return Problem((key,), "a truth value", describe_field(wanted), "Write a number.")


def _under_method(problem: Problem) -> Problem:
    return Problem(("method", *problem.key), problem.found, problem.expected, problem.advice)
