"""Names of trainable parameters: in a model, in an adapter's file, and for a reader."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_ADAPTER = re.compile(r"(?<=\.)(lora_[A-Za-z_]+|ia3_l|osf_svd_params)\.(?!weight$)[^.]+")
_MAGNITUDE = re.compile(r"(\.lora_magnitude_vector)\.weight$")
_SAVED = re.compile(r"\.modules_to_save\.[^.]+")
_WRAPPER = "base_model.model."


def file_name(name: str) -> str:
    """Return the name of a PEFT model's parameter in the adapter's file.

    PEFT leaves out the adapter's own name there: `q_proj.lora_A.default.weight` becomes
    `q_proj.lora_A.weight`. A name that already comes from a file, or belongs to no adapter, stays as it is.
    """
    return _SAVED.sub("", _MAGNITUDE.sub(r"\1", _ADAPTER.sub(r"\1", name)))


def for_state(model: Any) -> list[tuple[str, Any]]:
    """Return a model's parameters by names in which its adapter is called `default`.

    A script may give the adapter a different name in another month; with these names, everything stored by
    parameter name is found again. If two adapters are trained at once, their names stay as they are.

    Args:
        model: A PEFT model, or a model on which transformers has put adapters.

    Returns:
        `(name, parameter)` pairs, as from `model.named_parameters()`.
    """
    own, adapters = list(model.named_parameters()), getattr(model, "peft_config", None)
    others = set(adapters) - {"default"} if isinstance(adapters, Mapping) else set()
    renamed = [(_as_default(name, others), p) for name, p in own]
    trained = [name for name, p in renamed if p.requires_grad]
    return renamed if len(set(trained)) == len(trained) else own


def _as_default(name: str, adapters: Iterable[str]) -> str:
    """Replace the last part of a name that is an adapter's name by `default`."""
    parts = name.split(".")
    place = max((place for place, part in enumerate(parts) if part in adapters), default=None)
    return name if place is None else ".".join([*parts[:place], "default", *parts[place + 1 :]])


def short_name(name: str) -> str:
    """A parameter's name for a reader, without PEFT's wrapper, the adapter's name and the final `weight`."""
    return file_name(name).removeprefix(_WRAPPER).removesuffix(".weight")
