"""Merges what was learned into the base model, in the base's own precision, and checks the answers.

    W <- round(W + s B A)

The sum is computed in float32 and rounded once. That is not exactly the same as an adapter beside W. So the
merged model is read back from its files, and must answer a probe as the adapter on the base does in the same
precision.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from kifuse.adapters.folder import is_full
from kifuse.errors import ModelError
from kifuse.exporting.probe import answers, prompts, questions
from kifuse.exporting.source import Source
from kifuse.models.loading import Backbone, load_backbone
from kifuse.saved_adapter import load_adapter

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def write_merged(
    source: Source,
    name: str,
    folder: Path,
    *,
    precision: str,
    may_differ: int,
    trust_remote_code: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the base model with what was learned in its weights.

    Args:
        source: What is exported.
        name: Name by which the base model is loaded.
        folder: The folder to write to.
        precision: Precision of the weights: `base`, `fp32`, `bf16` or `fp16`.
        may_differ: How many answers on the probe may differ.
        trust_remote_code: Run code that comes with the model.
        say: Called with lines about what is going on.

    Returns:
        What the probe found: `questions`, `same`, `of_tasks` and `precision`.

    Raises:
        ModelError: The merged weights are no finite numbers, or more answers differ than may.
    """

    def loaded() -> Backbone:
        return load_backbone(name, precision="fp32", trust_remote_code=trust_remote_code, say=say)

    backbone = loaded()
    dtype = _dtype_of(backbone, trust_remote_code) if precision == "base" else DTYPES[precision]
    texts, of_tasks = questions(source)
    asked = prompts(texts, source, backbone.tokenizer)
    model = load_adapter(backbone.model, source.adapter)
    if hasattr(model, "merge_and_unload"):
        try:
            model = model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ModelError(f"export: {source.adapter}: cannot be merged: {error}") from error
    model.to(dtype)
    model.config.name_or_path = ""
    model.save_pretrained(folder)
    del model, backbone
    gc.collect()

    backbone = loaded()
    if not is_full(source.config):
        # weights of the model itself were learned, and scored, in float32
        backbone.model.to(dtype)
    expected = answers(load_adapter(backbone.model, source.adapter), asked, backbone.tokenizer)
    kind, tokenizer, device = type(backbone.model), backbone.tokenizer, backbone.device
    del backbone
    gc.collect()
    merged = kind.from_pretrained(folder, dtype="auto").to(device)
    found = answers(merged, asked, tokenizer)
    same = sum(a == b for a, b in zip(expected, found, strict=True))
    short = str(dtype).removeprefix("torch.")
    if len(asked) - same > may_differ:
        other = "" if dtype == torch.float32 else "merge in full precision (--precision fp32), "
        raise ModelError(
            f"export: merged in {short}, {len(asked) - same} of {len(asked)} probe answers differ from "
            f"those of the adapter on its base model in {short}, so nothing was written. Export the "
            f"adapter, {other}or accept this: --may-differ {len(asked) - same}."
        )
    return {"questions": len(asked), "same": same, "of_tasks": of_tasks, "precision": short}


def _dtype_of(backbone: Backbone, trust_remote_code: bool) -> torch.dtype:
    """The precision of a base model's files, from its configuration or else from its first weight."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(backbone.source, trust_remote_code=trust_remote_code).dtype
    if isinstance(found, torch.dtype):
        return found
    folder = Path(backbone.source)
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                return tensors.get_tensor(name).dtype
    return torch.float32
