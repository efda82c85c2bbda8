"""Rows of different lengths as one padded batch, and the model's logits for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = [[5, 9, 13, 7, 30], [44, 6], [21, 22, 23]]
SAID = torch.tensor([[1, 2]])
"""The tokens that an encoder-decoder model has written so far."""


def padded(rows: list[list[int]], *, left: bool, to: int = 0) -> dict[str, Tensor]:
    """Make a batch of rows with its mask, at least `to` wide; decoder-only models are padded on the left."""
    width = max(to, *map(len, rows))

    def fill(row: list[int]) -> list[int]:
        rest = [0] * (width - len(row))
        return rest + row if left else row + rest

    return {
        "input_ids": torch.tensor([fill(row) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row)) for row in rows]),
    }


def logits(model: Any, family: str, rows: list[list[int]] = ROWS, width: int = 0) -> list[Tensor]:
    """Return for each row the logits at its own tokens."""
    given: dict[str, Any] = padded(rows, left=family == "llama", to=width)
    if family == "t5":
        given["decoder_input_ids"] = SAID.expand(len(rows), -1)
    else:
        given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(**given).logits
    return [each if family == "t5" else each[-len(row) :] for row, each in zip(rows, found, strict=True)]
