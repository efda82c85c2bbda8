"""The layout of O-LoRA and MIGU: ``<CATEGORY>/<task>/{train,dev,test,labels}.json``."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.readers.long_sequence import NO_GOLD_LABEL, no_gold_warning
from kifuse.tasks.readers.rows import check_outputs, checked_labels, visible
from kifuse.tasks.readers.text_files import read_list, read_value
from kifuse.tasks.task import SPLITS, Example, Task

_CHOOSE = " Choose one from the option.\n"
INSTRUCTIONS = {
    "TC": "What is the topic of the following paragraph?" + _CHOOSE,
    "SC": "What is the sentiment of the following paragraph?" + _CHOOSE,
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"?' + _CHOOSE,
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning?' + _CHOOSE,
    "BoolQA": "According to the following passage, is the question true or false?" + _CHOOSE,
    "MultiRC": "According to the following passage and question, is the candidate answer true or false?"
    + _CHOOSE,
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence?"
    + _CHOOSE,
    # The sentences of COPA contain the question and the options themselves; the papers add nothing.
    "COPA": "",
}
CUE = "\nAnswer:"


def discover(root: Path) -> dict[str, Callable[[], Task]]:
    """Find the tasks of a folder in this layout, without reading them.

    Args:
        root: The folder of all categories, of one category, or of one task.

    Returns:
        For each name, a function that reads the task.

    Raises:
        DataError: If two categories contain a task with the same name.
    """
    if (root / "train.json").is_file():
        return {root.name: partial(read, root)}
    found: dict[str, Path] = {}
    for path in visible([*root.glob("*/train.json"), *root.glob("*/*/train.json")], root):
        folder = path.parent
        if folder.name in found:
            raise DataError(
                f"{folder}: there is already a task of this name in {found[folder.name]}; rename one of them."
            )
        found[folder.name] = folder
    return {name: partial(read, found[name]) for name in sorted(found)}


def read(folder: Path) -> Task:
    """Read one task.

    Args:
        folder: The task's folder, inside a folder named after its category.

    Returns:
        The task, with the prompt that the papers use for its category.

    Raises:
        DataError: If the category is unknown, a file is missing or a row is wrong.
    """
    category = folder.resolve().parent.name
    if category not in INSTRUCTIONS:
        raise DataError(
            f"{folder}: the category '{category}' has no known instruction, expected one of "
            f"{', '.join(INSTRUCTIONS)}.{did_you_mean(category, INSTRUCTIONS)}"
        )
    labels_file = folder / "labels.json"
    labels = checked_labels(read_value(labels_file), str(labels_file), "the list of labels")
    known = dict.fromkeys(labels)
    instruction = INSTRUCTIONS[category]
    head = f"{instruction}Option: {', '.join(labels)} \n" if instruction else ""
    splits: dict[str, tuple[Example, ...]] = {}
    warnings: list[str] = []
    for split in SPLITS:
        path = folder / f"{split}.json"
        if split == "dev" and not os.path.lexists(path):
            splits[split] = ()
            continue
        examples, unlabelled = [], 0
        for row in read_list(path):
            label = row.get_text("label")
            if split != "train" and label == NO_GOLD_LABEL and label not in known:
                unlabelled += 1
            else:
                check_outputs(row.where, "label", [label], known)
            examples.append(
                Example(head, row.get_text("sentence"), CUE, (label,), row.get_id(), where=row.where)
            )
        splits[split] = tuple(examples)
        if unlabelled:
            warnings.append(no_gold_warning(folder.name, split, unlabelled))
    return Task(
        name=folder.name,
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        labels=labels,
        metric="exact_match",
        source=f"cl_benchmark/{category}/{folder.name}",
        warnings=tuple(warnings),
        format="sentences and labels in the layout cl_benchmark",
        metric_why="labels are given",
    )
