"""An adapter on disk: the folder that a task leaves behind, read and written without any model.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. For the PEFT kinds it is a standard PEFT
adapter, which `PeftModel.from_pretrained(base, folder)` loads. For full fine-tuning, and for `osf`, which
puts all that was learned into the adapted weights, the JSON says `"format": "kifuse full weights"` and the
other file holds the trained weights under the names they have in the model, so that they load with

    model.load_state_dict(safetensors.torch.load_file(folder / "adapter_model.safetensors"), strict=False)

`strict=False`, since weights that stayed frozen, and second names of tied weights, are not in the file.

An adapter that a method brings itself, and PEFT does not know, says `"format": "kifuse adapter"` with the
name of its class; `kifuse.load_adapter(model, folder)` puts it on a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kifuse.errors import KifuseError, ModelError
from kifuse.io.storage import read_json, read_tensors, write_json, write_tensors
from kifuse.io.whole_folders import replace_folder

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FULL_FORMAT = "kifuse full weights"
OWN_FORMAT = "kifuse adapter"
VERSION = 1


@dataclass(frozen=True)
class AdapterFolder:
    """What an adapter folder holds.

    Attributes:
        path: The folder.
        config: Its `adapter_config.json`.
        tensors: Its weights by name, on the CPU; in no particular order.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def full(self) -> bool:
        """Whether it holds weights of the model itself instead of a PEFT adapter."""
        return is_full(self.config)

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.path / WEIGHTS


def is_full(config: Mapping[str, Any]) -> bool:
    """Whether an `adapter_config.json` is that of full fine-tuning."""
    return config.get("format") == FULL_FORMAT


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether an `adapter_config.json` is that of an adapter that only kifuse knows."""
    return config.get("format") == OWN_FORMAT


def read_adapter(folder: Path) -> AdapterFolder:
    """Read an adapter folder of any kind.

    Args:
        folder: A folder that kifuse or PEFT wrote.

    Raises:
        ModelError: There is no such folder, no adapter in it, or it is damaged or of a later version.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder. Expected a folder with an adapter in it.")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no adapter there ({name} is missing).")
    config = read_config(folder)
    try:
        tensors, _ = read_tensors(folder / WEIGHTS)
    except KifuseError as error:
        raise ModelError(str(error)) from error
    return AdapterFolder(folder, config, tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check an `adapter_config.json`.

    Raises:
        ModelError: It is no adapter's configuration, or of a later version.
    """
    file = folder / CONFIG
    try:
        config = read_json(file)
    except KifuseError as error:
        raise ModelError(str(error)) from error
    ours = isinstance(config, dict) and (is_full(config) or is_own(config))
    if not isinstance(config, dict) or not (ours or config.get("peft_type")):
        raise ModelError(f"{file}: not the configuration of an adapter; it has no peft_type.")
    if ours and config.get("version") != VERSION:
        raise ModelError(
            f"{file}: version is {config.get('version')!r}, expected {VERSION}; "
            "it was written by another version of kifuse."
        )
    return config


def write_files(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the two files of an adapter into a folder.

    Args:
        folder: The folder.
        config: For `adapter_config.json`.
        tensors: The weights by the names they have in the file.
    """
    # the metadata that transformers and PEFT write, which some readers look for
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / CONFIG, dict(config))


def write_own(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Any
) -> None:
    """Write an adapter that only kifuse knows.

    Args:
        folder: Where; replaced if it is there.
        description: What it is, for JSON.
        tensors: What was learned, by name.
        model: The model, which tells what its base is called.
    """
    config = {
        "format": OWN_FORMAT,
        "version": VERSION,
        **description,
        "base_model_name_or_path": base_name(model),
        "tensors": len(tensors),
        "load_with": "kifuse.load_adapter(model, folder)",
    }
    kept = {name: tensor.detach() for name, tensor in tensors.items()}
    replace_folder(folder, lambda partial: write_files(partial, config, kept))


def base_name(model: Any) -> str:
    """What a model's base is called, or an empty text."""
    return getattr(getattr(model, "config", None), "name_or_path", "") or ""


def refuse_sizes(file: Path, settings: Any, shapes: Iterable[Iterable[int]]) -> None:
    """Refuse whole numbers among the settings of an adapter that are larger than its tensors, and no size.

    Args:
        file: That holds them.
        settings: The settings.
        shapes: Of the weights beside them.

    Raises:
        ModelError: There is one; a model of that size would be built before the weights are looked at.
    """
    largest = max([1024, *(size for shape in shapes for size in shape)])
    for number in _whole_numbers(settings):
        if not 0 <= number <= largest:
            raise ModelError(
                f"{file}: found {number}, expected sizes from 0 to {largest}: {WEIGHTS} holds no larger "
                "tensor."
            )


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(inner)


def refuse_other_tensors(
    file: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    """Refuse a file whose tensors are not those that are expected, by name and shape.

    Raises:
        ModelError: They are not; one that differs is named.
    """
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"{file}: made for another model or other modules; it does not hold {name!r}.")
        if found[name] != shape:
            raise ModelError(f"{file}: {name!r} has shape {found[name]}, expected {shape} for this model.")
    for name in found:
        if name not in expected:
            raise ModelError(f"{file}: made for another model; it holds {name!r}, not known here.")
