"""Where adapters go: the layers that the papers adapt, by their names in each model family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from kifuse.errors import ModelError, did_you_mean

QUERY_VALUE: dict[str, tuple[str, ...]] = {
    "t5": ("q", "v"),
    "mt5": ("q", "v"),
    "umt5": ("q", "v"),
    "longt5": ("q", "v"),
    "gpt2": ("c_attn",),
}
"""Query and value projections of model families that do not call them `q_proj` and `v_proj`.

GPT-2 has query, key and value in one matrix, `c_attn`.
"""

USUAL = ("q_proj", "v_proj")
"""Query and value projections of LLaMA, Mistral, Qwen, Gemma, SmolLM and most others."""

IA3_PLACES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), ("k", "v", "wo")),
    "gpt2": ("c_attn", "mlp.c_proj"),
}
"""Where (IA)3 scales by default: the keys, the values, and the input of the second feed-forward matrix."""

USUAL_IA3 = ("k_proj", "v_proj", "down_proj")


def adaptable_modules(model: nn.Module) -> Counter[str]:
    """Count the model's linear layers by the last part of their names."""
    from transformers.pytorch_utils import Conv1D

    return Counter(
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and "lm_head" not in name
    )


def target_modules(model: nn.Module, chosen: Sequence[str] | None, kind: str = "lora") -> list[str]:
    """Return the modules to adapt: the user's choice, or the default of the kind for this model family.

    Args:
        model: A transformers model.
        chosen: Names of modules, whole names or their ends; None for the query and value projections that the
            papers adapt, or for the places that (IA)3 scales.
        kind: The kind of adapter.

    Raises:
        ModelError: A chosen name matches no module, or the projections of this family are not known.
    """
    present = adaptable_modules(model)
    family = getattr(getattr(model, "config", None), "model_type", "?")
    full_names = [name for name, _ in model.named_modules()]

    def there(name: str) -> bool:
        return any(n == name or n.endswith(f".{name}") for n in full_names)

    if chosen:
        for name in chosen:
            if not there(name):
                raise ModelError(
                    f"model.adapter.target_modules: {name!r} matches no module of this {family} model. Its "
                    f"linear layers are called {', '.join(sorted(present))}.{did_you_mean(name, present)}"
                )
        return list(chosen)
    known, usual = (IA3_PLACES, USUAL_IA3) if kind == "ia3" else (QUERY_VALUE, USUAL)
    names = known.get(family, usual)
    if all(there(name) and name.rpartition(".")[2] in present for name in names):
        return list(names)
    what = "places of (IA)3 in" if kind == "ia3" else "query and value projections of"
    raise ModelError(
        f"model.adapter.target_modules: the {what} a {family!r} model are not known. Choose some of its "
        f"linear layers: {', '.join(sorted(present))}."
    )


def linear_layers(model: nn.Module, names: Sequence[str]) -> Iterator[Any]:
    """Yield the linear layers with the given names, for an adapter that is put beside them.

    Args:
        model: A transformers model.
        names: From `target_modules`.

    Raises:
        ModelError: A module with such a name is not one of torch's linear layers.
    """
    for name, module in model.named_modules():
        if any(name == each or name.endswith(f".{each}") for each in names):
            if not isinstance(module, nn.Linear):
                raise ModelError(
                    f"model.adapter.target_modules: {name} is a {type(module).__name__}, expected a linear "
                    "layer. Leave it out."
                )
            yield module


KEY_VALUE = (("k_proj", "v_proj"), ("k", "v"))
"""Names of the projections to keys and values in attention layers: most families, then T5."""


def keys_and_values(reader: nn.Module) -> list[tuple[Any, Any]]:
    """The projections to keys and values of each self-attention layer, in the order of the layers.

    Args:
        reader: An encoder, or a decoder-only model.

    Raises:
        ModelError: No such projections are found, or their widths differ.
    """
    found = [
        (getattr(module, key), getattr(module, value))
        for module in reader.modules()
        for key, value in KEY_VALUE
        if isinstance(getattr(module, key, None), nn.Linear)
        and isinstance(getattr(module, value, None), nn.Linear)
    ]
    widths = sorted({each.out_features for pair in found for each in pair})
    if len(widths) != 1:
        family = getattr(getattr(reader, "config", None), "model_type", "?")
        what = f"have the widths {', '.join(map(str, widths))}" if widths else "are not found"
        raise ModelError(
            f"the keys and values of this {family!r} model {what}, but a prefix of a task needs linear "
            f"layers of one width for them ({', '.join('/'.join(pair) for pair in KEY_VALUE)}). Use "
            "'progprompt' or 'l2p', which put vectors before the input."
        )
    return found
