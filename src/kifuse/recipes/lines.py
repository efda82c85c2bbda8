"""The format of recipes: one ``key: value  # where the value comes from`` on each line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

_LINE = re.compile(r"(?P<indent>(?:  )*)(?P<name>\w+):(?: (?P<text>\S.*?))?(?: +# (?P<source>\S.*))?")
_COMMENT_COLUMN = 38


@dataclass(frozen=True)
class Line:
    """A value of a recipe.

    Attributes:
        key: Dotted key, e.g. ``model.adapter.rank``.
        text: The value as YAML in one line.
        source: Where it comes from.
    """

    key: str
    text: str
    source: str


def parse_recipe(text: str) -> tuple[list[str], list[Line]]:
    """Splits a recipe into its parts.

    Args:
        text: The recipe: comment lines, then sections of ``key: value  # source``, indented two spaces per
            level.

    Returns:
        The comment lines without their ``#``, and the values in their order.

    Raises:
        ValueError: A line has another form; the message gives its number.
    """
    heading: list[str] = []
    values: list[Line] = []
    sections: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#") and not sections and not values:
            heading.append(line[1:].strip())
            continue
        match = _LINE.fullmatch(line)
        level = len(match["indent"]) // 2 if match else -1
        if match is None or level > len(sections) or (match["text"] and not match["source"]):
            raise ValueError(f"line {number}: found {line!r}, expected 'key: value  # source'")
        sections = sections[:level]
        if match["text"] is None:
            sections.append(match["name"])
        else:
            values.append(Line(".".join([*sections, match["name"]]), match["text"], match["source"]))
    return heading, values


def format_recipe(heading: Iterable[str], values: Iterable[Line]) -> str:
    """Writes a recipe from its parts, with the sources in one column where the values leave room.

    Args:
        heading: The comment lines.
        values: The values; those of one section must be together.

    Returns:
        Text that `parse_recipe` splits into the same parts.
    """
    lines = [f"# {line}".rstrip() for line in heading]
    open_sections: list[str] = []
    for value in values:
        *sections, name = value.key.split(".")
        shared = 0
        while shared < min(len(sections), len(open_sections)) and sections[shared] == open_sections[shared]:
            shared += 1
        lines += ["  " * level + f"{sections[level]}:" for level in range(shared, len(sections))]
        open_sections = sections
        entry = "  " * len(sections) + f"{name}: {value.text}"
        lines.append(f"{entry:<{_COMMENT_COLUMN - 2}}  # {value.source}")
    return "\n".join(lines) + "\n"


def as_yaml(value: Any) -> str:
    """Write a value as YAML on one line."""
    text = _dump(value)
    return text if len(text.splitlines()) == 1 else _dump(value, default_style='"')


def _dump(value: Any, **style: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"), **style)
    return text.removesuffix("\n").removesuffix("\n...")
