"""An adapter on disk: the folder that a task leaves behind. Reading and writing it needs no model.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. For the PEFT kinds it is a standard PEFT
adapter, which `PeftModel.from_pretrained(base, folder)` loads. Full fine-tuning changes the model's own
weights, and `osf` puts all that it learned into the adapted weights. For these two the JSON says
`"format": "kifuse full weights"`, and the other file holds the trained weights under their names in the
model. They load with

    model.load_state_dict(safetensors.torch.load_file(folder / "adapter_model.safetensors"), strict=False)

`strict=False` is needed because the file does not hold the weights that stayed frozen, nor the second names
of tied weights.

If a method brings its own adapter, which PEFT does not know, the JSON says `"format": "kifuse adapter"` and
names the adapter's class; `kifuse.load_adapter(model, folder)` puts it on a model.
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
    """The contents of an adapter folder.

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
        """The file that holds the weights."""
        return self.path / WEIGHTS


def is_full(config: Mapping[str, Any]) -> bool:
    """Whether an `adapter_config.json` belongs to full fine-tuning."""
    return config.get("format") == FULL_FORMAT


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether an `adapter_config.json` belongs to an adapter that only kifuse can load."""
    return config.get("format") == OWN_FORMAT


def read_adapter(folder: Path) -> AdapterFolder:
    """Read an adapter folder of any kind.

    Args:
        folder: A folder that kifuse or PEFT wrote.

    Raises:
        ModelError: The folder does not exist, holds no adapter, is damaged, or comes from another version.
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
        ModelError: The file is not an adapter's configuration, or comes from another version of kifuse.
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
            f"{file}: version is {config.get('version')!r}, expected {VERSION}; it was written by another "
            "version of kifuse. Use that version."
        )
    return config


def write_files(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the two files of an adapter into a folder.

    Args:
        folder: The folder to write into.
        config: The contents of `adapter_config.json`.
        tensors: The weights, by their names in the file.
    """
    # transformers and PEFT write this metadata, and some readers look for it
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / CONFIG, dict(config))


def write_own(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Any
) -> None:
    """Write an adapter that only kifuse can load.

    Args:
        folder: Where to write; an existing folder is replaced.
        description: What the adapter is, for JSON.
        tensors: What was learned, by name.
        model: The model; it tells the name of its base.
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
    """The name of a model's base, or an empty text."""
    return getattr(getattr(model, "config", None), "name_or_path", "") or ""


def refuse_sizes(file: Path, settings: Any, shapes: Iterable[Iterable[int]]) -> None:
    """Refuse adapter settings with a whole number that is negative or larger than any size of its tensors.

    Args:
        file: The file that holds the settings.
        settings: The settings.
        shapes: Shapes of the weights beside them.

    Raises:
        ModelError: There is such a number. It is refused because a model of that size would be built before
            the weights are looked at.
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
    """Refuse a file whose tensors differ from the expected ones in name or shape.

    Raises:
        ModelError: They differ; the message names one that does.
    """
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(
                f"{file}: made for another model or other modules, as it does not hold {name!r}."
            )
        if found[name] != shape:
            raise ModelError(f"{file}: {name!r} has shape {found[name]}, expected {shape} for this model.")
    for name in found:
        if name not in expected:
            raise ModelError(
                f"{file}: made for another model, as it holds {name!r}, which this model does not have."
            )
