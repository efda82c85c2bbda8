"""The folder with a stand-alone callback's states: one script at a time holds it, and its loss is noticed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kifuse.driving.state_folder import StateFolder
from kifuse.errors import RunError
from kifuse.methods.base import Parameters

LOCK = ".lock"
_ADAPTER = re.compile(r"(?<=\.)(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|ia3_l)\.([^.\"]+)")
_FRESH = (True, "gaussian", "default")
"""Ways to initialise a LoRA adapter in which its B is zero."""

_held: dict[Path, FileLock] = {}


def hold(state_dir: Path) -> None:
    """Keep other processes off a folder of states until `let_go`, or until this process ends.

    The same process may hold it again, as after a training that failed in a notebook.

    Raises:
        RunError: Another process trains with the folder.
    """
    place = state_dir.resolve()
    if place in _held:
        return
    lock = FileLock(place / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{state_dir}: another process trains with this state_dir. Wait until it has ended, or give "
            "each script its own."
        ) from error
    except (OSError, NotImplementedError) as error:
        raise RunError(f"{state_dir}: cannot be locked for this process: {error}.") from error
    _held[place] = lock


def let_go(state_dir: Path) -> None:
    """Let other processes train with a folder of states again."""
    lock = _held.pop(state_dir.resolve(), None)
    if lock is not None:
        lock.release()


def refuse_lost(state_dir: Path, model: Any, params: Parameters) -> None:
    """Refuse to begin as the first task if the adapter was trained before and no state says on what.

    Args:
        state_dir: Folder of states, which holds none.
        model: The model.
        params: The parameters that are trained.

    Raises:
        RunError: It is a LoRA adapter whose B began as zero and is not zero now.
    """
    configs = getattr(model, "peft_config", None) or {}
    if not configs or not all(getattr(c, "init_lora_weights", None) in _FRESH for c in configs.values()):
        return  # nothing tells such an adapter from a new one
    trained = [
        name
        for name, tensor in zip(params.names, params.tensors, strict=True)
        if ".lora_B." in name and bool(tensor.detach().any())
    ]
    if trained:
        raise RunError(
            f"{state_dir}: holds no state, but the adapter was trained before ({trained[0]} is not zero). "
            "This would be the first task, and what was learned earlier would not be protected. Put the "
            "folder of the earlier tasks back, or correct its name. To start from this adapter: "
            "callback(first=True)."
        )


def for_adapter(found: StateFolder, names: Sequence[str]) -> StateFolder:
    """Fit a state to an adapter that may have another name than the one it was written for.

    Args:
        found: The state as it was read.
        names: Names of the parameters that are trained now.

    Returns:
        The state with the names of today's parameters.
    """
    tensors = {key: value for part in found.tensors.values() for key, value in part.items()}
    before = {each[1] for key in tensors for each in _ADAPTER.findall(key)}
    now = {each[1] for name in names for each in _ADAPTER.findall(name)}
    if len(before) != 1 or len(now) != 1 or before == now:
        return found
    (old,), (new,) = before, now

    def renamed(text: str) -> str:
        return _ADAPTER.sub(lambda m: f"{m[1]}.{new}" if m[2] == old else m[0], text)

    def all_renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {renamed(key): value for key, value in values.items()}

    state = json.loads(renamed(json.dumps(found.values["state"])))
    parts = {name: all_renamed(part) for name, part in found.tensors.items()}
    return StateFolder({**found.values, "state": state}, parts, found.texts)
