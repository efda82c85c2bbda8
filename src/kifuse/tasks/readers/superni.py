"""The layout of Super-NaturalInstructions as split by SAPT: ``<task>/{train,dev,test}.json``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.readers.rows import Row, checked_text, kind_of, visible
from kifuse.tasks.readers.text_files import read_list, read_value
from kifuse.tasks.task import SPLITS, Example, Metric, Task

# A task is a classification when few outputs cover all its rows, each of them many times.
_MOST_LABELS = 20
_ROWS_PER_LABEL = 10
CUE = "\nOutput:"


def discover(root: Path, metric: Metric) -> dict[str, Callable[[], Task]]:
    """Find the tasks of a folder in this layout, without reading them.

    Args:
        root: The folder of all tasks, or of one task.
        metric: The metric of every task; ``"exact_match"`` scores only classifications (as KIF), others by
            ROUGE-L.

    Returns:
        For each name, a function that reads the task.
    """
    if (root / "train.json").is_file():
        return {root.name: partial(read, root, metric)}
    folders = [path.parent for path in visible(root.glob("*/train.json"), root)]
    return {folder.name: partial(read, folder, metric) for folder in folders}


def read(folder: Path, metric: Metric) -> Task:
    """Read one task.

    Args:
        folder: The task's folder.
        metric: The metric of the task; ``"exact_match"`` scores a task with few outputs, free text gets
            ROUGE-L.

    Returns:
        The task; its labels are set when few distinct outputs cover its rows.

    Raises:
        DataError: If a file is missing or a row is wrong.
    """
    splits: dict[str, list[Row]] = {}
    definition = ""
    for split in SPLITS:
        path = folder / f"{split}.json"
        if split == "dev" and not os.path.lexists(path):
            splits[split] = []
            continue
        value = read_value(path)
        if not isinstance(value, dict):
            raise DataError(
                f"{path}: found {kind_of(value)}, expected an object with 'Definition' and 'Instances'."
            )
        if not definition or split == "train":
            definition = _definition(path, value)
        _require(path, value, "Instances", "a list of objects")
        splits[split] = read_list(path, value["Instances"], "Instances")
    # Some published summaries are empty; they are kept, and a warning says so.
    outputs = {
        split: [row.get_references("output", empty=True) for row in rows] for split, rows in splits.items()
    }
    labels = _labels(outputs)
    by_label = bool(labels) and metric == "exact_match"
    chosen = metric if by_label or metric != "exact_match" else "rouge_l"
    head = f"Definition: {definition}\n\n"
    if labels:
        head += f"Option: {', '.join(labels)}\n\n"
    examples = {
        split: tuple(
            Example(head + "Input: ", row.get_text("input"), CUE, references, row.get_id(), where=row.where)
            for row, references in zip(rows, outputs[split], strict=True)
        )
        for split, rows in splits.items()
    }
    return Task(
        name=folder.name,
        train=examples["train"],
        dev=examples["dev"],
        test=examples["test"],
        labels=labels,
        metric=chosen,
        source=f"superni/{folder.name}",
        warnings=tuple(_empty_warnings(folder.name, examples)),
        format="definition and instances in the layout superni",
        metric_why="few outputs, taken as labels" if by_label else "as the benchmark is scored by SAPT",
    )


def _definition(path: Path, value: Mapping[str, Any]) -> str:
    _require(path, value, "Definition", "text")
    found = value["Definition"]
    parts = found if isinstance(found, list) and found else [found]
    return "\n".join(checked_text(part, str(path), "'Definition'") for part in parts).strip()


def _require(path: Path, value: Mapping[str, Any], key: str, expected: str) -> None:
    if key not in value:
        raise DataError(
            f"{path}: the field '{key}' is missing, expected {expected}.{did_you_mean(key, value)}"
        )


def _labels(outputs: Mapping[str, Sequence[tuple[str, ...]]]) -> tuple[str, ...] | None:
    known = {references[0] for references in outputs["train"]}
    few = len(known) <= _MOST_LABELS and len(known) * _ROWS_PER_LABEL <= len(outputs["train"])
    everywhere = all(len(item) == 1 and item[0] in known for rows in outputs.values() for item in rows)
    return tuple(sorted(known)) if few and everywhere and all(label.strip() for label in known) else None


def _empty_warnings(name: str, splits: Mapping[str, Sequence[Example]]) -> list[str]:
    warnings = []
    for split, examples in splits.items():
        empty = sum(not reference.strip() for example in examples for reference in example.references)
        if empty:
            warnings.append(f"Task '{name}': {empty} {split} outputs are empty, kept as published.")
    return warnings
