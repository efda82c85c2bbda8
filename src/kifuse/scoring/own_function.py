"""A user's own function as a metric: found by name, called with checks, identified by its source's hash.

Only the caller of kifuse may name code. A name from a data folder, or from a learner's folder, is accepted
only if the caller has given it as well; see `refuse_unnamed`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from kifuse.errors import DataError, did_you_mean

_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*\Z")
_EXPECTED = "expected a function of (prediction, references) or (prediction, example)"
_given: dict[str, Callable[..., Any]] = {}
_named: set[str] = set()
"""The names that the caller has given in this process; each function was found once."""


def names_code(name: str) -> bool:
    """Whether a name has the form ``module:attribute``."""
    return _NAME.match(name) is not None


def is_own(name: str) -> bool:
    """Say whether a metric's name belongs to a user's own function, such as ``my_module:score``."""
    return name in _given or names_code(name) or (":" in name and "@" in name)


def register_metric(function: Callable[..., Any] | str) -> str:
    """Name a function of your own, so that tasks can be scored by it.

    After this call, tasks in this process may be scored by the function if a data folder names it, or if a
    learner learned them earlier with it. A folder alone never names code that runs.

    Args:
        function: The function, or ``module:function``, which is imported from the working directory.

    Returns:
        ``module:function``. A function that cannot be found again by its name (a lambda, a function inside
        another function) is known only in this process, and its name ends with a part of its source's hash. A
        later process that continues with its scores must register it first.

    Raises:
        DataError: The function cannot be called with a prediction and references, or no function has this
            name.
    """
    if isinstance(function, str):
        if not is_own(function):
            raise DataError(f"metric is {function!r}, expected a function, or 'module:function'.")
        own_function(function)
        _named.add(function)
        return function
    module, qualified = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    name = f"{module}:{qualified}"
    if not _NAME.match(name) or _attribute(sys.modules.get(module), qualified) is not function:
        if not qualified:
            name = f"{type(function).__module__}:{type(function).__qualname__}"
        name += f"@{(_hash_of_function(function) or format(id(function), 'x'))[:8]}"
        plain, number = name, 1
        while name in _given and _workings(_given[name]) != _workings(function):
            number += 1
            name = f"{plain}-{number}"
    _check_signature(function, name)
    _given[name] = function
    return name


def refuse_unnamed(name: Any, where: str) -> None:
    """Refuse code that a folder names but the caller does not; nothing of it is imported.

    Args:
        name: Name of a metric, as the folder gives it.
        where: The file or folder that holds the name, for the message.

    Raises:
        DataError: The name belongs to a function that the caller has not named in this process.
    """
    if isinstance(name, str) and is_own(name) and name not in _given and name not in _named:
        raise DataError(
            f"{where}: metric '{name}' is code, and a data folder cannot make code run. Look at the code. "
            f"If you want it to run, name it: data.own_metrics: ['{name}'] in your configuration, "
            f"own_metrics=['{name}'] for ContinualLearner.load, or kifuse.scoring.register_metric('{name}') "
            "in Python."
        )


def own_function(name: str) -> Callable[..., Any]:
    """Find a user's own function.

    Args:
        name: ``module:function``; the module is a file or a package in the working directory.

    Returns:
        The function.

    Raises:
        DataError: There is no such module or function, its import fails, or it cannot be called with a
            prediction and references.
    """
    if name in _given:
        return _given[name]
    if "@" in name:
        raise DataError(
            f"metric '{name}': this function was given in Python by another process and cannot be found by "
            "its name. Give it again first: kifuse.scoring.register_metric(function)."
        )
    module_name, _, attribute = name.partition(":")
    module = (
        sys.modules.get("__main__")
        if module_name == "__main__"
        else import_from_here(f"metric '{name}'", module_name)
    )
    function = _attribute(module, attribute)
    if not callable(function):
        names = [each for each, value in vars(module).items() if inspect.isfunction(value)] if module else []
        raise DataError(
            f"metric '{name}': the module '{module_name}' has no function '{attribute}'"
            f"{', expected one of ' + ', '.join(names) if names else ''}.{did_you_mean(attribute, names)}"
        )
    _check_signature(function, name)
    return function


def source_hash(name: str) -> str | None:
    """Hash the source of a user's own function.

    Args:
        name: Its name.

    Returns:
        SHA-256 of the file of its module. If the function is in a script or notebook, or cannot be found by
        its name, SHA-256 of the function's own text. None if there is no source.

    Raises:
        DataError: For the reasons given in `own_function`.
    """
    function = own_function(name)
    module = inspect.getmodule(function)
    file = getattr(module, "__file__", None)
    if module is None or module.__name__ == "__main__" or "@" in name or not file:
        return _hash_of_function(function)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return _hash_of_function(function)


def call_own(name: str, prediction: str, example: Any, references: Sequence[str], place: str) -> float:
    """Score one prediction with a user's own function.

    Args:
        name: Name of the function.
        prediction: The generated text.
        example: The example that the prediction answers.
        references: The accepted outputs.
        place: Description of the example, for a message.

    Returns:
        A score from 0 to 1.

    Raises:
        DataError: The function raises an error, or returns anything but true, false or a number from 0 to 1.
    """
    function = own_function(name)
    second = example if _takes_example(function) else list(references)
    try:
        found = function(prediction, second)
    except Exception as error:
        raise DataError(
            f"metric '{name}': it raised {type(error).__name__}: {error}{_line(error, function)}, "
            f"for {place}, prediction {_shown(prediction)}."
        ) from error
    value = _as_number(found)
    if value is None or not 0.0 <= value <= 1.0:
        raise DataError(
            f"metric '{name}': it returned {_shown(found)} for {place}, prediction {_shown(prediction)}; "
            "expected true, false, or a number from 0 to 1."
        )
    return value


def import_from_here(what: str, module_name: str) -> ModuleType:
    """Import a user's own module from the working directory.

    Args:
        what: What the module is needed for, for the message, such as ``metric 'my_module:score'``.
        module_name: The module's name.

    Raises:
        DataError: There is no such module, another module has its name, or its import fails.
    """
    here = os.getcwd()
    top = module_name.partition(".")[0]
    known = sys.modules.get(module_name)
    if known is not None and _lies_in(getattr(known, "__file__", None), here):
        return known
    importlib.invalidate_caches()
    if top in sys.stdlib_module_names or importlib.machinery.PathFinder.find_spec(top, [here]) is None:
        raise DataError(
            f"{what}: the working directory ({here}) holds no module '{top}'; expected a file {top}.py there."
        )
    if known is not None or (top in sys.modules and not _from(sys.modules[top], here)):
        raise DataError(
            f"{what}: another module '{top}' is loaded already "
            f"({getattr(sys.modules[top], '__file__', None) or 'built in'}); rename the file {top}.py."
        )
    try:
        with _importing_from(here):
            return importlib.import_module(module_name)
    except Exception as error:
        raise DataError(
            f"{what}: importing '{module_name}' from {here} failed: {type(error).__name__}: {error}."
        ) from error


def _from(module: ModuleType, folder: str) -> bool:
    """Whether a module, or a package without its own file, is in a folder."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(_lies_in(place, folder) for place in places)


def _lies_in(file: str | None, folder: str) -> bool:
    return file is not None and Path(file).resolve().is_relative_to(Path(folder).resolve())


@contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _attribute(module: ModuleType | None, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _check_signature(function: Callable[..., Any], name: str) -> None:
    if not callable(function):
        raise DataError(f"metric: found {type(function).__name__}, {_EXPECTED}.")
    try:
        inspect.signature(function).bind("", [])
    except TypeError as error:
        raise DataError(f"metric '{name}': {error}; {_EXPECTED}.") from error
    except ValueError:  # the function is written in C and has no signature
        return


def _takes_example(function: Callable[..., Any]) -> bool:
    try:
        names = list(inspect.signature(function).parameters)
    except ValueError:
        return False
    return len(names) > 1 and names[1] == "example"


def _as_number(found: Any) -> float | None:
    """Turn true, false and real numbers, also of numpy and torch, into a float; None for other values."""
    if not isinstance(found, (bool, int, float)) and callable(getattr(found, "item", None)):
        try:
            found = found.item()
        except (ValueError, RuntimeError):  # it holds many numbers, not one
            return None
    if not isinstance(found, (bool, int, float)) or not math.isfinite(found):
        return None
    return float(found)


def _line(error: Exception, function: Callable[..., Any]) -> str:
    """The line of the function's file in which an error was raised."""
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        return ""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" ({file}:{line})" if line else ""


def _hash_of_function(function: Callable[..., Any]) -> str | None:
    try:
        source = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _workings(function: Callable[..., Any]) -> tuple[Any, ...]:
    """The properties by which two functions with the same source text can behave differently."""
    code = getattr(function, "__code__", None)
    if code is None:
        return type(function), getattr(function, "__dict__", {})
    cells = tuple(cell.cell_contents for cell in getattr(function, "__closure__", None) or ())
    return code.co_code, code.co_consts, code.co_names, getattr(function, "__defaults__", None), cells


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
