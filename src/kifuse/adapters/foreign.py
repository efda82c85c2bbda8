"""Check a saved adapter from elsewhere before it is put on a model; no code that it names is run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kifuse.adapters.folder import CONFIG, WEIGHTS, read_adapter, refuse_sizes
from kifuse.adapters.lora import peft_asking_transformers
from kifuse.errors import ModelError

READ = ("LORA", "IA3", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "VERA")
"""Kinds of PEFT adapter that read no files but their own two."""

REFUSED = {
    "megatron_config": "it imports the module that megatron_core names",
    "layer_replication": "it can make the model larger by any number of layers",
}
"""Keys of a LoRA configuration that do more than say where the weights belong."""

SECONDS = 10.0
"""Longest time, in seconds, for matching a configuration's patterns with the names of the model's modules."""

_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
_PLAIN = re.compile(r"[\w.-]*\Z")
# matches as PEFT does, in a process that can be ended: nothing else stops a search
_SEARCH = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name), re.match(rf"(.*\.)?({pattern})$", name)
"""


def put_on(model: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    """Put a standard PEFT adapter on a model.

    Args:
        model: A transformers model.
        folder: Folder of the adapter.
        config: Its `adapter_config.json`.

    Returns:
        The PEFT model.

    Raises:
        ModelError: The folder holds no weights in safetensors, or an adapter of another kind or for another
            model, or its configuration asks for code or for sizes beyond its weights.
    """
    from peft import PeftModel, get_peft_model_state_dict

    file = folder / CONFIG
    if config["peft_type"] not in READ:
        raise ModelError(
            f"{file}: peft_type: found {config['peft_type']!r}, expected one of {', '.join(READ)}; load "
            "another kind with PEFT itself, if you trust it."
        )
    for key, why in REFUSED.items():
        if config.get(key):
            raise ModelError(f"{file}: {key}: {why}; load it with PEFT itself, if you trust it.")
    tensors = read_adapter(folder).tensors
    refuse_sizes(
        file, {key: config.get(key) for key in ("r", "rank_pattern")}, [t.shape for t in tensors.values()]
    )
    _refuse_endless(file, config, [name for name, _ in model.named_modules()])
    try:
        with peft_asking_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # refused below
            made = PeftModel.from_pretrained(model, str(folder))
        missing = get_peft_model_state_dict(made, save_embedding_layers=False).keys() - tensors.keys()
    except Exception as error:  # any kind of error, raised at a malformed configuration
        said = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"{folder}: cannot be put on this model: {type(error).__name__}: {said[0]}"
        ) from error
    if missing:
        raise ModelError(
            f"{folder / WEIGHTS}: {min(missing)!r} is missing ({len(missing)} tensors in all). Missing "
            "tensors would be random."
        )
    return made


def _refuse_endless(file: Path, config: Mapping[str, Any], names: list[str]) -> None:
    """Refuse patterns that take too long to match with the names of a model's modules."""
    found = [config.get(key) for key in _PATTERNS]
    # a text is a pattern, and so are a mapping's keys; a list holds names, except that of the layers
    texts = [each for value in found if isinstance(value, (dict, list)) for each in value]
    texts += [value for value in found if isinstance(value, str)]
    patterns = [text for text in texts if isinstance(text, str) and not _PLAIN.match(text)]
    if not patterns:
        return
    try:
        subprocess.run(  # noqa: S603 - this program is part of kifuse
            [sys.executable, "-I", "-c", _SEARCH],
            input=json.dumps([patterns, names]),
            text=True,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{file}: matching its patterns with the model's modules takes longer than {SECONDS:g} seconds. "
            "List the modules by name."
        ) from error
