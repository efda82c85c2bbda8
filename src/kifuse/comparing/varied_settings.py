"""Values of the configuration that a comparison tries for each of its methods: `compare.vary`, `--vary`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kifuse.config.reading import read_setting
from kifuse.errors import ConfigError
from kifuse.io.storage import sha256_text
from kifuse.problems import show_value

ON_DEV = "on-dev"
"""Folder for a method's runs that are scored on dev, with one subfolder for each value."""

NO_LONGER = "no-longer-chosen"
"""Folder for a method's tested runs whose value another one has beaten since."""

HELD_OUT = 0.1
"""Share of a task's training examples that becomes dev, if it has no dev examples."""

_ELSEWHERE = {
    "method.name": "--methods",
    "data.order": "--orders",
    "training.seed": "--seeds",
    "output": "another comparison",
}
_SCORED = ("benchmark", "path", "dev_examples", "test_examples", "hold_out", "scored_on", "metric")
_EXAMPLE = "training.learning_rate=1e-4,3e-4"


@dataclass(frozen=True)
class Point:
    """A value of each key that is varied.

    Attributes:
        values: The values by dotted key, as they were given.
    """

    values: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """The name of its folder: `training.learning_rate=0.0001`."""
        text = ",".join(f"{key}={value}" for key, value in self.values)
        plain = re.fullmatch(r"[A-Za-z0-9_.,=+-]{1,150}", text) and not text.endswith(".")
        return text if plain else f"values-{sha256_text(text)[:12]}"

    @property
    def title(self) -> str:
        """The values for people: `learning_rate 0.0001`."""
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.values)


def as_number(value: Any) -> Any:
    """Turn a text such as '1e-4', which YAML does not read as a number, into a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def points(vary: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of the values, those of the first key outermost."""
    return [
        Point(tuple(zip(vary, values, strict=True)))
        for values in itertools.product(*(map(as_number, each) for each in vary.values()))
    ]


def fault(key: str, values: Any) -> tuple[str, str, str] | None:
    """Say what was found, expected and to be done, if a key cannot be varied over these values."""
    if key in _ELSEWHERE:
        return "a key that always differs between the runs", _ELSEWHERE[key], ""
    section, _, name = key.partition(".")
    if not name:
        return f"the section {key!r}", f"one of its keys, such as {_EXAMPLE}", ""
    if section == "watch" or (section == "data" and name in _SCORED):
        return "a key that changes what is scored", "one whose values can be compared by their scores", ""
    if not isinstance(values, list) or len(values) < 2:
        return show_value(values), "two values or more", f"One value is set by --set {key}=VALUE."
    known = [as_number(value) for value in values]
    if any(value in known[:place] for place, value in enumerate(known)):
        return show_value(values), "each value once", "Remove one."
    return None


def parse_vary(settings: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Read the command line's `KEY=VALUE,VALUE...`.

    Raises:
        ConfigError: One cannot be read, or its key cannot be varied.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if not all(key.split(".")) or not text:
            raise ConfigError(f"--vary: found {setting!r}, expected KEY=VALUE,VALUE, such as {_EXAMPLE}.")
        if key in found:
            raise ConfigError(f"--vary {key}: found the key a second time, expected each once. Remove one.")
        try:
            values = read_setting(f"[{text}]")
        except ConfigError as error:
            raise ConfigError(
                f"--vary {key}: found {text!r}, expected values separated by commas: {error}"
            ) from error
        if wrong := fault(key, values):
            was, expected, advice = wrong
            raise ConfigError(f"--vary {key}: found {was}, expected {expected}. {advice}".rstrip())
        found[key] = tuple(values)
    return found


def check_choice(choose_on: Any, varied: bool, option: str) -> None:
    """Refuse to choose on anything but dev.

    Raises:
        ConfigError: It is something else, or nothing is varied.
    """
    if choose_on == "test":
        raise ConfigError(
            f"{option}: found 'test', expected 'dev'. A value that is chosen by its test scores would be "
            "measured on the same examples."
        )
    if choose_on not in (None, "dev"):
        raise ConfigError(f"{option}: found {show_value(choose_on)}, expected 'dev'.")
    if choose_on is not None and not varied:
        raise ConfigError(f"{option}: found 'dev' without a key to try, expected --vary {_EXAMPLE} as well.")


def merged(old: Mapping[str, Sequence[Any]], new: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    """Merge the values of two mappings with the same keys, each value once."""
    found = {}
    for key in old:
        values = [*old[key], *new[key]]
        known = [as_number(value) for value in values]
        found[key] = tuple(v for place, v in enumerate(values) if known[place] not in known[:place])
    return found
