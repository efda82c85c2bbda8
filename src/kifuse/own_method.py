"""A user's own methods: named in this process, or found by name in a file of the working directory.

Only code that the caller names is ever imported, never code that a folder names; see `refuse_unnamed_method`.
"""

from __future__ import annotations

import inspect
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from kifuse import registry
from kifuse.errors import ConfigError, DataError, RunError, did_you_mean
from kifuse.method_catalog import Entry
from kifuse.scoring.own_function import import_from_here, names_code

if TYPE_CHECKING:
    from kifuse.methods.base import Method


_HOOKS = (
    "training_examples",
    "begin_task",
    "loss",
    "on_gradients",
    "on_update",
    "on_step",
    "end_task",
    "remember",
    "check",
    "extra_passes",
)


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
    if cls.__pydantic_config__.get("extra") != "forbid":  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError(
            f"{what} would ignore settings that it does not have. Decorate the class with "
            "@dataclass(kw_only=True, config=SETTINGS), SETTINGS from kifuse.methods.base."
        )
    try:
        made = cls()
        data_class = made.data_class
    except (ValidationError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{what} cannot be made without settings: {reason}.") from error
    _refuse_slips(what, made)
    target = f"{cls.__module__}:{cls.__qualname__}"
    registry.OWN[target] = cls
    summary = summary or (cls.__doc__ or "").strip().partition("\n")[0]
    return Entry(target=target, summary=summary, data_class=data_class)


def _refuse_slips(what: str, method: Method) -> None:
    """Refuse what would be ignored in silence: unknown words, and hooks that are never or otherwise called.

    Raises:
        ConfigError: The class has such a slip.
    """
    from kifuse.methods.base import Method, Need, OldData

    known: tuple[str, ...] = get_args(OldData)
    if method.old_data not in known:
        raise ConfigError(f"{what}: old_data is {method.old_data!r}, expected one of {', '.join(known)}.")
    for need in sorted(set(method.needs) - set(get_args(Need))):
        listed = ", ".join(get_args(Need))
        raise ConfigError(
            f"{what}: needs has {need!r}, expected words out of {listed}.{did_you_mean(need, get_args(Need))}"
        )
    hooks = {name: getattr(Method, name) for name in _HOOKS}
    for name, own in inspect.getmembers(type(method), inspect.isfunction):
        near = get_close_matches(name, hooks, n=1, cutoff=0.85)
        if near and name not in hooks and not hasattr(Method, name):
            raise ConfigError(f"{what}: kifuse never calls {name!r}, expected {near[0]!r} or another name.")
        if name in hooks:
            expected = inspect.signature(hooks[name])
            try:
                inspect.signature(own).bind(*expected.parameters)
            except TypeError as error:
                raise ConfigError(
                    f"{what}: {name}{inspect.signature(own)} cannot be called as kifuse does ({error}), "
                    f"expected {name}({', '.join(expected.parameters)})."
                ) from error


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
