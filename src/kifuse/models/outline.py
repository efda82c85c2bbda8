"""The shapes that a model would train, and their division into skill units; without any weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from kifuse.adapters.kinds import add_empty_adapter
from kifuse.knowledge.skill_units import Level, SkillUnits
from kifuse.models.loading import empty_model
from kifuse.models.names import short_name

Shape = tuple[int, ...]

_LAYER = re.compile(r"^(?P<stack>(?:.*?\.)?(?:layers|layer|blocks|block|h))\.(?P<index>\d+)\.(?P<rest>.+)$")


@dataclass(frozen=True)
class Outline:
    """The tensors that a model would train.

    Attributes:
        family: The model's type, e.g. `llama`.
        parameters: Number of scalars in the model itself, tied ones counted once.
        tensors: The trainable tensors' names and shapes, in the model's order.
    """

    family: str
    parameters: int
    tensors: tuple[tuple[str, Shape], ...]

    @property
    def trainable(self) -> int:
        """Number of scalars that would be trained."""
        return sum(prod(shape) for _, shape in self.tensors)


@dataclass(frozen=True)
class UnitRow:
    """Skill units that look the same in a range of layers.

    Attributes:
        stack: Path of the layers, e.g. `encoder.block`; empty for units outside of any layer.
        layers: Numbers of the layers; empty for units outside of any layer.
        tensors: The tensors of which each unit contains a part, with their shapes.
        units: Number of units in each of the layers.
        size: Number of scalars in each unit.
    """

    stack: str
    layers: tuple[int, ...]
    tensors: tuple[tuple[str, Shape], ...]
    units: int
    size: int

    @property
    def total(self) -> int:
        """Number of units in all the layers together."""
        return self.units * max(1, len(self.layers))


@dataclass(frozen=True)
class LevelSizes:
    """The number of units at a level, and the scalars in the smallest, median and largest of them."""

    level: Level
    count: int
    smallest: int
    median: int
    largest: int


def outline(name: str, adapter: Any, *, trust_remote_code: bool = False) -> Outline:
    """Find the tensors that a model would train, only from its `config.json`.

    Args:
        name: As in `load_backbone`; a folder needs only a `config.json`.
        adapter: As in `add_adapter`.
        trust_remote_code: Run model code from the hub; only when the user asks.

    Raises:
        ModelError: There is no such model, or the adapter cannot be put on it.
    """
    model, encoder_decoder = empty_model(name, trust_remote_code=trust_remote_code)
    parameters = sum(p.numel() for p in model.parameters())
    family = model.config.model_type
    adapted = add_empty_adapter(model, adapter, encoder_decoder=encoder_decoder)
    return Outline(
        family,
        parameters,
        tuple((n, tuple(p.shape)) for n, p in adapted.named_parameters() if p.requires_grad),
    )


def unit_rows(tensors: Sequence[tuple[str, Shape]], level: Level) -> list[UnitRow]:
    """Describe a division into skill units; layers of equal structure are combined.

    Args:
        tensors: Names and shapes of the trainable tensors, in the model's order.
        level: See `SkillUnits.build`.

    Returns:
        Rows in the model's order; their totals add up to the number of units.
    """
    layers: dict[tuple[str, tuple[tuple[str, Shape], ...], int, int], list[int]] = {}
    for members, units, size in _families(tensors, level):
        places = [_LAYER.match(short_name(name)) for name, _ in members]
        place = places[0]
        if place is None:
            named = tuple((short_name(name), shape) for name, shape in members)
            layers[("", named, units, size)] = []
            continue
        named = tuple(
            (found["rest"] if found else short_name(name), shape)
            for found, (name, shape) in zip(places, members, strict=True)
        )
        layers.setdefault((place["stack"], named, units, size), []).append(int(place["index"]))
    return [
        UnitRow(stack, tuple(numbers), named, units, size)
        for (stack, named, units, size), numbers in layers.items()
    ]


def _families(
    tensors: Sequence[tuple[str, Shape]], level: Level
) -> list[tuple[list[tuple[str, Shape]], int, int]]:
    """Group tensors that share their units, with the number of these units and of scalars in each."""
    if level == "element":  # a list of all units would be as large as the model
        return [([(name, shape)], prod(shape), 1) for name, shape in tensors]
    partition = SkillUnits.build([name for name, _ in tensors], [shape for _, shape in tensors], level)
    numbers = partition.expand(torch.arange(partition.count))
    families: dict[int, list[tuple[str, Shape]]] = {}
    counts: dict[int, int] = {}
    for member, units in zip(tensors, numbers, strict=True):
        first = int(units.flatten()[0])
        families.setdefault(first, []).append(member)
        counts[first] = units.numel()
    return [
        (members, counts[first], sum(prod(shape) for _, shape in members) // counts[first])
        for first, members in families.items()
    ]


def level_sizes(tensors: Sequence[tuple[str, Shape]], level: Level) -> LevelSizes:
    """Count the units of a level and measure their sizes."""
    families = sorted((size, units) for _, units, size in _families(tensors, level))
    count = sum(units for _, units in families)
    passed = 0
    median = families[-1][0]
    for size, units in families:
        passed += units
        if passed * 2 >= count:
            median = size
            break
    return LevelSizes(level, count, families[0][0], median, families[-1][0])
