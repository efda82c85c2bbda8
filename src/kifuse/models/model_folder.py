"""Checks a model's folder before loading, and refuses by name what is broken or far too large to load."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kifuse.errors import KifuseError, ModelError
from kifuse.io.storage import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OTHER_FORMATS = {
    ".bin": "pickled, and may run code when it is read",
    ".pt": "pickled, and may run code when it is read",
    ".pth": "pickled, and may run code when it is read",
    ".ckpt": "of TensorFlow or pickled",
    ".h5": "of TensorFlow",
    ".msgpack": "of Flax",
    ".gguf": "of llama.cpp",
}
"""Descriptions of weight files in other formats, by file suffix."""

MOST_LAYERS = 1000
"""More layers than any model has; each layer takes time to build, even without its weights."""

MOST_EXPERTS = 100_000
"""The same limit for experts, over all layers."""

_LAYERS = re.compile(r"(?:^n|_n|num)_(?:\w+_)?(?:layers?|blocks?)\Z|\A(?:depth|n_layers?)\Z")
_EXPERTS = re.compile(r"num_(?:\w+_)?experts\Z|\An_(?:\w+_)?experts\Z")


def check_config(name: str, folder: Path) -> None:
    """Refuse a `config.json` that is not a configuration, or describes more layers than can be built.

    Args:
        name: The user's name for the model.
        folder: The model's folder.

    Raises:
        ModelError: The configuration is refused; the message names the key.
    """
    if not (folder / CONFIG).is_file():
        adapter = (
            " It holds an adapter; name the base model." if (folder / "adapter_config.json").exists() else ""
        )
        raise ModelError(f"model.name: {name}: not a model folder: it holds no {CONFIG}.{adapter}")
    try:
        config = read_json(folder / CONFIG)
    except KifuseError as error:
        raise ModelError(f"model.name: {name}: not a model folder: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"model.name: {name}: not a model folder: {CONFIG} holds no object.")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"model.name: {name}: holds {CONFIG} and adapter_config.json; name the base model, without an "
            "adapter."
        )
    layers = _largest(config, _LAYERS)
    experts = _largest(config, _EXPERTS)
    for (key, count), most in ((layers, MOST_LAYERS), (experts, MOST_EXPERTS // max(1, layers[1]))):
        if count > most:
            raise ModelError(
                f"model.name: {name}: {CONFIG} says {key}: {count}, expected at most {most}; the file is "
                "damaged, or not of a model."
            )


def check_weights(name: str, folder: Path, parameters: int) -> None:
    """Refuse weights that are not safetensors, are damaged, or are far fewer than the configuration needs.

    name: The user's name for the model.
    folder: The model's folder.
        folder: The model's folder.
        parameters: Number of scalars in the model that `config.json` describes, buffers included.

    Raises:
        ModelError: The weights are refused; the message names the file.
    """
    held = 0
    for file in _weight_files(name, folder):
        held += _scalars(name, file)
    # allow twice as many, so that a later check names a few missing weights
    if parameters > 2 * held + 2**20:
        raise ModelError(
            f"model.name: {name}: {CONFIG} describes a model of {parameters:,} values, its weights hold "
            f"{held:,}. They do not belong together."
        )


def refuse_random(name: str, found: Mapping[str, Any]) -> None:
    """Refuse a model with weights that were drawn at random because its files lack them.

    Args:
        name: The user's name for the model.
        found: What transformers reports about the loading.

    Raises:
        ModelError: Weights are missing, of another shape, or could not be read.
    """
    shapes: list[tuple[str, Any, Any]] = sorted(found.get("mismatched_keys") or ())
    missing = sorted(found.get("missing_keys") or ())
    problems = [
        f"{key} has the shape {tuple(has)}, expected {tuple(wanted)}" for key, has, wanted in shapes[:1]
    ]
    problems += [f"{key} is missing" for key in missing[:1]]
    problems += [str(each).splitlines()[0] for each in list(found.get("error_msgs") or ())[:1]]
    count = len(shapes) + len(missing)
    if problems:
        more = f" ({count} tensors are wrong or missing)" if count > 1 else ""
        raise ModelError(
            f"model.name: {name}: the weights do not fit {CONFIG}: {', and '.join(problems)}{more}. Missing "
            "weights would be random. Get the model's files again."
        )


def unused(found: Mapping[str, Any]) -> str:
    """Name the weights that the model has no place for, in a sentence; empty if there are none."""
    names = sorted(found.get("unexpected_keys") or ())
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} tensors of the model's files have no place in it and are not used: {shown}"


def _largest(config: Mapping[str, Any], pattern: re.Pattern[str]) -> tuple[str, int]:
    """The largest count under a key that matches the pattern, in the configuration or a part of it."""
    counts = [(key, value) for key, value in _integers(config) if pattern.search(key)]
    return max(counts, key=lambda each: each[1], default=("", 0))


def _integers(config: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield key, value
        elif isinstance(value, Mapping) and depth < 8:
            yield from _integers(value, depth + 1)


def _weight_files(name: str, folder: Path) -> list[Path]:
    """The weight files; checks that all of them exist."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        others = [
            p for p in sorted(folder.iterdir()) if p.suffix in OTHER_FORMATS and p.stem != "training_args"
        ]
        if not others:
            raise ModelError(
                f"model.name: {name}: holds no weights; expected {WEIGHTS}, or {INDEX} and its files."
            )
        raise ModelError(
            f"model.name: {name}: holds no {WEIGHTS}; {others[0].name} is "
            f"{OTHER_FORMATS[others[0].suffix]}. kifuse reads weights as safetensors only. If you trust its "
            "authors, convert it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(another), "
            "the tokenizer likewise."
        )
    try:
        index = read_json(folder / INDEX)
    except KifuseError as error:
        raise ModelError(f"model.name: {name}: {error}") from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(f, str) for f in places.values()):
        raise ModelError(
            f"model.name: {name}: {INDEX} holds no weight_map of tensors and their files; it is damaged."
        )
    files = sorted(set(places.values()))
    for each in files:
        if Path(each).name != each or not each.endswith(".safetensors"):
            raise ModelError(
                f"model.name: {name}: {INDEX} names {each!r}, expected files of this folder that end with "
                ".safetensors."
            )
        if not (folder / each).is_file():
            raise ModelError(f"model.name: {name}: {each} is missing, which {INDEX} names.")
    return [folder / each for each in files]


def _scalars(name: str, file: Path) -> int:
    """The largest number of scalars that a weight file may hold; a packed integer counts one per bit."""
    from safetensors import SafetensorError, safe_open

    count = 0
    try:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is not a mapping
                part = tensors.get_slice(key)
                dtype = part.get_dtype()
                packed = int(dtype[1:]) if dtype[0] in "IU" and dtype[1:].isdecimal() else 1
                count += math.prod(part.get_shape()) * packed
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model.name: {name}: {file.name} is damaged or not a safetensors file ({error}). Get it again."
        ) from error
    return count
