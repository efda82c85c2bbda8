"""The adapters that `model.adapter.kind` and methods can name, and the choice of one for a method."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kifuse.adapters.base import Adapter
from kifuse.adapters.full import Full
from kifuse.adapters.lora import SWITCHES, Peft
from kifuse.adapters.osf import Osf
from kifuse.adapters.stack import Stack
from kifuse.errors import ModelError

KINDS: dict[str, type[Adapter]] = {**dict.fromkeys((*SWITCHES, "ia3"), Peft), "full": Full, "osf": Osf}
"""Adapter classes, by the values of `model.adapter.kind`."""

OF_METHODS: dict[str, type[Adapter]] = {"stack": Stack, "osf": Osf}
"""kifuse's own adapter classes, by the names that methods use."""


def adapter_class(settings: Any, method: Any = None) -> type[Adapter]:
    """Return the class of adapter that a method trains.

    Args:
        settings: The section `model.adapter`; without a `kind`, the kind is `lora`.
        method: The method, or its class; with None the kind alone decides.

    Raises:
        ModelError: The kind does not exist, or the method names an adapter that does not exist.
    """
    wanted = getattr(method, "adapter", None)
    if isinstance(wanted, type):
        return wanted
    if wanted is not None:
        if wanted not in OF_METHODS:
            name = method.__name__ if isinstance(method, type) else type(method).__name__
            raise ModelError(
                f"{name}.adapter: found {wanted!r}, expected a class derived from kifuse.Adapter, "
                f"None or one of {', '.join(OF_METHODS)}."
            )
        return OF_METHODS[wanted]
    kind = getattr(settings, "kind", "lora")
    if kind not in KINDS:
        raise ModelError(f"model.adapter.kind: found {kind!r}, expected one of {', '.join(KINDS)}.")
    return KINDS[kind]


def refuse_pairing(settings: Any, method: Any, name: str) -> None:
    """Refuse a kind of adapter and a method that do not go together, before a model is loaded.

    Args:
        settings: The section `model.adapter`.
        method: The method.
        name: The method's name, for the message.

    Raises:
        ModelError: They do not go together.
    """
    found = adapter_class(settings, method)
    found.refuse(settings, name)
    if found is Osf and getattr(method, "adapter", None) is None:
        raise ModelError(
            f"method.name: found {name!r}, expected 'osf' with model.adapter.kind 'osf': its factors are "
            "merged and decomposed again for each task, so another method cannot use the factors of an "
            "earlier task. Use another kind of adapter, or the method 'osf'."
        )


def new_adapter(settings: Any, method: Any = None) -> Adapter:
    """Make the adapter that a method trains, not yet on a model; see `adapter_class`."""
    return adapter_class(settings, method)(settings, method)


def add_adapter(
    model: nn.Module, settings: Any, *, encoder_decoder: bool, seed: int, method: Any = None
) -> Any:
    """Prepare the parameters to train, and freeze everything else.

    Args:
        model: A transformers model.
        settings: The section `model.adapter`, with `rank`, `alpha`, `dropout`, `target_modules`, for `osf`
            also `preserve`, and `kind` (`lora` if it is absent).
        encoder_decoder: Whether the model is an encoder-decoder model.
        seed: Seed of all random draws.
        method: The method that trains the adapter.

    Returns:
        The model to train; `kifuse.adapters.base.adapter_on` finds the adapter on it.

    Raises:
        ModelError: See `adapter_class` and each adapter's `attach`.
    """
    return new_adapter(settings, method).attach(model, encoder_decoder=encoder_decoder, seed=seed)


def add_empty_adapter(model: Any, settings: Any, *, encoder_decoder: bool) -> Any:
    """Do `add_adapter` for a model without weights, on the meta device; the random state stays as it was."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return add_adapter(model, settings, encoder_decoder=encoder_decoder, seed=0)
