"""Finds the positions of a batch that hold real tokens, in the inputs and outputs of single layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kifuse.errors import RunError
from kifuse.tasks.collator import IGNORED

CROSS_ATTENTION = {"EncDecAttention", "encoder_attn", "cross_attn", "crossattention"}
"""Names that model families give a decoder's attention to the encoder."""
OF_THE_ENCODER = {"k", "v", "k_proj", "v_proj", "key", "value"}
"""Layers of that attention whose inputs are the encoder's outputs."""


class RealTokens:
    """Which positions of a batch hold text of a row that has a target.

    Args:
        inputs: Arguments of the model, with `labels`, and `attention_mask` where there is padding.

    Raises:
        RunError: The mask does not have the shape (rows, positions).
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        ids = next((inputs[key] for key in ("input_ids", "inputs_embeds") if key in inputs), None)
        mask, labels = inputs.get("attention_mask"), inputs.get("labels")
        if ids is None or (mask is not None and mask.ndim != 2):
            found = [f"{key} {tuple(v.shape)}" for key, v in inputs.items() if isinstance(v, Tensor)]
            raise RunError(
                "the method reads inputs of layers without padding, and needs an attention_mask of shape "
                "(rows, positions) with input_ids or inputs_embeds, but the batches have "
                f"{', '.join(found)}."
            )
        text = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device) if mask is None else mask.bool()
        self.rows = torch.ones_like(text[:, 0])
        if labels is not None and labels.ndim > 1:
            # a row without a target only fills up a process that has fewer rows than another one
            self.rows = (labels != IGNORED).any(-1)
        self._masks: dict[str, Tensor] = {"text": text & self.rows[:, None]}
        target = inputs.get("decoder_attention_mask")
        if target is None and labels is not None:
            target = labels != IGNORED
        if target is not None:
            self._masks["target"] = target.bool() & self.rows[:, None] if target.ndim > 1 else target
        self._places: dict[Any, Tensor] = {}

    def of(self, values: Tensor, shape: torch.Size, side: str, name: str) -> Tensor:
        """Pick the real tokens of a layer's inputs or outputs, `(tokens, size)`.

        Args:
            values: The inputs or outputs.
            shape: Shape of the outputs.
            side: The positions that the layer sees; see `side_of`.
            name: Name of the layer.

        Raises:
            RunError: The output's positions are not those of the batch.
        """
        key = (side, shape[:-1])
        if key not in self._places:
            self._places[key] = self._mask(shape, side, name).flatten().nonzero()[:, 0]
        places = self._places[key]
        return values.detach().reshape(-1, values.shape[-1]).index_select(0, places)

    def _mask(self, shape: torch.Size, side: str, name: str) -> Tensor:
        """The mask of a layer's output, without its last dimension."""
        lead, mask = shape[:-1], self._masks.get(side)
        if mask is not None:
            if lead == mask.shape:
                return mask
            if lead == (mask.numel(),):
                return mask.flatten()
            if side == "text" and len(lead) == 2 and lead[0] == len(mask) and lead[1] < mask.shape[1]:
                # a head that computes the logits of the last positions only
                return mask[:, -lead[1] :]
        if lead == self.rows.shape:
            return self.rows  # a head on one vector of each row
        expected = "no mask" if mask is None else f"those of a mask {tuple(mask.shape)}"
        raise RunError(
            f"{name}: the output has shape {tuple(shape)}, whose positions are not {expected}, so padding "
            "cannot be told from text. Leave this layer frozen."
        )


def side_of(name: str) -> str:
    """Tell which positions a layer of an encoder-decoder model sees: those of the `text` or the `target`."""
    parts = name.split(".")
    if "encoder" in parts:
        return "text"
    return "text" if CROSS_ATTENTION & set(parts) and OF_THE_ENCODER & set(parts) else "target"
