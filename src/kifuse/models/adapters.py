"""What is trained: adapters through PEFT, or the weights themselves; how they are made, saved and loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.errors import ModelError, did_you_mean
from kifuse.folders import replace_folder
from kifuse.models.adapter_folder import WEIGHTS, is_full, read_config
from kifuse.models.full import load_weights, refuse_other_tensors, save_weights, train_weights
from kifuse.models.osf import (
    first_rank,
    is_osf,
    load_merged,
    mark_fresh,
    own_weights,
    refuse_versions,
    save_merged,
    set_weights,
)

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

IA3_PLACES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), ("k", "v", "wo")),
    "gpt2": ("c_attn", "mlp.c_proj"),
}
"""Where (IA)3 scales by default: keys, values, and what goes into the second feed-forward matrix."""

USUAL_IA3 = ("k_proj", "v_proj", "down_proj")

FEED_FORWARD = {"wo", "down_proj", "mlp.c_proj", "fc2", "w2", "dense_4h_to_h"}
"""Second feed-forward matrices: (IA)3 scales their inputs, of all other layers the outputs."""

LORA_KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}
"""The kinds that are LoRA with a switch of PEFT's."""

KINDS = (*LORA_KINDS, "ia3", "full", "osf")


def add_empty_adapter(model: Any, config: Any, *, encoder_decoder: bool) -> Any:
    """`add_adapter` for a model without weights, on the meta device; leaves the random numbers alone."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return add_adapter(model, config, encoder_decoder=encoder_decoder, seed=0)


def adaptable_modules(model: nn.Module) -> Counter[str]:
    """Last name parts of the model's linear layers, with how often each occurs."""
    from transformers.pytorch_utils import Conv1D

    return Counter(
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and "lm_head" not in name
    )


def target_modules(model: nn.Module, chosen: Sequence[str] | None, kind: str = "lora") -> list[str]:
    """The modules to adapt: the user's choice, or the default of the kind for the family.

    Args:
        model: A transformers model.
        chosen: Names of modules, whole or their ends; None for the papers' query and value projections, or
            for (IA)3's own places.
        kind: The kind of adapter.

    Raises:
        ModelError: A chosen name matches no module, or the family's projections are unknown.
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
                    f"model.adapter.target_modules: {name!r} matches no module of this {family} model; "
                    f"its linear layers are called {', '.join(sorted(present))}.{did_you_mean(name, present)}"
                )
        return list(chosen)
    known, usual = (IA3_PLACES, USUAL_IA3) if kind == "ia3" else (QUERY_VALUE, USUAL)
    names = known.get(family, usual)
    if all(there(name) and name.rpartition(".")[2] in present for name in names):
        return list(names)
    what = "places of (IA)3 in" if kind == "ia3" else "query and value projections of"
    raise ModelError(
        f"model.adapter.target_modules: the {what} a {family!r} model are not known; "
        f"name them, out of its linear layers {', '.join(sorted(present))}."
    )


def add_adapter(model: nn.Module, adapter: Any, *, encoder_decoder: bool, seed: int) -> Any:
    """Make ready what is trained, and freeze everything else.

    The LoRA kinds (KIF Eq. 2), (IA)3 and `osf` wrap the model with a PEFT adapter; `full` returns the model
    itself with its own weights trainable.

    Args:
        model: A transformers model.
        adapter: Configuration with `rank`, `alpha`, `dropout`, `target_modules`, for `osf` `preserve`, and
            `kind` (`lora` if it has none).
        encoder_decoder: Kind of model, for PEFT's task type.
        seed: Of A's random start.

    Raises:
        ModelError: See `target_modules`; or PEFT has no adapter for a chosen module; or the kind is unknown,
            or cannot be trained on quantised weights.
    """
    from peft import IA3Config, LoraConfig, OSFConfig, TaskType, get_peft_model

    kind = getattr(adapter, "kind", "lora")
    if kind not in KINDS:
        raise ModelError(f"model.adapter.kind: found {kind!r}, expected one of {', '.join(KINDS)}.")
    if kind == "full":
        chosen = adapter.target_modules
        return train_weights(model, target_modules(model, chosen) if chosen else None)
    if kind == "dora" and getattr(model, "is_loaded_in_8bit", False) and model.device.type == "cpu":
        # PEFT 0.21 loses the scales of 8-bit weights on a CPU when it takes their norms
        raise ModelError(
            "model.adapter.kind: 'dora' on 8-bit weights needs a GPU; use model.quantization '4bit', or "
            "another kind of adapter."
        )
    targets = target_modules(model, adapter.target_modules, kind)
    shared: dict[str, Any] = {
        "target_modules": targets,
        "task_type": TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM,
    }
    if kind != "osf":
        shared["fan_in_fan_out"] = getattr(getattr(model, "config", None), "model_type", "") == "gpt2"
    if kind == "osf":
        rank = first_rank(model, targets, adapter.preserve)
        config: Any = OSFConfig(effective_rank=rank, **shared)
    elif kind == "ia3":
        inner = [name for name in targets if any(f".{name}".endswith(f".{end}") for end in FEED_FORWARD)]
        config = IA3Config(feedforward_modules=inner, **shared)
    else:
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            **shared,
            **LORA_KINDS[kind],
        )
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    except ValueError as error:
        raise ModelError(
            f"model.adapter.target_modules: no {kind} adapter can be put on {', '.join(targets)}: {error}"
        ) from error
    if kind == "osf":
        refuse_versions(adapted)
        mark_fresh(adapted)
    return adapted


def learned_weights(model: Any) -> dict[str, nn.Parameter]:
    """What holds all that was learned, between tasks: the trainable weights; for `osf` the adapted ones.

    Args:
        model: What `add_adapter` gave.
    """
    if is_osf(model):
        return own_weights(model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def set_learned_weights(model: Any, values: dict[str, Tensor]) -> None:
    """Overwrite what `learned_weights` names, in place.

    Args:
        model: What `add_adapter` gave.
        values: By name.
    """
    if is_osf(model):
        return set_weights(model, values)
    with torch.no_grad():
        for name, weight in learned_weights(model).items():
            weight.copy_(values[name])


def save_adapter(model: Any, folder: Path) -> None:
    """Write what was trained; the folder appears under its name only when complete.

    For the PEFT kinds it is a standard PEFT adapter folder, for full fine-tuning and `osf` see
    `kifuse.models.adapter_folder`.

    Args:
        model: What `add_adapter` gave.
        folder: Where; replaced if it is there.
    """
    if not hasattr(model, "peft_config"):
        return save_weights(model, folder)
    if is_osf(model):
        return save_merged(model, folder)
    replace_folder(folder, lambda partial: model.save_pretrained(str(partial), safe_serialization=True))


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Put saved weights into the model's trainable ones.

    Args:
        model: What `add_adapter` gave, with the same kind, rank and modules.
        folder: What `save_adapter` wrote.

    Raises:
        ModelError: The folder holds no adapter, or one of another kind, shape or model.
    """
    if not hasattr(model, "peft_config"):
        return load_weights(model, folder)
    if is_osf(model):
        return load_merged(model, folder)
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if not file.is_file():
        raise ModelError(f"{folder}: no adapter there ({WEIGHTS} is missing).")
    if is_full(read_config(folder)):
        kind = model.active_peft_config.peft_type.value
        raise ModelError(f"{folder}: holds weights of full fine-tuning, expected an adapter ({kind}).")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ModelError(f"{file}: cannot be loaded as the adapter of this model: {error}") from error
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    trained = {name: tuple(t.shape) for name, t in own.items()}
    # an adapted embedding is kept with its frozen base, which is not looked at here
    found = {name: tuple(t.shape) for name, t in tensors.items() if "base_layer" not in name}
    refuse_other_tensors(file, found, trained)
    try:
        set_peft_model_state_dict(model, tensors)
    except RuntimeError as error:
        raise ModelError(f"{file}: cannot be loaded as the adapter of this model: {error}") from error
