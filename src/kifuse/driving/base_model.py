"""Recognises the base model that an adapter is trained on, by a hash of its frozen weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.errors import RunError
from kifuse.models.pieces import in_pieces

LOOKED_AT = 256
"""How many numbers of each tensor go into the hash."""


@torch.no_grad()
def base_of(model: nn.Module) -> dict[str, str] | None:
    """Hash a model's frozen weights; in float32 and bfloat16 the same model has the same hash.

    Args:
        model: A model. The weights of its adapters are left out.

    Returns:
        `hash`, and the `kind` of numbers, because a quantised model has other numbers; None if nothing is
        frozen, or if weights are in pieces or not in memory.
    """
    adapters = getattr(model, "peft_config", None) or {}
    prefix = getattr(getattr(model, "base_model", None), "prefix", None) if adapters else None
    of_adapters = set(adapters) if isinstance(adapters, Mapping) else set()
    frozen = [
        p
        for name, p in model.named_parameters()
        if not (p.requires_grad or (prefix and prefix in name) or of_adapters & set(name.split(".")))
    ]
    if not frozen or any(p.is_meta or in_pieces(p) for p in frozen):
        return None
    digest = hashlib.sha256()
    for p in frozen:
        if p.is_floating_point():
            digest.update(f"{tuple(p.shape)}\n".encode())
            digest.update(_some(p).view(torch.uint8).numpy().data)
    wide = {torch.float32, torch.bfloat16}
    kinds = {"float" if p.dtype in wide else str(p.dtype).removeprefix("torch.") for p in frozen}
    return {"kind": " ".join(sorted(kinds)), "hash": digest.hexdigest()}


def _some(p: Tensor) -> Tensor:
    """Take numbers from all over a tensor, as bfloat16: a model loaded in bfloat16 has the same ones."""
    flat = p.detach().flatten()
    return flat[:: max(1, flat.numel() // LOOKED_AT)][:LOOKED_AT].to(torch.bfloat16).cpu().contiguous()


def refuse_other_base(now: Mapping[str, str] | None, before: Mapping[str, str] | None, where: Any) -> None:
    """Refuse another base model than that of the earlier tasks.

    Args:
        now: What `base_of` gives for the model now.
        before: What `base_of` gave for the earlier tasks.
        where: Folder of states, for the message, or None.

    Raises:
        RunError: It is another base model. There is no error if one of the two is not known, or if only one
            of them is quantised.
    """
    if now and before and now["kind"] == before["kind"] and now["hash"] != before["hash"]:
        place = "" if where is None else f"{where}: "
        raise RunError(
            f"{place}this is not the base model of the earlier tasks: its frozen weights differ, and what "
            "was learned fits only the earlier ones. Load the base model of the earlier tasks, or name a "
            "new state_dir."
        )
