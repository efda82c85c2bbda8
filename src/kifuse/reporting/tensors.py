"""Find out from a trainable tensor's name where it is in the model: encoder or decoder, layer, projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from kifuse.reporting.wording import NONE

_PROJECTIONS = {
    "query": ("q", "q_proj", "query", "q_lin", "wq"),
    "key": ("k", "k_proj", "key", "k_lin", "wk"),
    "value": ("v", "v_proj", "value", "v_lin", "wv"),
    "attention output": ("o", "o_proj", "out_proj", "out_lin", "wo_proj"),
    "query, key and value": ("c_attn", "qkv_proj", "query_key_value", "Wqkv"),
}
_NAMES = {name: meaning for meaning, names in _PROJECTIONS.items() for name in names}
_CROSS = {"EncDecAttention", "encoder_attn", "crossattention", "cross_attn", "multihead_attn"}
_STACKS = ("encoder", "decoder")


@dataclass(frozen=True)
class Place:
    """The place of a tensor in the model.

    Attributes:
        stack: `encoder`, `decoder`, or empty for a model with only one stack.
        cross: Whether it belongs to a decoder's attention to its encoder.
        projection: `query`, `value`, or the module's own name.
        layer: Number of the layer from 0; None for a tensor outside of the layers.
    """

    stack: str
    cross: bool
    projection: str
    layer: int | None

    @property
    def group(self) -> str:
        """The name of the panel that shows this tensor."""
        stack = f"{self.stack} cross-attention" if self.cross else self.stack
        return f"{stack}, {self.projection}" if stack else self.projection


@lru_cache(maxsize=8192)
def place(name: str) -> Place:
    """Read a tensor's name.

    Args:
        name: The tensor's name from `named_parameters()`, with or without the parts that PEFT adds.

    Returns:
        Its place. Both matrices of an adapted module have the same place.
    """
    parts = name.split(".")
    low_rank = next((i for i, part in enumerate(parts) if part.startswith(("lora_", "ia3_", "osf_"))), None)
    if low_rank is not None:
        parts = parts[:low_rank]
    elif len(parts) > 1 and parts[-1] in ("weight", "bias"):
        parts = parts[:-1]
    numbered = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return Place(
        stack=next((part for part in parts[:numbered] if part in _STACKS), ""),
        cross=any(part in _CROSS for part in parts),
        projection=_NAMES.get(parts[-1], parts[-1]),
        layer=None if numbered is None else int(parts[numbered]),
    )


def by_layer(names: Sequence[str], values: Sequence[float | None]) -> dict[str, dict[str, float]]:
    """Average the measured values over the tensors of each layer and projection.

    Args:
        names: The names of the tensors.
        values: One number for each tensor; None if there is none.

    Returns:
        By group (encoder before decoder, self- before cross-attention), then by layer: the mean over the
        module's tensors. For LoRA these are its matrices A and B.
    """
    gathered: dict[tuple[int, bool, str], dict[tuple[int, str], list[float]]] = {}
    for name, value in zip(names, values, strict=True):
        found = place(name)
        stack = _STACKS.index(found.stack) if found.stack else 0
        layer = (-1, NONE) if found.layer is None else (found.layer, str(found.layer))
        cells = gathered.setdefault((stack, found.cross, found.group), {})
        if value is not None:
            cells.setdefault(layer, []).append(value)
    ordered = sorted(gathered.items(), key=lambda item: item[0][:2])
    return {
        group: {label: sum(v) / len(v) for (_, label), v in sorted(cells.items())}
        for (_, _, group), cells in ordered
    }
