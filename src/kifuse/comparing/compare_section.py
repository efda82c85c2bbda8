"""The section `compare:` of a configuration file: the variants of a grid, its orders and its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kifuse.comparing.placing import Placing, placing_fault
from kifuse.comparing.varied_settings import check_choice, fault
from kifuse.config.reading import Document
from kifuse.errors import ConfigError, did_you_mean
from kifuse.io.file_names import name_fault, name_key
from kifuse.problems import Key, Problem, show_value
from kifuse.reporting.run_groups import COMPARISON_FILE

SECTION = "compare"
PAGE = "comparison.html"
TABLES = "tables"
LOG = "log.txt"
TOKENS = "tokens"
JOBS = "jobs"

_KEYS = ("methods", "orders", "seeds", "vary", "choose_on", "on", "jobs", "job")
_VARIANT_KEYS = ("label", "name", "set")
_RESERVED = {name_key(name) for name in (COMPARISON_FILE, PAGE, TABLES, LOG, TOKENS, JOBS)}


@dataclass(frozen=True)
class Variant:
    """A method with its settings, under a name of its own.

    Attributes:
        label: The name of the variant and of the folder of its runs.
        name: The method's name.
        settings: The settings of the method that were given.
        changes: Other values of the configuration that only this variant has, by dotted key.
        places: Where each dotted key was given, for messages.
    """

    label: str
    name: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def overrides(self) -> dict[str, Any]:
        """What the variant sets in a run's configuration, by dotted key."""
        own = {f"method.{key}": value for key, value in self.settings.items()}
        return {**self.changes, "method.name": self.name, **own}

    def as_entry(self) -> dict[str, Any]:
        """The variant as it is written in the section."""
        changes = {"set": dict(self.changes)} if self.changes else {}
        return {"label": self.label, "name": self.name, **self.settings, **changes}


@dataclass(frozen=True)
class Section:
    """The content of the section; each part may be empty."""

    variants: tuple[Variant, ...] = ()
    orders: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    placing: Placing = field(default_factory=Placing)

    def choose(self, names: Sequence[str], own: Variant | None, option: str) -> tuple[Variant, ...]:
        """Find the variants that a list of names asks for.

        Args:
            names: Labels of variants in the section, or names of methods.
            own: The file's own method, whose settings are used if it is named.
            option: Where the names were given, for messages.

        Raises:
            ConfigError: No name is given, or one is given twice.
        """
        if not names:
            raise ConfigError(f"{option}: found no name, expected names of methods, such as replay,kiflora.")
        known = {variant.label: variant for variant in ((own, *self.variants) if own else self.variants)}
        twice = [name for place, name in enumerate(names) if name in names[:place]]
        if twice:
            raise ConfigError(f"{option}: found {twice[0]!r} twice, expected each name once. Remove one.")
        return tuple(known.get(name) or Variant(name, name, places={"method.name": option}) for name in names)


def own_variant(document: Document, path: Path | None) -> Variant | None:
    """The method of the configuration itself, for a grid of orders and seeds only."""
    method = document.data.get("method")
    if not isinstance(method, dict) or not isinstance(method.get("name"), str):
        return None
    settings = {key: value for key, value in method.items() if key != "name"}
    lines = {f"method.{key}": f"{path}:{document.lines['method', key]}" for key in method}
    return Variant(method["name"], method["name"], settings, places=lines)


def read_section(document: Document, path: Path | None) -> Section:
    """Read the section of a file.

    Args:
        document: The file.
        path: The file's name, for messages.

    Raises:
        ConfigError: Something in it is wrong; the message holds every problem.
    """
    found = document.data.get(SECTION)
    if found is None:
        return Section()
    reader = _Reader(document, path)
    if not isinstance(found, dict):
        reader.refuse((SECTION,), show_value(found), f"a section with the keys {', '.join(_KEYS)}")
        found = {}
    for key, value in found.items():
        if key not in _KEYS:
            advice = did_you_mean(key, _KEYS) or "Correct or remove it."
            unknown = f"the unknown key {key!r} with {show_value(value)}"
            reader.refuse((SECTION, key), unknown, f"one of the keys {', '.join(_KEYS)}", advice)
    variants = reader.variants(found.get("methods"))
    orders = reader.numbers("orders", found.get("orders"))
    seeds = reader.numbers("seeds", found.get("seeds"))
    vary = reader.vary(found.get("vary"))
    placing = reader.placing(found)
    reader.finish()
    check_choice(found.get("choose_on"), bool(vary), f"{path}: {SECTION}.choose_on")
    return Section(variants, orders, seeds, vary, placing)


class _Reader:
    """Reads the parts of the section and gathers what is wrong with them."""

    def __init__(self, document: Document, path: Path | None) -> None:
        self.document, self.path = document, path
        self.problems: list[tuple[int, Problem]] = []

    def line(self, key: Key) -> int:
        """The line of a key, or of the nearest key around it."""
        lines = self.document.lines
        return next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), 1)

    def place(self, key: Key) -> str:
        return f"{self.path}:{self.line(key)}"

    def refuse(self, key: Key, found: str, expected: str, advice: str = "") -> None:
        self.problems.append((self.line(key), Problem(key, found, expected, advice)))

    def finish(self) -> None:
        """Raise an error if anything was wrong."""
        if self.problems:
            ordered = sorted(self.problems, key=lambda each: each[0])
            raise ConfigError("\n".join(each.render(f"{self.path}:{line}") for line, each in ordered))

    def numbers(self, name: str, found: Any) -> tuple[int, ...]:
        """A list of whole numbers, each once."""
        if found is None:
            return ()
        key = (SECTION, name)
        if not isinstance(found, list) or not found or any(type(each) is not int for each in found):
            self.refuse(key, show_value(found), "a list of whole numbers, such as [1, 2]")
        elif len(set(found)) < len(found):
            self.refuse(key, show_value(found), "each number once", "Remove one.")
        else:
            return tuple(found)
        return ()

    def placing(self, section: Mapping[str, Any]) -> Placing:
        """Where cells run, how many at once, and what their jobs ask for."""
        given = {name: section[name] for name in ("on", "jobs", "job") if section.get(name) is not None}
        for name, value in given.items():
            if wrong := placing_fault(name, value):
                self.refuse((SECTION, name), show_value(value), wrong)
                return Placing()
        return Placing(**given)

    def vary(self, found: Any) -> dict[str, tuple[Any, ...]]:
        """Lists of values by dotted key."""
        key = (SECTION, "vary")
        if found is not None and not isinstance(found, dict):
            self.refuse(key, show_value(found), "keys of the configuration, each with a list of values")
            return {}
        for name, values in (found or {}).items():
            if wrong := fault(name, values):
                self.refuse((*key, name), *wrong)
        return {name: tuple(values) for name, values in (found or {}).items() if isinstance(values, list)}

    def variants(self, found: Any) -> tuple[Variant, ...]:
        """The list of methods."""
        key = (SECTION, "methods")
        if found is None:
            return ()
        if not isinstance(found, list) or not found:
            self.refuse(key, show_value(found), "a list of methods, such as [replay, kiflora]")
            return ()
        variants: list[Variant] = []
        for place, entry in enumerate(found):
            variant = self.variant((*key, str(place)), entry)
            if variant is None:
                continue
            if name_key(variant.label) in {name_key(other.label) for other in variants}:
                advice = "Give one of the two another label."
                self.refuse((*key, str(place)), f"the row {variant.label!r} twice", "each label once", advice)
            variants.append(variant)
        return tuple(variants)

    def variant(self, key: Key, entry: Any) -> Variant | None:
        """One variant: a method's name, or a mapping with its name and settings."""
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            self.refuse(key, show_value(entry), "the name of a method, or a mapping that has it as 'name'")
            return None
        label, changes = entry.get("label", entry["name"]), entry.get("set", {})
        # the place of an own class may stand as a label too: it is the label of a row without one
        if label != entry["name"] and (fault := _label_fault(label)):
            self.refuse((*key, "label"), show_value(label), fault)
            return None
        if not isinstance(changes, dict) or any(_cannot_vary(name) for name in changes):
            expected = "keys of the configuration such as training.learning_rate, with their values"
            self.refuse((*key, "set"), show_value(changes), expected)
            return None
        settings = {name: value for name, value in entry.items() if name not in _VARIANT_KEYS}
        places = {f"method.{name}": self.place((*key, name)) for name in ("name", *settings)}
        places |= {name: self.place((*key, "set", name)) for name in changes}
        return Variant(label, entry["name"], settings, changes, places)


def _cannot_vary(key: str) -> bool:
    """Whether a key is a whole section, or one that a variant may not set."""
    return "." not in key or key.startswith("method.") or key in ("data.order", "training.seed")


def _label_fault(label: Any) -> str | None:
    """Say what a label must be, if this one is not valid."""
    if name_fault(label) or any(sign in label for sign in ",\n"):
        return "a plain name without commas, since it is the name of a folder"
    if name_key(label) in _RESERVED:
        return f"another name, since a comparison's folder already holds {label}"
    return None
