"""Reads a YAML file so that every key keeps its line number and no key is given twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kifuse.errors import ConfigError, did_you_mean
from kifuse.problems import Key, Problem, show_value


@dataclass
class Document:
    """What a YAML file holds.

    Attributes:
        path: The file.
        data: Its mapping, as plain dicts, lists and scalars.
        lines: The line of each key, counted from 1.
        problems: Keys given twice, with their lines in ``problem_lines``.
    """

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[tuple[int, Problem]] = field(default_factory=list)


def read_yaml(path: Path) -> Document:
    """Reads a YAML file whose outermost value is a mapping.

    Args:
        path: The file.

    Returns:
        Its data, the line of each key, and the keys given twice.

    Raises:
        ConfigError: The file cannot be read, is no YAML, is empty, or holds no mapping.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(_read_text(path))
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{path}:1: found an empty file, expected a run's configuration. {_EXAMPLE}")
        if not isinstance(node, yaml.MappingNode):
            found = show_value(loader.construct_object(node, deep=True))
            raise ConfigError(f"{path}:{_line(node)}: found {found}, expected 'key: value' lines. {_EXAMPLE}")
        return _Reader(loader, path).document(node)
    except yaml.YAMLError as error:
        raise ConfigError(_malformed(path, error)) from error
    except RecursionError as error:
        raise ConfigError(
            f"{path}:1: found values nested too deep to read, expected at most three levels."
        ) from error
    finally:
        if loader is not None:
            loader.dispose()


_EXAMPLE = "It needs the sections model, data and method, and the key output."


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        here = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
        nearest = did_you_mean(path.name, [each.name for each in here])
        raise ConfigError(f"{path}: found no such file, expected a YAML configuration.{nearest}") from error
    except IsADirectoryError as error:
        raise ConfigError(
            f"{path}: found a folder, expected a YAML file. Name the file inside it."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror or error}. Check the file's rights."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8, expected a YAML file in UTF-8. Save the file as UTF-8."
        ) from error


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _malformed(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return f"{path}: is not YAML: {' '.join(str(error).split())}. Correct or remove this character."
    said = [getattr(error, "context", None), getattr(error, "problem", None)]
    why = ", ".join(part for part in said if part)
    return (
        f"{path}:{mark.line + 1}: is not YAML: {why} (column {mark.column + 1}). "
        "Check this line and the one before it for brackets, quotes, colons, tabs and indentation."
    )


class _Reader:
    """Walks the tree of YAML nodes once."""

    def __init__(self, loader: yaml.SafeLoader, path: Path):
        self.loader = loader
        self.result = Document(path)
        self.checked: set[int] = set()
        self.open: set[int] = set()

    def document(self, node: yaml.MappingNode) -> Document:
        self.result.data = self.mapping(node, ())
        return self.result

    def value(self, node: yaml.Node, key: Key) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if id(node) in self.open:
            raise yaml.constructor.ConstructorError(None, None, "an alias contains itself", node.start_mark)
        self.open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            found: Any = self.mapping(node, key)
        else:
            found = [self.value(item, (*key, str(index))) for index, item in enumerate(node.value)]
        self.open.discard(id(node))
        return found

    def scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.loader.construct_object(node)
        except ValueError as error:  # e.g. the date 2024-13-45
            raise yaml.constructor.ConstructorError(
                None, None, f"{error}: {node.value}", node.start_mark
            ) from error

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        if id(node) not in self.checked:  # before merging: a key may well override one from "<<"
            self.checked.add(id(node))
            self.check_twice(node, key)
            self.loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for name_node, value_node in node.value:
            inner = (*key, _name(name_node))
            self.result.lines[inner] = _line(name_node)
            found[inner[-1]] = self.value(value_node, inner)
        return found

    def check_twice(self, node: yaml.MappingNode, key: Key) -> None:
        first: dict[str, int] = {}
        for name_node, _ in node.value:
            name, line = _name(name_node), _line(name_node)
            if name in first:
                found = f"the key a second time (the first is in line {first[name]})"
                problem = Problem((*key, name), found, "each key once", "Remove one of the two.")
                self.result.problems.append((line, problem))
            first.setdefault(name, line)


def _name(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", node.start_mark)
