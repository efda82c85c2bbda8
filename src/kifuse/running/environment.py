"""The machine and the software that a run runs on."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kifuse.models.loading import Backbone
from kifuse.processes import process_count

_STATUS, _PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CPU_INFO = Path("/proc/cpuinfo")

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


def machine(backbone: Backbone, threads: int | None = None) -> dict[str, Any]:
    """Cores, memory, threads, device and precision.

    Args:
        backbone: The model, which knows its device and precision.
        threads: CPU threads that torch is about to use; None for those that it uses now.
    """
    name = torch.cuda.get_device_name(backbone.device) if backbone.device.type == "cuda" else _processor()
    return {
        "device": backbone.device.type,
        "device_name": name,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": threads or torch.get_num_threads(),
        "precision": backbone.precision,
        "processes": process_count(),
        "system": platform.system(),
    }


def _processor() -> str:
    """Name the CPU, with details that others of the same name may not share: scores differ between them."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):  # Linux only
        for line in _CPU_INFO.read_text("utf-8").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            found[key.strip()] = value.strip()
    parts = [found.get("model name", platform.machine())]
    parts += [f"{key} {found[key]}" for key in ("cpu family", "model", "stepping") if key in found]
    return ", ".join([*parts, torch.backends.cpu.get_cpu_capability()])


def reset_peak_memory() -> None:
    """Reset the measured peak, because a run may not be the first one in its process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak stays that of the process
        _PEAK_RESET.write_text("5")


def peak_memory_mb() -> float:
    """Largest resident memory since the last reset; with CUDA, the largest allocation on the device."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text("utf-8"), re.MULTILINE)
        if found:
            return int(found[1]) / 2**10
    # Linux counts in KiB, macOS in bytes
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
