"""The layout of the KIF and Recurrent-KIF authors: ``{train,dev,test}/<task>.json`` with finished prompts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kifuse.errors import DataError
from kifuse.tasks.readers.rows import Row, check_outputs, visible
from kifuse.tasks.readers.text_files import read_list
from kifuse.tasks.task import SPLITS, Example, Task

# SNLI and MNLI give this label to a pair on which the annotators did not agree.
NO_GOLD_LABEL = "-"
_OPTIONS = re.compile(r"\bOptions?:")
_CUE = re.compile(r"(?:\A|\r?\n)Answer:\s*\Z")


def discover(root: Path) -> dict[str, Callable[[], Task]]:
    """Find the tasks of a folder in this layout, without reading them.

    Args:
        root: The folder that holds ``train``, ``dev`` and ``test``.

    Returns:
        For each name, a function that reads the task.
    """
    paths = visible((root / "train").glob("*.json"), root)
    return {path.stem: partial(read, root, path.stem) for path in paths}


def read(root: Path, name: str) -> Task:
    """Read one task.

    Args:
        root: The folder that holds ``train``, ``dev`` and ``test``.
        name: Name of the task's files.

    Returns:
        The task; its labels are those of the ``Option:`` lists in the prompts, or None if a prompt has no
        such list.

    Raises:
        DataError: If a file is missing or a row is wrong.
    """
    splits: dict[str, tuple[Example, ...]] = {}
    warnings: list[str] = []
    options_of: dict[str, dict[str, None]] = {}
    for split in SPLITS:
        path = root / split / f"{name}.json"
        if split == "dev" and not os.path.lexists(path):
            splits[split] = ()
            continue
        examples, unlabelled = [], 0
        for row in read_list(path):
            example = _example(row)
            if example.head not in options_of:
                options_of[example.head] = dict.fromkeys(parse_options(example.head))
            options = options_of[example.head]
            if split == "dev" and example.target == NO_GOLD_LABEL and options:
                unlabelled += 1
            elif options:
                check_outputs(row.where, "output", example.references, options)
            examples.append(example)
        splits[split] = tuple(examples)
        if unlabelled:
            warnings.append(no_gold_warning(name, split, unlabelled))
    labels = tuple(dict.fromkeys(option for options in options_of.values() for option in options))
    closed = all(options_of.values())
    return Task(
        name=name,
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        labels=labels if closed else None,
        metric="exact_match" if closed else "rouge_l",
        source=f"long_sequence/{name}",
        warnings=tuple(warnings),
        format="finished prompts in the layout long_sequence",
        metric_why="labels are in the prompts" if closed else "free text",
    )


def no_gold_warning(name: str, split: str, count: int) -> str:
    """Write the warning about examples without a gold label."""
    return f"Task '{name}': {count} {split} examples have the output '-' (no gold label), kept as published."


def part(text: str) -> tuple[str, str, str]:
    """Split a finished prompt into its first line, its text and its final ``Answer:``.

    Args:
        text: The whole prompt.

    Returns:
        Head, body and tail; joined, they give the prompt again.
    """
    head, newline, _ = text.partition("\n")
    head = head + newline if newline else ""
    body, tail = part_cue(text[len(head) :])
    return head, body, tail


def part_cue(text: str) -> tuple[str, str]:
    """Split a text before a last line ``Answer:``; that line and the newline before it come second."""
    cue = _CUE.search(text)
    return (text[: cue.start()], text[cue.start() :]) if cue else (text, "")


def parse_options(line: str) -> tuple[str, ...]:
    """Return the options that a line ending in ``Option: a, b, c.`` lists; empty if it lists none."""
    # A single pattern to the end of the line would take endless time if the list has many spaces.
    found = _OPTIONS.search(line)
    listed = line[found.end() :].strip() if found else ""
    options = (listed.removesuffix(".") or listed).split(", ")
    return tuple(option.strip() for option in options) if listed else ()


def _example(row: Row) -> Example:
    text = row.get_text("input")
    references = row.get_references("output")
    head, body, tail = part(text)
    if not body.strip() and not head.strip():
        raise DataError(f"{row.where}: 'input' holds only 'Answer:', expected a text.")
    return Example(head, body, tail, references, row.get_id(), where=row.where)
