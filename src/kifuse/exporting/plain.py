"""Adapters that PEFT loads by itself: which are such already, which can be made so, and which cannot.

| what was learned | as an adapter | merged |
| --- | --- | --- |
| LoRA, rsLoRA, DoRA, (IA)3 | as it is | yes |
| a stack of LoRA pairs (`inclora`, `o-lora`, `n-lora`, `ella`) | one LoRA whose rank is the sum | yes |
| prompts before the input (`progprompt`) | prompt tuning with all prompts in a row | no |
| full weights, `osf` | no: the model itself was trained | yes |
| `lfpt5`, `l2p`, `moe-lora`, `epi`, `mocl`, `sapt`, an adapter of your own | no | no |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kifuse.adapters.folder import CONFIG, WEIGHTS, is_full, is_own, read_adapter, write_files
from kifuse.errors import ModelError
from kifuse.exporting.source import Source
from kifuse.io.storage import write_json

REASONS = {
    "PromptPool": "chooses its prompts by what each input asks",
    "RoutedLora": "weighs several adapters by what each input asks",
    "IdentifiedPrefixes": "finds out from each input which task's prefix it reads",
    "MatchedPrefixes": "adds up the modules of all tasks again for each input",
    "MatchedLora": "adds up the modules of all tasks again for each input",
    "AttendedLora": "weighs the pairs of all tasks again for each input",
    "PromptBehind": "puts its prompt after the input, and prompt tuning puts it before",
}
"""Why one of kifuse's own adapters cannot be an adapter of PEFT, by the name of its class."""


def refuse_form(source: Source, *, merged: bool) -> None:
    """Refuse an adapter that cannot be exported in this form.

    Raises:
        ModelError: It cannot; the message says why, and what can be done.
    """
    config, how = source.config, "merged" if merged else "as an adapter"
    if is_full(config) and not merged:
        raise ModelError(
            f"export: {source.record.method.name!r} trained the model's own weights, so there is no "
            "adapter. Export the whole model: --merged, or merged=True."
        )
    if not is_own(config):
        return
    name = str(config.get("adapter"))
    if name == "ProgressivePrompts" and not merged:
        return
    reason = REASONS.get(name, f"has its own kind of adapter ({name}), which PEFT does not know")
    if name == "ProgressivePrompts":
        reason = "puts vectors before the input, which are not weights of the model. Export the adapter"
    raise ModelError(
        f"export: {source.record.method.name!r} cannot be exported {how}: it {reason}. It loads with "
        f"kifuse: kifuse.load_adapter(model, {str(source.adapter)!r}). To get one adapter that loads "
        "everywhere, use a method with one LoRA, such as recurrent-kif or replay."
    )


def write_adapter(source: Source, base: str, folder: Path, empty_model: Callable[[], Any]) -> None:
    """Write an adapter that PEFT loads by itself; none of its files names a path on this machine.

    Args:
        source: What is exported; `refuse_form` has passed it.
        base: Name of the base model.
        folder: The folder to write to.
        empty_model: Gives the base model without weights.

    Raises:
        ModelError: The adapter is damaged.
    """
    found = read_adapter(source.adapter)
    if is_own(found.config):
        config, tensors = _prompt_tuning(found.tensors, empty_model())
        write_files(folder, {**config, "base_model_name_or_path": base}, tensors)
        return
    (folder / WEIGHTS).write_bytes(found.weights.read_bytes())
    write_json(folder / CONFIG, {**found.config, "base_model_name_or_path": base})


def _prompt_tuning(tensors: dict[str, Tensor], model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """[P_t; ...; P_1] as one prompt of PEFT's prompt tuning, before the input; `(t L, d)`."""
    from peft import PromptTuningConfig, TaskType

    (newest,) = (t for name, t in tensors.items() if name.endswith(".prompt"))
    past = [t for name, t in tensors.items() if name.endswith(".past_prompt")]
    stack = torch.cat([*past, newest[None]]).flip(0).flatten(0, 1).contiguous()
    config, encoder_decoder = model.config, bool(getattr(model.config, "is_encoder_decoder", False))
    found = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM,
        num_virtual_tokens=len(stack),
        token_dim=stack.shape[1],
        num_transformer_submodules=1,  # the encoder alone reads the prompt
        num_attention_heads=getattr(config, "num_attention_heads", None),
        num_layers=getattr(config, "num_hidden_layers", None),
        inference_mode=True,
    ).to_dict()
    plain = {key: getattr(value, "value", value) for key, value in found.items()}
    return plain, {"prompt_embeddings": stack}
