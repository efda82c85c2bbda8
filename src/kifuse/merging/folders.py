"""Fusion of two saved adapters into a third, without loading the model they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kifuse.adapters.folder import (
    CONFIG,
    AdapterFolder,
    read_adapter,
    write_files,
)
from kifuse.errors import ModelError
from kifuse.io.whole_folders import replace_folder
from kifuse.merging.importance import Importance, load_importance
from kifuse.merging.states import fuse, refuse_unlike

MATTERS = (
    "format",
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "target_modules",
    "feedforward_modules",
    "use_dora",
    "use_rslora",
    "fan_in_fan_out",
    "bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
    "target_parameters",
    "trained",
)
"""Keys of an `adapter_config.json` in which two adapters must agree to be fused."""


def fuse_adapters(
    previous: str | Path,
    current: str | Path,
    output: str | Path,
    importance: Importance | str | Path | None = None,
    *,
    force: bool = False,
    **settings: Any,
) -> AdapterFolder:
    """Fuse the adapter before a task with the adapter after it into a new adapter folder.

    The result is what KIF itself makes at the end of a task: a standard PEFT adapter folder (or one of full
    fine-tuning) with the configuration of `current`.

    Args:
        previous: Folder of the adapter before the task.
        current: Folder of the adapter after it.
        output: Folder to write; it must not exist, or be empty.
        importance: As in `kifuse.fuse`, or a file that `kifuse.load_importance` reads.
        force: Replace an adapter that is in the output folder.
        settings: `fusion`, `units`, `gamma`, `quantile`, `tau`, `average`, `unit_score` of `kifuse.fuse`.

    Returns:
        The folder that was written.

    Raises:
        ModelError: A folder or file is not as expected, the two adapters differ in more than their weights,
            or the output folder is in use.
        ConfigError: A setting has a wrong value.
    """
    output = Path(output)
    refuse_used(output, force=force)
    old, new = read_adapter(Path(previous)), read_adapter(Path(current))
    refuse_unlike_adapters(old, new)
    refuse_unlike({str(old.path): old.tensors, str(new.path): new.tensors})
    if isinstance(importance, (str, Path)):
        importance = load_importance(importance)
    if importance is not None and importance.by_unit and importance.order is None:
        raise ModelError(
            "importance: holds one value per unit, but not the order of the parameters, which numbers the "
            "units. An adapter's file does not have this order."
        )
    fused = fuse(old.tensors, new.tensors, importance, **settings)
    try:
        replace_folder(output, lambda partial: write_files(partial, new.config, fused))
    except OSError as error:
        raise ModelError(f"{output}: cannot be written: {error.strerror or error}.") from error
    return AdapterFolder(output, new.config, fused)


def refuse_used(output: Path, *, force: bool = False) -> None:
    """Refuse an output path that is a file, or a folder that is not empty.

    Args:
        output: The folder.
        force: Whether it may hold an adapter; anything else is never replaced.

    Raises:
        ModelError: The path is in use.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir():
        raise ModelError(f"{output}: found a file, expected a new or empty folder. It was not changed.")
    if not (output / CONFIG).is_file():
        raise ModelError(
            f"{output}: found other files, expected a new or empty folder. It was not changed. Name "
            "another folder."
        )
    if not force:
        raise ModelError(
            f"{output}: found an adapter, expected a new or empty folder. It was not changed. Name another "
            "folder, or add --force (force=True)."
        )


def refuse_unlike_adapters(old: AdapterFolder, new: AdapterFolder) -> None:
    """Refuse two adapters that differ in model, kind, rank or places.

    Raises:
        ModelError: They differ; every difference is named with both values.
    """
    unlike = []
    for key in MATTERS:
        a, b = (_comparable(key, folder.config.get(key)) for folder in (old, new))
        if a != b:
            unlike.append(f"{key} ({a!r} and {b!r})")
    if unlike:
        raise ModelError(
            f"{old.path} and {new.path} cannot be fused: they differ in {', '.join(unlike)}. "
            "Expected two adapters of one model, of one kind, rank and place."
        )


def _comparable(key: str, value: Any) -> Any:
    """A value without differences that do not matter: the order of modules, the spelling of a path."""
    if isinstance(value, list) and key.endswith("modules"):
        return sorted(map(str, value))
    if key == "base_model_name_or_path" and isinstance(value, str) and Path(value).is_dir():
        return str(Path(value).resolve())
    return value or None
