"""Skill units: the groups of trainable parameters for which importance and fusion are computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

Level = Literal["matrix", "rank", "element", "module", "layer"]

FINER_THAN: dict[str, tuple[Level, ...]] = {
    "global": ("element", "rank", "matrix", "module", "layer"),
    "module": ("element", "rank", "matrix"),
    "layer": ("element", "rank", "matrix", "module"),
}
"""For each scope, the levels at which it can hold several units, so that a threshold among them makes
sense."""

_LORA = re.compile(r"\.?\blora_(?P<kind>embedding_)?(?P<side>[AB])\b(?P<rest>.*)$")
_LAYER = re.compile(r"(?:^|.*?\.)(?:layers|layer|blocks|block|h)\.\d+(?=\.|$)")
_LORA_EXTRA = re.compile(r"\.lora_[^.]+.*$")  # such as the magnitude vector of DoRA
_WRAPPER = "base_model.model."


@dataclass(frozen=True)
class _Slot:
    """Position of one parameter's scores: its first unit, and the dimension that counts the ranks."""

    unit: int
    rank_dim: int | None = None


class SkillUnits:
    """A partition of named trainable parameters into skill units.

    Build one with `SkillUnits.build`. Units are numbered in the order in which the parameters first touch
    them. All later computations see a vector with one value per unit.
    """

    def __init__(
        self,
        level: Level,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        slots: Sequence[_Slot],
        roots: Sequence[tuple[str, int]],
    ) -> None:
        self.level: Level = level
        self.names = tuple(names)
        self.shapes = tuple(tuple(shape) for shape in shapes)
        self._slots = tuple(slots)
        self._roots = tuple(roots)  # (label, how many units carry it)
        self.count = sum(units for _, units in roots)

    @classmethod
    def build(cls, names: Sequence[str], shapes: Sequence[tuple[int, ...]], level: Level) -> SkillUnits:
        """Partition parameters into skill units.

        Args:
            names: Unique parameter names, as ``model.named_parameters()`` gives them.
            shapes: Their shapes, in the same order.
            level: ``matrix``: one unit per tensor. ``rank``: row i of a LoRA A with column i of its B
                (KIF Eq. 3-4); a tensor outside any A-B pair is a unit of its own. ``element``: one unit
                per scalar. ``module``: all tensors of one linear layer. ``layer``: all tensors of one
                transformer layer (encoder and decoder apart); a tensor outside the layers is a unit of
                its own.

        Returns:
            The partition.

        Raises:
            ValueError: If names repeat, the lengths differ, the level is unknown, there is nothing to
                partition, or the A and B of a pair disagree about the rank.
        """
        if level not in get_args(Level):
            raise ValueError(f"level: found {level!r}, expected one of {', '.join(get_args(Level))}.")
        if len(names) != len(shapes) or len(set(names)) != len(names) or not names:
            raise ValueError(
                f"Found {len(names)} names ({len(set(names))} different) and {len(shapes)} shapes; "
                "expected one shape for each of at least one unique name."
            )
        pairs = _lora_pairs(names, shapes) if level == "rank" else {}
        first: dict[tuple[bool, str], int] = {}
        slots: list[_Slot] = []
        roots: list[tuple[str, int]] = []
        count = 0
        for name, shape in zip(names, shapes, strict=True):
            rank_dim = _rank_dim(name) if name in pairs else None
            owner = pairs[name] if name in pairs else _owner(name, level)
            key = (name in pairs, owner)
            if key not in first:
                first[key] = count
                units = prod(shape) if level == "element" else 1
                if rank_dim is not None:
                    units = shape[rank_dim]
                roots.append((_readable(owner), units))
                count += units
            slots.append(_Slot(first[key], rank_dim))
        return cls(level, names, shapes, slots, roots)

    @cached_property
    def labels(self) -> list[str]:
        """Readable name of each unit, such as ``layers.0.self_attn.q_proj[3]`` for a rank."""
        labels: list[str] = []
        indexed = self.level in ("rank", "element")
        ranked = {slot.unit for slot in self._slots if slot.rank_dim is not None}
        for root, units in self._roots:
            if indexed and (self.level == "element" or len(labels) in ranked):
                labels.extend(f"{root}[{index}]" for index in range(units))
            else:
                labels.append(root)
        return labels

    @cached_property
    def blocks(self) -> dict[str, slice]:
        """For each parameter that is the first to touch some units: the position of these units, in order."""
        blocks: dict[str, slice] = {}
        roots, end = iter(self._roots), 0
        for name, slot in zip(self.names, self._slots, strict=True):
            if slot.unit == end:
                end += next(roots)[1]
                blocks[name] = slice(slot.unit, end)
        return blocks

    @cached_property
    def sizes(self) -> Tensor:
        """Number of scalars in each unit, int64 ``(count,)``."""
        sizes = torch.zeros(self.count, dtype=torch.int64)
        for slot, shape in zip(self._slots, self.shapes, strict=True):
            if slot.rank_dim is not None:
                rank = shape[slot.rank_dim]
                sizes[slot.unit : slot.unit + rank] += prod(shape) // rank
            elif self.level == "element":
                sizes[slot.unit : slot.unit + prod(shape)] = 1
            else:
                sizes[slot.unit] += prod(shape)
        return sizes

    @torch.no_grad()
    def reduce(self, scores: Sequence[Tensor], how: Literal["mean", "outer"] = "mean") -> Tensor:
        """Turn scores of scalars into the importance of units (KIF Eq. 6).

        Args:
            scores: One tensor per parameter, in the shapes and order the partition was built with.
            how: ``mean`` over all scalars of the unit. ``outer``, for LoRA pairs at rank level: the mean
                of the outer product of the scores of B's column and A's row, computed as
                ``mean(B column) * mean(A row)``; every other unit takes its mean.

        Returns:
            float32 ``(count,)`` on the first score's device.

        Raises:
            ValueError: If the scores do not fit the partition or ``how`` is unknown.
        """
        self._check(scores)
        if how not in ("mean", "outer"):
            raise ValueError(f"how: found {how!r}, expected 'mean' or 'outer'.")
        device = scores[0].device
        if self.level == "element":
            return torch.cat([score.reshape(-1).to(device, torch.float32) for score in scores])
        outer = how == "outer"
        members: dict[int, list[Tensor]] = {}
        for slot, score in zip(self._slots, scores, strict=True):
            rows = (
                score.reshape(1, -1) if slot.rank_dim is None else score.movedim(slot.rank_dim, 0).flatten(1)
            )
            total = rows.sum(1, dtype=torch.float32)
            if outer and slot.rank_dim is not None:
                total = total / rows.shape[1]
            members.setdefault(slot.unit, []).append(total.to(device))
        sizes = self.sizes.to(device, torch.float32)
        paired = {slot.unit for slot in self._slots if slot.rank_dim is not None}
        values: list[Tensor] = []
        for unit, totals in members.items():
            stacked = torch.stack(totals)
            if outer and unit in paired:
                values.append(stacked.prod(0))
            else:
                values.append(stacked.sum(0) / sizes[unit : unit + stacked.shape[1]])
        return torch.cat(values)

    def expand(self, values: Tensor) -> list[Tensor]:
        """Spread one value per unit over the parameters.

        Args:
            values: ``(count,)``.

        Returns:
            One tensor per parameter that broadcasts to its shape: 0-dim where the whole parameter lies
            in one unit, ``(r, 1)`` for a LoRA A and ``(1, r)`` for a B at rank level, and the full shape
            at element level. They are views of ``values``.

        Raises:
            ValueError: If ``values`` is not of shape ``(count,)``.
        """
        if tuple(values.shape) != (self.count,):
            raise ValueError(f"Found values of shape {tuple(values.shape)}, expected ({self.count},).")
        expanded: list[Tensor] = []
        for slot, shape in zip(self._slots, self.shapes, strict=True):
            if self.level == "element":
                expanded.append(values[slot.unit : slot.unit + prod(shape)].view(shape))
            elif slot.rank_dim is None:
                expanded.append(values[slot.unit])
            else:
                across = [1] * len(shape)
                across[slot.rank_dim] = rank = shape[slot.rank_dim]
                expanded.append(values[slot.unit : slot.unit + rank].view(across))
        return expanded

    def _check(self, scores: Sequence[Tensor]) -> None:
        """Refuse scores that are not one tensor per parameter of the right shape."""
        if len(scores) != len(self.shapes):
            raise ValueError(f"Found {len(scores)} score tensors, expected {len(self.shapes)}.")
        for name, shape, score in zip(self.names, self.shapes, scores, strict=True):
            if tuple(score.shape) != shape:
                raise ValueError(f"{name}: found scores of shape {tuple(score.shape)}, expected {shape}.")


def _rank_dim(name: str) -> int:
    """Return the dimension of a LoRA tensor that counts the ranks: rows of A, columns of B."""
    match = _LORA.search(name)
    return 0 if match and match["side"] == "A" else 1


def _readable(name: str) -> str:
    """Shorten a parameter name: no wrapper prefix, no default adapter name, no `.weight` at the end."""
    return name.removeprefix(_WRAPPER).removesuffix(".weight").removesuffix(".default")


def _owner(name: str, level: Level) -> str:
    """Name the unit that holds a whole parameter."""
    if level == "module":
        lora = _LORA.search(name) or _LORA_EXTRA.search(name)
        module = name[: lora.start()] if lora else name.rpartition(".")[0]
        return module.removesuffix(".base_layer") or name
    layer = _LAYER.match(name) if level == "layer" else None
    return layer[0] if layer else name


def _lora_pairs(names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> dict[str, str]:
    """Map the name of each LoRA tensor whose partner is trainable too to the label of their pair."""
    sides: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, shape in zip(names, shapes, strict=True):
        match = _LORA.search(name)
        if match and len(shape) >= 2:
            adapter = match["rest"].removeprefix(".").removesuffix("weight").strip(".")
            label = name[: match.start()] or "lora"
            if adapter not in ("", "default"):
                label += f"<{adapter}>"
            sides.setdefault(label, {})[match["side"]] = (name, shape)
    pairs: dict[str, str] = {}
    for label, found in sides.items():
        if len(found) < 2:
            continue
        (name_a, shape_a), (name_b, shape_b) = found["A"], found["B"]
        if shape_a[0] != shape_b[1]:
            raise ValueError(
                f"{name_a} has {shape_a[0]} ranks and {name_b} has {shape_b[1]}; expected the same number."
            )
        pairs[name_a] = pairs[name_b] = label
    return pairs
