"""A user's own methods: named in this process, or found by name in a file of the working directory.

Only code that the caller names is ever imported, never code that a folder names; see `refuse_unnamed_method`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kifuse import registry
from kifuse.errors import ConfigError, DataError, RunError, did_you_mean
from kifuse.method_catalog import Entry
from kifuse.scoring.own_function import import_from_here, names_code

if TYPE_CHECKING:
    from kifuse.methods.base import Method


def register(name: str, cls: type[Method], summary: str = "") -> None:
    """Give your own method a name, by which runs and configurations find it in this process.

    Args:
        name: Small letters, digits and dashes, as in ``my-method``.
        cls: A pydantic dataclass derived from `Method`; all of its settings have defaults.
        summary: One line for the list of methods; the first line of the class's docstring if empty.

    Raises:
        ConfigError: The name is taken or has a wrong form, or the class is not such a class.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ConfigError(f"register: found the name {name!r}, expected small letters, digits and dashes.")
    if name in registry.METHODS and registry.METHODS[name].target not in registry.OWN:
        raise ConfigError(f"register: kifuse has a method {name!r}. Choose another name.")
    registry.METHODS[name] = _own_entry(f"register: {cls!r}", cls, summary)


def name_method(name: Any) -> None:
    """Register your own method by the place of its class; names of another form are ignored.

    Only the caller may name a class in this way, never a folder, because its file is imported.

    Args:
        name: ``module:Class``; the module is a file or a package in the working directory.

    Raises:
        ConfigError: There is no such module or class, or the class is not a method.
    """
    if not is_own_name(name) or name in registry.METHODS:
        return
    what, (module_name, _, attribute) = f"method.name: {name}", name.partition(":")
    try:
        module = import_from_here(what, module_name)
    except DataError as error:
        raise ConfigError(str(error)) from error
    cls = getattr(module, attribute, None)
    if cls is None:
        raise ConfigError(
            f"{what}: {module_name}.py has no class {attribute!r}.{did_you_mean(attribute, vars(module))}"
        )
    registry.METHODS[name] = _own_entry(what, cls)


def is_own_name(name: Any) -> bool:
    """Whether a method's name gives the place of its class, as in ``my_file:MyMethod``."""
    return isinstance(name, str) and names_code(name)


def _own_entry(what: str, cls: Any, summary: str = "") -> Entry:
    """Make the entry of a user's own class.

    Raises:
        ConfigError: The class is not a method.
    """
    from kifuse.methods.base import Method

    if not (isinstance(cls, type) and issubclass(cls, Method) and hasattr(cls, "__pydantic_fields__")):
        raise ConfigError(
            f"{what} is not a method. Derive the class from kifuse.Method and decorate it with pydantic's "
            "@dataclass(kw_only=True, config=SETTINGS), SETTINGS from kifuse.methods.base."
        )
    try:
        data_class = cls().data_class
    except (ValidationError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{what} cannot be made without settings: {reason}.") from error
    target = f"{cls.__module__}:{cls.__qualname__}"
    registry.OWN[target] = cls
    summary = summary or (cls.__doc__ or "").strip().partition("\n")[0]
    return Entry(target=target, summary=summary, data_class=data_class)


def refuse_unnamed_method(name: Any, named: str | None, folder: Any) -> None:
    """Refuse a method that a folder names but the caller does not; nothing of it is imported.

    Args:
        name: The method's name in the folder.
        named: The name that the caller gives.
        folder: The folder, for the message.

    Raises:
        RunError: The caller has neither registered the method nor named it.
        ConfigError: See `name_method`.
    """
    if named is not None:
        name_method(named)
    if is_own_name(name) and name not in registry.METHODS:
        raise RunError(
            f"{folder}: was learned by the method {name!r}, which is code, and a folder cannot make code "
            f"run. Look at the code. If you want it to run: --own-method {name} in the shell, or "
            f"ContinualLearner.load(folder, own_method={name!r})."
        )
