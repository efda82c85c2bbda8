"""Turns encoded examples into padded batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from kifuse.tasks.encoding import Encoded

IGNORED = -100


class Collator:
    """Pad encoded examples into one training batch.

    Args:
        pad_id: Token that fills the padding; masked everywhere, so its value never counts.
        encoder_decoder: Whether the model has an encoder; otherwise it is decoder-only.
        accepts: Names of the arguments that the model's forward pass takes; they decide about
            ``position_ids`` and ``logits_to_keep``.
    """

    def __init__(self, pad_id: int, encoder_decoder: bool, accepts: Collection[str] = ()) -> None:
        self.pad_id = pad_id
        self.encoder_decoder = encoder_decoder
        self.accepts = frozenset(accepts)

    def __call__(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        """Build the arguments of one forward pass.

        Args:
            batch: At least one encoded example.

        Returns:
            Decoder-only: left padded ``input_ids`` and ``attention_mask`` (rows, width) of prompt and target;
            ``labels``, which are -100 outside the target; ``position_ids`` and ``prompt_mask`` if they are
            accepted (an adapter takes the latter, see `kifuse.adapters.base.Adapter.reads`); if accepted also
            ``logits_to_keep`` = longest target + 1, with ``labels`` cut to that many last columns.
            Encoder-decoder: right padded ``input_ids``, ``attention_mask`` and ``labels``.
        """
        return self._two_sided(batch) if self.encoder_decoder else self._causal(batch)

    def _two_sided(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        inputs = [item.input_ids for item in batch]
        return {
            "input_ids": _pad(inputs, self.pad_id, left=False),
            "attention_mask": _pad([[1] * len(row) for row in inputs], 0, left=False),
            "labels": _pad([item.target_ids for item in batch], IGNORED, left=False),
        }

    def _causal(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        rows = [item.input_ids + item.target_ids for item in batch]
        mask = _pad([[1] * len(row) for row in rows], 0, left=True)
        labels = _pad(
            [[IGNORED] * len(item.input_ids) + item.target_ids for item in batch], IGNORED, left=True
        )
        arguments: dict[str, Any] = {
            "input_ids": _pad(rows, self.pad_id, left=True),
            "attention_mask": mask,
        }
        if "prompt_mask" in self.accepts:
            asked = [[1] * len(item.input_ids) + [0] * len(item.target_ids) for item in batch]
            arguments["prompt_mask"] = _pad(asked, 0, left=True)
        if "position_ids" in self.accepts:
            arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "logits_to_keep" in self.accepts:
            # One column more than the longest target: its logits predict the first token of the target.
            keep = max(len(item.target_ids) for item in batch) + 1
            arguments["logits_to_keep"] = keep
            labels = labels[:, -keep:].contiguous()
        arguments["labels"] = labels
        return arguments


def _pad(rows: Sequence[list[int]], value: int, *, left: bool) -> Tensor:
    width = max(map(len, rows))
    filled = [
        [value] * (width - len(row)) + row if left else row + [value] * (width - len(row)) for row in rows
    ]
    return torch.tensor(filled, dtype=torch.long)
