"""Whether vLLM, llama.cpp and Ollama can serve an export, and the commands for it.

The rules are those of their own code and documentation: vLLM's `PEFTHelper` and `LoRAConfig`, llama.cpp's
`convert_lora_to_gguf.py` and its adapter loader, Ollama's page on importing. An export's files are checked
against these rules; the servers themselves are not run here.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank`."""

OLLAMA_ADAPTERS = ("llama", "mistral", "mixtral", "gemma", "gemma2")
"""Families of models for which Ollama imports adapters."""

OLLAMA_MODELS = ("llama", "mistral", "mixtral", "gemma", "gemma2", "phi3")
"""Families of models that Ollama imports from safetensors."""


@dataclass(frozen=True)
class Server:
    """Whether and how a server serves an export.

    Attributes:
        name: Name of the server.
        refuses: Why the server cannot serve the export; empty if it can.
        commands: What to type if it can; `EXPORT` is the folder of the export, `BASE` that of the base model.
    """

    name: str
    refuses: str = ""
    commands: tuple[str, ...] = ()

    def placed(self, folder: Path) -> Server:
        """Put the export's folder into the commands."""
        # a bare name would be taken for a name on the hub or in Ollama
        place = str(folder) if folder.is_absolute() else f"./{folder}"
        quoted, inside = shlex.quote(place), place.replace("'", "'\\''")
        commands = (
            c.replace("EXPORT", inside if c.startswith("printf '") else quoted) for c in self.commands
        )
        return replace(self, commands=tuple(commands))


def servers(
    config: Mapping[str, Any] | None, tensors: Iterable[str], family: str, encoder_decoder: bool, base: str
) -> list[Server]:
    """Find out for each server whether and how it can serve an export.

    Args:
        config: `adapter_config.json` of an adapter; None for a merged model.
        tensors: Names of the adapter's tensors.
        family: `model_type` of the base model.
        encoder_decoder: Whether it is an encoder-decoder model.
        base: Name of the base model.
    """
    if encoder_decoder:
        return [
            Server("vLLM", "it serves no T5-like models"),
            Server("llama.cpp", "its T5-like models were not tested"),
            Server("Ollama", "it imports no T5-like models"),
        ]
    if config is None:
        return _of_merged(family)
    return _of_adapter(config, list(tensors), family, base)


def _of_merged(family: str) -> list[Server]:
    llama = (
        "python llama.cpp/convert_hf_to_gguf.py EXPORT --outfile model.gguf",
        "llama-server -m model.gguf",
    )
    name = "EXPORT" if family in OLLAMA_MODELS else "./model.gguf"
    ollama = (
        f"printf 'FROM {name}\\n' > Modelfile",
        "ollama create learned -f Modelfile",
        "ollama run learned",
    )
    if family not in OLLAMA_MODELS:
        ollama = (llama[0], *ollama)
    return [
        Server("vLLM", commands=("vllm serve EXPORT",)),
        Server("llama.cpp", commands=llama),
        Server("Ollama", commands=ollama),
    ]


def _of_adapter(config: Mapping[str, Any], tensors: list[str], family: str, base: str) -> list[Server]:
    plain, rank, model = not_plain(config, tensors), int(config.get("r") or 0), shlex.quote(base)
    most = next((each for each in RANKS if each >= rank), None)
    vllm = plain or (f"its rank is {rank}, and vLLM takes {RANKS[-1]} at most" if most is None else "")
    scaled = "its scale is alpha/sqrt(r), and llama.cpp reads alpha/r" if config.get("use_rslora") else ""
    gguf = plain or scaled
    ollama = gguf or (
        ""
        if family in OLLAMA_ADAPTERS
        else f"it imports adapters of {', '.join(OLLAMA_ADAPTERS)}, and this is one of {family}"
    )
    serve = f"vllm serve {model} --enable-lora --max-lora-rank {most} --lora-modules learned=EXPORT"
    return [
        Server("vLLM", vllm, () if vllm else (serve,)),
        Server(
            "llama.cpp",
            gguf,
            ()
            if gguf
            else (
                "python llama.cpp/convert_lora_to_gguf.py --base BASE --outfile adapter.gguf EXPORT",
                "python llama.cpp/convert_hf_to_gguf.py BASE --outfile base.gguf",
                "llama-server -m base.gguf --lora adapter.gguf",
            ),
        ),
        Server(
            "Ollama",
            ollama,
            ()
            if ollama
            else (
                "printf 'FROM BASE\\nADAPTER EXPORT\\n' > Modelfile",
                "ollama create learned -f Modelfile",
                "ollama run learned",
            ),
        ),
    ]


def not_plain(config: Mapping[str, Any], tensors: Iterable[str]) -> str:
    """Why an adapter is no plain LoRA, which is all that the three servers take; empty if it is one."""
    if config.get("peft_type") != "LORA":
        return f"it is {config.get('peft_type')}, and only LoRA works"
    if config.get("use_dora"):
        return "it is DoRA, and its magnitudes do not work"
    if config.get("modules_to_save"):
        return "it has whole modules beside LoRA (modules_to_save)"
    if config.get("bias", "none") != "none":
        return "it has biases beside LoRA"
    other = [name for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    return f"it holds {other[0]}, which is neither lora_A nor lora_B of a linear layer" if other else ""
