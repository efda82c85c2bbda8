"""The machine and the software that a run ran on, for its record."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from kifuse.models.loading import Backbone

PACKAGES = ("kifuse", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Version of Python and of each package that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine(backbone: Backbone) -> dict[str, Any]:
    """Cores, memory, threads, device and precision."""
    name = (
        torch.cuda.get_device_name(backbone.device) if backbone.device.type == "cuda" else platform.machine()
    )
    return {
        "device": backbone.device.type,
        "device_name": name,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
        "precision": backbone.precision,
        "processes": process_count(),
        "system": platform.system(),
    }


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far; with CUDA, the largest allocation on the device."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux counts in KiB, macOS in bytes
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def process_count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes files."""
    return int(os.environ.get("RANK", "0")) == 0
