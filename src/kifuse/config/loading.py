"""Turns a YAML file and the command line's settings into a checked RunConfig, or lists all problems."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kifuse.config.installed import missing_packages
from kifuse.config.reading import Document, read_setting, read_yaml
from kifuse.config.schema import RunConfig
from kifuse.config.start_from import start_of, with_start
from kifuse.errors import ConfigError, did_you_mean
from kifuse.own_method import name_method
from kifuse.problems import NOTHING, Key, Problem, from_pydantic, show_value
from kifuse.registry import check_settings, method_names
from kifuse.tasks.readers.hub import hub_id

_MOST_PROBLEMS = 50
_LONGEST_PART = 255
"""Most bytes that file systems allow in one part of a path."""
_SECTIONS = [name for name in RunConfig.model_fields if name != "output"]


def load_config(
    path: Path | None,
    overrides: Mapping[str, Any] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    check_files: bool = False,
    without: Collection[str] = (),
) -> RunConfig:
    """Reads and checks the configuration of a run.

    The method, and torch with it, is imported only if the configuration sets one of the method's own
    settings.

    Args:
        path: The YAML file; None when everything is given in ``overrides``.
        overrides: Values that replace the file's, by dotted key: ``{"training.epochs": 2}``.
        flags: By dotted key, the command-line option that sets this key; other keys have ``--set KEY``.
        check_files: Whether the data must exist.
        without: Sections of the file that are ignored.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: Something is wrong; the message lists every problem on a line of its own, with file and
            line.
    """
    document = read_yaml(path) if path is not None else Document(Path())
    source = _Source(document, path, dict(flags or {}))
    problems = list(document.problems)
    data = {name: deepcopy(value) for name, value in document.data.items() if name not in without}
    for key, value in (overrides or {}).items():
        _override(data, tuple(key.split(".")), value)
        source.overridden.add(tuple(key.split(".")))
    _open_empty_sections(data)
    wrong_paths = _check_paths(data)
    found, config = _validate(_without(data, wrong_paths))
    found += wrong_paths
    method = data.get("method")
    if isinstance(method, dict):
        found += _check_method(method)
    found += _check_across(data, {problem.key for problem in found})
    if check_files:
        found += _check_folder(data.get("data"))
        if config is not None:
            found += missing_packages(config.training.report_to, config.watch.lm_eval.tasks)
    if path is None:
        found = [_name_option(problem, source.flags) for problem in found]
    if found or problems:
        lines = [(line, problem.render(f"{path}:{line}")) for line, problem in problems]
        lines += [(source.line(problem.key), problem.render(source.place(problem.key))) for problem in found]
        texts = [text for _, text in sorted(lines, key=lambda each: each[0])]
        more = [f"... and {len(texts) - _MOST_PROBLEMS} more."] if len(texts) > _MOST_PROBLEMS else []
        raise ConfigError("\n".join(texts[:_MOST_PROBLEMS] + more))
    if config is None:
        raise ConfigError(f"{path}: cannot be read as a configuration.")
    start = start_of(config)
    # the adapter that a finished run started from may be gone
    return with_start(config) if check_files or (start is not None and start.is_dir()) else config


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Reads the command line's ``key=value`` settings; a value is read as YAML.

    Args:
        settings: E.g. ``["training.epochs=2", "model.adapter.target_modules=[q, v]"]``.

    Returns:
        The values by dotted key.

    Raises:
        ConfigError: A setting has no ``=`` or no key, is given twice, or has a value that is not YAML or
            expands to far too many values.
    """
    found: dict[str, Any] = {}
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            problems.append(
                f"--set {setting}: found {setting!r}, expected KEY=VALUE, e.g. training.epochs=2."
            )
            continue
        if key in found:
            problems.append(f"--set {key}: found the key a second time, expected each key once. Remove one.")
            continue
        try:
            found[key] = read_setting(text)
        except ConfigError as error:
            shown = repr(text if len(text) <= 80 else f"{text[:77]}...")
            problems.append(
                f"--set {key}: found {shown}, expected a YAML value: {error}. Put the value in quotes."
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into sections: ``{"training.epochs": 2}`` becomes ``{"training": {"epochs": 2}}``."""
    data: dict[str, Any] = {}
    for key, value in overrides.items():
        _override(data, tuple(key.split(".")), value)
    return data


def to_yaml(config: RunConfig) -> str:
    """Write the configuration as YAML with every default; reading that gives an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


class _Source:
    """Knows where each value came from."""

    def __init__(self, document: Document, path: Path | None, flags: dict[str, str]):
        self.lines = document.lines
        self.path = path
        self.flags = flags
        self.overridden: set[Key] = set()

    def place(self, key: Key) -> str:
        for length in range(len(key), 0, -1):
            part = key[:length]
            if part in self.overridden:
                return self.flags.get(".".join(part), f"--set {'.'.join(part)}")
            if part in self.lines:
                return f"{self.path}:{self.lines[part]}"
        return f"{self.path}:1" if self.path is not None else ""

    def line(self, key: Key) -> int:
        """The line to sort by; values from the command line come last."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.overridden:
                return 1 << 30
            if key[:length] in self.lines:
                return self.lines[key[:length]]
        return 1


def _name_option(problem: Problem, flags: Mapping[str, str]) -> Problem:
    """Without a file, name the option that gives a missing value."""
    flag = flags.get(".".join(problem.key))
    if problem.found != NOTHING or flag is None:
        return problem
    return replace(problem, advice=f"Give it with {flag}, or name a CONFIG.yaml.")


def _override(data: dict[str, Any], key: Key, value: Any) -> None:
    for name in key[:-1]:
        inner = data.get(name)
        if not isinstance(inner, dict):
            inner = data[name] = {}
        data = inner
    data[key[-1]] = value


def _open_empty_sections(data: dict[str, Any]) -> None:
    """Replace empty sections by defaults: a section whose keys are all commented out is null in YAML."""
    for name in _SECTIONS:
        if name in data and data[name] is None:
            data[name] = {}
    model = data.get("model")
    if isinstance(model, dict) and "adapter" in model and model["adapter"] is None:
        model["adapter"] = {}


def _validate(data: dict[str, Any]) -> tuple[list[Problem], RunConfig | None]:
    try:
        # A missing section is checked as an empty one, so that the problem names the key that is needed.
        return [], RunConfig.model_validate({"model": {}, "method": {}, **data})
    except ValidationError as error:
        return from_pydantic(error.errors(include_url=False), RunConfig.model_fields, data), None


def _check_paths(data: dict[str, Any]) -> list[Problem]:
    """Find paths that no operating system would accept; using them would fail with confusing errors."""
    section = data.get("data")
    paths: dict[Key, Any] = {("output",): data.get("output")}
    if isinstance(section, dict):
        paths["data", "path"] = section.get("path")
    problems = []
    for key, text in paths.items():
        if not isinstance(text, str):
            continue
        try:
            parts = Path(text).expanduser().parts
        except RuntimeError:
            advice = "Write the whole path."
            problems.append(
                Problem(key, show_value(text), "the home folder of a user of this machine", advice)
            )
            continue
        if "\0" in text or any(len(_bytes(part)) > _LONGEST_PART for part in parts):
            expected = f"a path in Unicode without NUL, with parts of at most {_LONGEST_PART} bytes"
            problems.append(Problem(key, show_value(text), expected, "Correct the path."))
    return problems


def _bytes(part: str) -> bytes:
    try:
        return part.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair cannot be encoded: treat it as longer than allowed
        return b" " * (_LONGEST_PART + 1)


def _without(data: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The values with a placeholder for each path that was already refused."""
    found = dict(data)
    for problem in problems:
        if len(problem.key) == 1:
            found["output"] = "."
        else:
            found["data"] = {**found["data"], "path": "."}
    return found


def _check_method(method: dict[str, Any]) -> list[Problem]:
    name = method.get("name")
    if not isinstance(name, str) or not name:
        return []
    try:
        name_method(name)
    except ConfigError as error:
        expected = "a file and a class of yours, as in my_file:MyMethod"
        return [Problem(("method", "name"), show_value(name), expected, str(error))]
    if name not in method_names():
        known = method_names()
        expected = "one of " + ", ".join(known)
        advice = did_you_mean(name, known) or "See 'kifuse ls methods'."
        return [Problem(("method", "name"), show_value(name), expected, advice)]
    settings = {key: value for key, value in method.items() if key != "name"}
    return check_settings(name, settings) if settings else []


def _check_folder(section: Any) -> list[Problem]:
    text = section.get("path") if isinstance(section, dict) else None
    if not isinstance(text, str) or not text.strip() or _check_paths({"data": section}):
        return []
    try:
        if Path(text).expanduser().exists() or hub_id(text) is not None:
            return []
    except OSError:  # a path that may not be looked at is refused with the reason when it is read
        return []
    found = f"{show_value(text)}, which is not there"
    advice = "Correct the path. It starts at the folder that the command runs in."
    return [Problem(("data", "path"), found, "the folder or file that holds the data", advice)]


def _check_across(data: dict[str, Any], wrong: set[Key]) -> list[Problem]:
    """Check the rules between keys; a rule about a key that is already wrong reports nothing."""

    def get(section: str, key: str, default: Any = None) -> Any:
        values = data.get(section, {})
        return values.get(key, default) if isinstance(values, dict) else default

    problems = []
    if ("data",) not in wrong:
        order = None if ("data", "order") in wrong else get("data", "order")
        if ("data", "benchmark") not in wrong:
            problems += _check_stream(get("data", "benchmark"), get("data", "path"), order)
    if not wrong & {("training",), ("training", "batch_size"), ("training", "accumulation")}:
        batch, parts = get("training", "batch_size", 8), get("training", "accumulation", 1)
        if batch % parts:
            expected = f"a number that divides training.batch_size ({batch})"
            problems.append(
                Problem(("training", "accumulation"), str(parts), expected, "Change one of the two.")
            )
    return problems


def _check_stream(benchmark: str | None, path: Any, order: int | list[str] | None) -> list[Problem]:
    if benchmark is None:
        if path is None:
            advice = "Give data.benchmark (--benchmark NAME) or data.path (--data FOLDER)."
            return [Problem(("data",), "neither benchmark nor path", "at least one of them", advice)]
        if isinstance(order, int):
            advice = "Name the tasks in their order, or give data.benchmark."
            return [
                Problem(
                    ("data", "order"), str(order), "a list of task names, as no benchmark is given", advice
                )
            ]
        return []
    from kifuse.benchmarks.catalog import BENCHMARKS

    if benchmark not in BENCHMARKS:
        known = list(BENCHMARKS)
        advice = did_you_mean(benchmark, known) or "See 'kifuse ls benchmarks'."
        return [Problem(("data", "benchmark"), show_value(benchmark), "one of " + ", ".join(known), advice)]
    if path is None and BENCHMARKS[benchmark].bundled is None:
        advice = "Give its folder as data.path (--data FOLDER)."
        return [
            Problem(
                ("data", "benchmark"), f"'{benchmark}' without its data", "the key data.path as well", advice
            )
        ]
    orders = BENCHMARKS[benchmark].orders
    if isinstance(order, int) and order not in orders:
        known = ", ".join(str(each) for each in orders)
        advice = "See 'kifuse ls benchmarks', or name the tasks in a list."
        return [Problem(("data", "order"), str(order), f"one of the orders of {benchmark}: {known}", advice)]
    return []
