"""Reads a YAML file, keeps the line number of every key, and finds keys that are given twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kifuse.errors import ConfigError, KifuseError, did_you_mean
from kifuse.io.storage import check_plain
from kifuse.problems import Key, Problem, show_value


@dataclass
class Document:
    """The contents of a YAML file.

    Attributes:
        path: The file.
        data: Its mapping, as plain dicts, lists and scalars.
        lines: The line of each key, counted from 1.
        problems: Keys given twice, each with its line.
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
        ConfigError: The file cannot be read, is not YAML, is empty, or does not hold a mapping.
    """
    with _yaml(_read_text(path), path) as loader:
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{path}:1: found an empty file, expected a run's configuration. {_EXAMPLE}")
        reader = _Reader(loader, path)
        reader.measure(node)
        if not isinstance(node, yaml.MappingNode):
            found = show_value(reader.value(node, ()))
            raise ConfigError(f"{path}:{_line(node)}: found {found}, expected 'key: value' lines. {_EXAMPLE}")
        return reader.document(node)


def read_setting(text: str) -> Any:
    """Reads the value of one command-line setting by the same rules as a file.

    Args:
        text: A value in YAML; empty text means null.

    Returns:
        The value, as plain dicts, lists and scalars.

    Raises:
        ConfigError: The text is not YAML, gives a key twice, or expands to too many values; the message gives
            the reason without a place.
    """
    with _yaml(text, None) as loader:
        node = loader.get_single_node()
        if node is None:
            return None
        reader = _Reader(loader, Path())
        reader.measure(node)
        value = reader.value(node, ())
        for _, problem in reader.result.problems:
            raise ConfigError(f"the key '{problem.key[-1]}' appears twice")
        return value


@contextmanager
def _yaml(text: str, path: Path | None) -> Iterator[yaml.SafeLoader]:
    """Opens a YAML text, and puts PyYAML's errors about damaged text into plain words."""
    if len(text) > _MOST_CHARACTERS:
        why = f"it holds {len(text)} characters, more than the {_MOST_CHARACTERS} that kifuse reads"
        raise _refusal(path, 1, why)
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        yield loader
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        odd = ascii(text[error.position : error.position + 1])
        raise _refusal(path, line, f"the character {odd} is not allowed", "Remove it.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ", ".join(part for part in (error.context, error.problem) if part)
        column = f" (column {mark.column + 1})" if mark and path else ""
        raise _refusal(path, mark.line + 1 if mark else 1, why + column, _ADVICE) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the scanner does not check \U and %YAML
        line = loader.line + 1 if loader is not None else 1
        raise _refusal(path, line, " ".join(str(error).split()), "Correct this line.") from error
    except RecursionError as error:
        why = "found values nested too deep to read, expected at most three levels"
        raise ConfigError(why if path is None else f"{path}:1: {why}.") from error
    finally:
        if loader is not None:
            loader.dispose()


def _refusal(path: Path | None, line: int, why: str, advice: str = "") -> ConfigError:
    """The error for a text that is not YAML: with the place for a file, only the reason for a setting."""
    return ConfigError(why if path is None else f"{path}:{line}: is not YAML: {why}. {advice}".rstrip())


_ADVICE = "Check this line and the one before it for brackets, quotes, colons, tabs and indentation."
_MOST_CHARACTERS = 200_000
_MOST_VALUES = 20_000
_LONGEST_NUMBER = 64
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}map", f"{_TAG}seq"}
_NUMBER_TAGS = {f"{_TAG}int", f"{_TAG}float"}
_EXAMPLE = "It needs the sections model, data and method, and the key output."


def _read_text(path: Path) -> str:
    try:
        check_plain(path)
        raw = path.read_bytes()
    except FileNotFoundError as error:
        here = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
        nearest = did_you_mean(path.name, [each.name for each in here])
        raise ConfigError(f"{path}: found no such file, expected a YAML configuration.{nearest}") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror or error}. Check the file's rights."
        ) from error
    except KifuseError as error:
        if path.is_dir():
            raise ConfigError(
                f"{path}: found a folder, expected a YAML file. Name the file inside it."
            ) from error
        raise ConfigError(str(error)) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.start} is not UTF-8, expected a YAML file in UTF-8. "
            "Save the file as UTF-8."
        ) from error


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


class _Reader:
    """Walks the tree of YAML nodes once."""

    def __init__(self, loader: yaml.SafeLoader, path: Path):
        self.loader = loader
        self.result = Document(path)
        self.checked: set[int] = set()
        self.open: set[int] = set()
        self.sizes: dict[int, int] = {}

    def measure(self, node: yaml.Node) -> int:
        """Count the values that a node contains when every alias and merge is written out.

        Raises:
            ConstructorError: An alias contains itself, a collection has a tag, or the count is far too large,
                as in the "billion laughs": nine lines of aliases of aliases that unfold to a billion values.
        """
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in self.open:
            raise _fault("an alias contains itself", node)
        if id(node) in self.sizes:
            return self.sizes[id(node)]
        if node.tag not in _PLAIN_TAGS:
            raise _fault(f"the tag '{node.tag}' is not allowed, only plain mappings and lists", node)
        self.open.add(id(node))
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        size = 1 + sum(map(self.measure, inner))
        if size > _MOST_VALUES:
            raise _fault(f"its aliases expand to more than {_MOST_VALUES} values", node)
        self.open.discard(id(node))
        self.sizes[id(node)] = size
        return size

    def document(self, node: yaml.MappingNode) -> Document:
        self.result.data = self.mapping(node, ())
        return self.result

    def value(self, node: yaml.Node, key: Key) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        return [self.value(item, (*key, str(index))) for index, item in enumerate(node.value)]

    def scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag in _NUMBER_TAGS and len(node.value) > _LONGEST_NUMBER:
            raise _fault(f"a number of {len(node.value)} characters", node)
        try:
            return self.loader.construct_object(node)
        except yaml.YAMLError:
            raise
        except (
            Exception
        ) as error:  # e.g. the date 2024-13-45, or !!bool on a value that is not one: PyYAML trusts a tag
            kind = node.tag.rpartition(":")[2]
            raise _fault(f"{node.value[:_LONGEST_NUMBER]!r} is no {kind}", node) from error

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        if id(node) not in self.checked:  # check before merging: a key may override one from "<<"
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
    raise _fault("a key must be plain text", node)


def _fault(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
