"""Where the memory's examples come from beside the tasks' own: the section `memory` of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kifuse.config.schema import MemoryConfig
from kifuse.errors import ConfigError, DataError
from kifuse.io.storage import sha256_file
from kifuse.methods.base import Method
from kifuse.methods.general_data import GeneralData, KeptInstead, MixedIn
from kifuse.methods.generated import BroughtSamples
from kifuse.registry import build_method
from kifuse.tasks.overlaps import Inputs
from kifuse.tasks.readers import read_task
from kifuse.tasks.readers.text_files import read_rows
from kifuse.tasks.task import Example


def refuse_source(memory: MemoryConfig, method: Method, name: str) -> None:
    """Refuse settings of the memory that contradict each other or would change nothing.

    Args:
        memory: The section `memory`.
        method: The method of the run.
        name: The method's name.

    Raises:
        ConfigError: They are such settings.
    """
    if memory.source != "real" and "kept" in method.needs:
        raise ConfigError(
            f"memory.source: {memory.source!r} does not work with method {name!r}, which stores something "
            "with each kept example of the task. Use memory.source: real."
        )
    if memory.samples is not None and (memory.source != "generated" or method.data_class != "real replay"):
        raise ConfigError(
            f"memory.samples: found {memory.samples} with memory.source {memory.source!r} and method "
            f"{name!r}, whose class is {method.data_class!r}; samples replace what the model would write. "
            "Use them with memory.source: generated and a method of the class 'real replay', such as "
            "replay."
        )
    used = memory.source == "generic" or memory.generic_share > 0
    if used and memory.generic is None:
        raise ConfigError(
            f"memory.generic: found none with memory.source {memory.source!r} and memory.generic_share "
            f"{memory.generic_share}, expected a file or folder of general data, such as general.jsonl."
        )
    if memory.generic is not None and not used:
        raise ConfigError(
            f"memory.generic: {memory.generic} would not be used. Mix it in with memory.generic_share: "
            "0.05, or keep it in place of the tasks' examples with memory.source: generic."
        )


def sources(method: Method, memory: MemoryConfig) -> list[Method]:
    """Choose the methods whose hooks see a task's examples as texts, beside the run's own method.

    Args:
        method: The method of the run.
        memory: The section `memory`.

    Returns:
        The method that writes or brings the memory if the source is not `real`, and the one that mixes
        general data in.

    Raises:
        DataError: The samples or the general data cannot be read.
    """
    found, replays = list[Method](), method.data_class == "real replay"
    general = None if memory.generic is None else read_general(memory.generic)
    if replays and memory.source == "generic" and general:
        found.append(KeptInstead(*general))
    elif replays and memory.source == "generated" and memory.samples is not None:
        samples = read_samples(memory.samples)
        found.append(BroughtSamples(samples, str(memory.samples), sha256_file(memory.samples)))
    elif replays and memory.source == "generated":
        found.append(build_method("generated-replay"))
    if general and memory.generic_share:
        found.append(MixedIn(*general, memory.generic_share))
    return found


def read_general(path: Path) -> tuple[Sequence[Example], dict[str, str]]:
    """Read general data, in any form that a task may have.

    Args:
        path: A task's folder or file; if it has splits, the training examples are read.

    Returns:
        The examples, and the path with their SHA-256 for the record.

    Raises:
        DataError: It cannot be read, or has no training examples.
    """
    task = read_task(path)
    if not task.train:
        raise DataError(f"memory.generic: {path} holds no training examples, expected some to draw from.")
    return task.train, {"file": str(path), "sha256": task.split_hash("train")}


def general_inputs(found: Sequence[Method]) -> dict[str, Inputs]:
    """Hashes of the inputs of general data, in the form of a task's training inputs, by its key.

    Args:
        found: The `sources` of a run; all that draw from general data draw from the same data.
    """
    rows = next((each.rows for each in found if isinstance(each, GeneralData)), ())
    return {"memory.generic": {"train": [row.input_hash() for row in rows]}} if rows else {}


def read_samples(file: Path) -> dict[str, list[tuple[str, str]]]:
    """Read samples that a user brings: rows with the texts `task`, `input` and `output`.

    Args:
        file: A JSON Lines file, or a JSON list.

    Returns:
        Inputs and outputs, by the name of their task.

    Raises:
        DataError: The file cannot be read, or a row lacks one of the texts; the message names file, line and
            key.
    """
    rows = read_rows(file)
    if isinstance(rows, dict):
        raise DataError(f"{file}: holds one object, expected rows with 'task', 'input' and 'output'.")
    found: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        text, answer = (row.get_text(key, empty=True).strip() for key in ("input", "output"))
        found.setdefault(row.get_text("task"), []).append((text, answer))
    return found


def writes_memory(found: Sequence[Method]) -> bool:
    """Whether one of these methods makes what the memory holds, so that it holds no real examples."""
    return any(type(each).remember is not Method.remember for each in found)
