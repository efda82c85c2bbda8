"""Read the settings of a LoRA adapter that was made elsewhere, so that training can continue from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kifuse.adapters.folder import CONFIG, WEIGHTS, is_full, is_own, read_config, refuse_sizes
from kifuse.errors import ModelError

FILES = (CONFIG, WEIGHTS)
"""The files of an adapter; nothing else in its folder is read."""

PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of PEFT's `init_lora_weights` that do not change the base model's own weights."""

BESIDE = {
    "modules_to_save": "whole modules are trained beside LoRA",
    "trainable_token_indices": "embeddings of tokens are trained beside LoRA",
    "target_parameters": "parameters outside of layers are adapted",
    "rank_pattern": "its rank differs from layer to layer",
    "alpha_pattern": "its scale differs from layer to layer",
    "lora_bias": "its factors have biases",
    "layer_replication": "layers of the base are there several times",
    "alora_invocation_tokens": "it works only from a certain token on",
    "use_qalora": "its inputs are pooled",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it is a router of several adapters",
    "kasa_config": "it changes the base's own weights",
    "velora_config": "its inputs are compressed",
    "monteclora_config": "its factors are drawn at random",
}
"""Settings of PEFT's `LoraConfig` that go beyond the LoRA that kifuse trains, and what each means."""


def lora_settings(folder: Path) -> dict[str, Any]:
    """Return the `model.adapter` settings of a PEFT adapter: kind, rank, alpha and the layers.

    Args:
        folder: Folder of a PEFT adapter.

    Returns:
        `kind`, `rank`, `alpha` and `target_modules`.

    Raises:
        ModelError: The folder holds no adapter, or one that tasks cannot continue from; the message says why,
            and what to do.
    """
    if not folder.is_dir():
        raise ModelError(f"model.adapter.from: {folder}: no such folder, expected one with a LoRA adapter.")
    for name in FILES:
        if not (folder / name).is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            why = "; its weights are pickled, so save it again as safetensors" if pickled else ""
            raise ModelError(f"model.adapter.from: {folder}: no adapter there ({name} is missing{why}).")
    config = read_config(folder)
    reason = _why_not(config)
    if reason:
        raise ModelError(f"model.adapter.from: {folder / CONFIG}: {reason}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    for key, value in (("r", rank), ("lora_alpha", alpha)):
        if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value) or value < 1:
            raise ModelError(
                f"model.adapter.from: {folder / CONFIG}: {key}: found {value!r}, expected a whole number."
            )
    shapes = _shapes(folder / WEIGHTS)
    refuse_sizes(folder / CONFIG, rank, shapes.values())
    kind = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    targets = _targets(config, folder / WEIGHTS, shapes)
    return {"kind": kind, "rank": int(rank or 0), "alpha": int(alpha or 0), "target_modules": targets}


def _why_not(config: Mapping[str, Any]) -> str:
    """Say why tasks cannot continue from an adapter with this configuration; empty if they can."""
    merge = (
        "Merge it into its base model (PEFT's merge_and_unload, then save_pretrained) and name that folder "
        "as the model."
    )
    if is_full(config):
        return "holds weights of the model itself, expected a LoRA adapter. Name the model with them instead."
    if is_own(config):
        return (
            f"holds a {config.get('adapter')} of kifuse, expected a LoRA adapter. Only the method that made "
            "it can continue it, in the folder of its own run or learner."
        )
    if config["peft_type"] != "LORA":
        return f"peft_type: found {config['peft_type']!r}, expected 'LORA'. {merge}"
    for key, meaning in BESIDE.items():
        if config.get(key):
            return f"{key}: found {config[key]!r}, expected nothing: {meaning}. {merge}"
    if config.get("bias") not in (None, "none"):
        return f"bias: found {config['bias']!r}, expected 'none', as biases are trained beside LoRA. {merge}"
    if config.get("use_dora") and config.get("use_rslora"):
        return f"use_dora and use_rslora: found both, expected one of them. {merge}"
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        return (
            f"init_lora_weights: found {start!r}, which changes the base's own weights as it starts. Convert "
            "it with PEFT: save_pretrained(folder, path_initial_model_for_weight_conversion=...)."
        )
    return ""


def _targets(config: Mapping[str, Any], file: Path, tensors: Iterable[str]) -> list[str]:
    """The adapted layers: the names in the configuration, or each layer's path if it has other rules."""
    named, ruled = config.get("target_modules"), ("layers_to_transform", "exclude_modules")
    if isinstance(named, list) and named and not any(config.get(key) for key in ruled):
        return sorted(map(str, named))
    paths = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in tensors}
    if not paths:
        raise ModelError(f"model.adapter.from: {file}: holds no tensors.")
    return sorted(paths)


def _shapes(file: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a file; the tensors themselves are not read."""
    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in list(tensors.keys())}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"model.adapter.from: {file}: cannot be read: {error}.") from error
