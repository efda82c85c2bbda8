"""LoRA adapters through PEFT: where to put them, and how to make, save and load them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
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

GPT-2 has query, key and value in one matrix.
"""

USUAL = ("q_proj", "v_proj")
"""Query and value projections of LLaMA, Mistral, Qwen, Gemma, SmolLM and most others."""


def adaptable_modules(model: nn.Module) -> Counter[str]:
    """Last name parts of the model's linear layers, with how often each occurs."""
    from transformers.pytorch_utils import Conv1D

    return Counter(
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and "lm_head" not in name
    )


def target_modules(model: nn.Module, chosen: list[str] | None) -> list[str]:
    """The modules to adapt: the user's choice, or the papers' query and value projections.

    Raises:
        ModelError: A chosen name matches no linear layer, or the family's projections are unknown.
    """
    present = adaptable_modules(model)
    family = getattr(getattr(model, "config", None), "model_type", "?")
    if chosen:
        full_names = {name for name, _ in model.named_modules()}
        for name in chosen:
            if not any(n == name or n.endswith(f".{name}") for n in full_names):
                raise ModelError(
                    f"model.adapter.target_modules: {name!r} matches no module of this {family} model; "
                    f"its linear layers are called {', '.join(sorted(present))}.{did_you_mean(name, present)}"
                )
        return list(chosen)
    names = QUERY_VALUE.get(family, USUAL)
    if all(name in present for name in names):
        return list(names)
    raise ModelError(
        f"model.adapter.target_modules: the query and value projections of a {family!r} model are not known; "
        f"name them, out of its linear layers {', '.join(sorted(present))}."
    )


def add_adapter(model: nn.Module, adapter: Any, *, encoder_decoder: bool, seed: int) -> Any:
    """Wrap a model with one trainable LoRA adapter (Eq. 2 of KIF); everything else is frozen.

    Args:
        model: A transformers model.
        adapter: Configuration with `rank`, `alpha`, `dropout`, `target_modules`.
        encoder_decoder: Kind of model, for PEFT's task type.
        seed: Of A's random start.

    Raises:
        ModelError: See `target_modules`.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=target_modules(model, adapter.target_modules),
        fan_in_fan_out=getattr(model.config, "model_type", "") == "gpt2",
        task_type=TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM,
    )
    torch.manual_seed(seed)
    return get_peft_model(model, config)  # type: ignore[arg-type]


def save_adapter(model: Any, folder: Path) -> None:
    """Write a standard PEFT adapter folder; it appears under its name only when complete.

    Args:
        model: The PEFT model.
        folder: Where; replaced if it is there.
    """
    import os
    import shutil

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), safe_serialization=True)
    for path in partial.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Put the weights of a saved adapter into the model's current one.

    Raises:
        ModelError: The folder holds no adapter, or one of another shape.
    """
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(f"{folder}: no adapter there (adapter_model.safetensors is missing).")
    try:
        result = set_peft_model_state_dict(model, load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"{file}: cannot be loaded as the adapter of this model: {error}") from error
    if result.unexpected_keys:
        raise ModelError(
            f"{file}: made for another model; it holds {result.unexpected_keys[0]!r}, not known here."
        )
