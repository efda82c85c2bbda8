"""Your own data as JSON Lines: ``<task>/{train,dev,test}.jsonl`` or ``<task>.jsonl``."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, cast

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.readers.chat import read_messages, with_instruction
from kifuse.tasks.readers.long_sequence import part_cue
from kifuse.tasks.readers.rows import (
    Row,
    check_outputs,
    checked_labels,
    checked_text,
    kind_of,
    read_lines,
    read_value,
    visible,
)
from kifuse.tasks.task import METRICS, SPLITS, Conversation, Example, Metric, Task, check_task_name

CUE = "\nAnswer:"
_SETTINGS = ("instruction", "labels", "list_labels", "metric")
# Notes for people; they never reach the model.
_NOTES = ("title", "about")
_Rows = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class _Settings:
    instruction: str | None = None
    labels: tuple[str, ...] | None = None
    list_labels: bool = False
    metric: Metric | None = None

    @cached_property
    def known(self) -> dict[str, None]:
        """The labels, to look one up at once."""
        return dict.fromkeys(self.labels or ())


def discover(root: Path) -> dict[str, Callable[[], Task]]:
    """Find the tasks of a folder or a file in this layout.

    Args:
        root: A folder of task folders and task files; a folder of ``train.jsonl``, ``dev.jsonl`` and
            ``test.jsonl``; or one file. Rows of the last two may name their tasks in a field ``task``.

    Returns:
        A function that reads the task, for each name.

    Raises:
        DataError: If two tasks have one name.
    """
    if root.is_file():
        return _grouped(root.stem, {"train": read_lines(root)}, _Settings())
    if splits := _split_files(root):
        rows = {split: read_lines(path) for split, path in splits.items()}
        return _grouped(root.resolve().name, rows, _read_settings(root))
    found: dict[str, Callable[[], Task]] = {}
    for path in visible(root.iterdir(), root):
        if path.is_dir() and _split_files(path):
            name, reader = path.name, partial(_read_folder, path)
        elif path.suffix == ".jsonl" and not path.is_dir():
            name, reader = path.stem, partial(_read_file, path)
        else:
            continue
        if name in found:
            raise DataError(f"{path}: a task '{name}' is in {root} already; rename the file or the folder.")
        found[name] = reader
    return found


def task_from_rows(
    name: str,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    instruction: str | None = None,
    labels: Sequence[str] | None = None,
    list_labels: bool = False,
    metric: Metric | None = None,
) -> Task:
    """Make a task of rows that are in memory already.

    Args:
        name: The task's name.
        splits: Rows of ``train``, ``dev`` and ``test`` as in the files; a ``datasets.Dataset`` will do. The
            fields ``prompt`` and ``completion`` are taken for ``input`` and ``output``.
        instruction: Stands before each input that brings none of its own.
        labels: The closed set of outputs, or None for free text.
        list_labels: Whether the labels stand in the prompt.
        metric: How predictions are scored; None: exact match with labels, else ROUGE-L.

    Returns:
        The task.

    Raises:
        DataError: A row is wrong; says which.
    """
    rows = {
        split: [_row(f"{name}, {split} row {n}", row) for n, row in enumerate(members, 1)]
        for split, members in splits.items()
    }
    settings = _Settings(
        instruction=instruction,
        labels=None if labels is None else checked_labels(list(labels), name, "labels"),
        list_labels=list_labels,
        metric=metric,
    )
    return _build(name, rows, settings)


def _row(where: str, row: Any) -> Row:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: found {kind_of(row)}, expected a row with the fields input and output.")
    if "prompt" in row and "completion" in row and "input" not in row:
        row = {**row, "input": row["prompt"], "output": row["completion"]}
    return Row(where, row)


def is_jsonl(root: Path) -> bool:
    """Tell whether a path holds anything in this layout."""
    if root.is_file():
        return root.suffix == ".jsonl"
    return any(root.glob("*.jsonl")) or any(root.glob("*/*.jsonl"))


def _split_files(folder: Path) -> dict[str, Path]:
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    # What is there but cannot be read must be said: a task without its test examples is another task.
    return {split: path for split, path in paths.items() if os.path.lexists(path)}


def _read_folder(folder: Path) -> Task:
    rows = {split: read_lines(path) for split, path in _split_files(folder).items()}
    return _one_task(folder.name, rows, _read_settings(folder))


def _read_file(path: Path) -> Task:
    return _one_task(path.stem, {"train": read_lines(path)}, _Settings())


def _one_task(name: str, rows: _Rows, settings: _Settings) -> Task:
    for split in rows.values():
        for row in split:
            if row.values.get("task") is not None and row.get_text("task") != name:
                raise DataError(
                    f"{row.where}: 'task' is '{row.get_text('task')}', expected '{name}', the name of the "
                    f"file or folder; to read several tasks from one file, give that file as the path."
                )
    return _build(name, rows, settings)


def _grouped(name: str, rows: _Rows, settings: _Settings) -> dict[str, Callable[[], Task]]:
    every = [row for split in rows.values() for row in split]
    named = [row for row in every if row.values.get("task") is not None]
    if not named:
        return {name: partial(_build, name, rows, settings)}
    if len(named) < len(every):
        row = next(row for row in every if row.values.get("task") is None)
        raise DataError(f"{row.where}: the field 'task' is missing, expected a name as in the other rows.")
    groups: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for split, members in rows.items():
        for row in members:
            task = row.get_text("task")
            try:
                check_task_name(task)
            except DataError as error:
                raise DataError(f"{row.where}: 'task': {error}") from error
            groups[task][split].append(row)
    return {task: partial(_build, task, members, settings) for task, members in groups.items()}


def _read_settings(folder: Path) -> _Settings:
    path = folder / "task.json"
    if not os.path.lexists(path):
        return _Settings()
    value = read_value(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: found {kind_of(value)}, expected an object with {', '.join(_SETTINGS)}.")
    for key in value:
        if key not in (*_SETTINGS, *_NOTES):
            raise DataError(
                f"{path}: unknown key '{key}', expected {', '.join(_SETTINGS)}.{did_you_mean(key, _SETTINGS)}"
            )
    metric = value.get("metric")
    if metric is not None and metric not in METRICS:
        raise DataError(
            f"{path}: 'metric' is {metric!r}, expected one of {', '.join(METRICS)}."
            f"{did_you_mean(str(metric), METRICS)}"
        )
    instruction, labels = value.get("instruction"), value.get("labels")
    list_labels = value.get("list_labels", False)
    if not isinstance(list_labels, bool):
        raise DataError(f"{path}: 'list_labels' is {kind_of(list_labels)}, expected true or false.")
    if list_labels and labels is None:
        raise DataError(f"{path}: 'list_labels' is true without 'labels', expected a list of labels.")
    return _Settings(
        instruction=None if instruction is None else checked_text(instruction, str(path), "'instruction'"),
        labels=None if labels is None else checked_labels(labels, str(path), "'labels'"),
        list_labels=list_labels,
        metric=cast("Metric | None", metric),
    )


def _build(name: str, rows: _Rows, settings: _Settings) -> Task:
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    option_sets: set[tuple[str, ...] | None] = set()
    for split, members in rows.items():
        for row in members:
            example, options = _example(row, settings)
            splits[split].append(example)
            option_sets.add(options)
    if not splits["train"] and not splits["test"]:
        where = next((row.where for members in rows.values() for row in members), name)
        raise DataError(f"{where}: task '{name}' has only dev examples, expected a train or a test file.")
    labels = settings.labels
    if labels is None and len(option_sets) == 1:
        labels = next(iter(option_sets))
    closed = None not in option_sets
    return Task(
        name=name,
        train=tuple(splits["train"]),
        dev=tuple(splits["dev"]),
        test=tuple(splits["test"]),
        labels=labels,
        metric=settings.metric or ("exact_match" if closed else "rouge_l"),
        source=f"jsonl/{name}",
    )


def _example(row: Row, settings: _Settings) -> tuple[Example, tuple[str, ...] | None]:
    """Build the example of a row; also give the options it chooses from, None for free text.

    The options of a row stand in its prompt; the labels of the task do where ``list_labels`` asks for it. An
    input without instruction and options stays as it is, else ``Answer:`` closes it.
    """
    if "messages" in row.values:
        lead, body, tail, target = read_messages(row)
        references, key = (target,), "messages"
    else:
        # With an instruction the text may be empty, as in instruction data where the task is all.
        instructed = settings.instruction is not None or row.values.get("instruction") is not None
        lead, (body, tail) = "", part_cue(row.get_text("input", empty=instructed))
        references, key = row.get_references("output"), "output"
    given = row.values.get("options")
    shown = None if given is None else checked_labels(given, row.where, "'options'")
    options = settings.known or shown
    if options:
        check_outputs(row.where, key, references, options)
    if shown and settings.known:
        check_outputs(row.where, "options", shown, settings.known)
    instruction = settings.instruction
    if row.values.get("instruction") is not None:
        instruction = row.get_text("instruction")
    head = _head(instruction, shown or (settings.labels if settings.list_labels else None))
    cue_added = bool(head and not tail)
    if cue_added:
        tail = CUE if body else CUE.lstrip()
    chat = None
    if key == "messages":
        chat = Conversation.of(with_instruction(row.values["messages"], head), row.values.get("tools"))
    example = Example(head + lead, body, tail, references, row.get_id(), chat, cue_added)
    return example, shown or settings.labels


@lru_cache(maxsize=64)  # one text for all rows: else a long list of labels would be in memory for each
def _head(instruction: str | None, options: tuple[str, ...] | None) -> str:
    lines = [instruction.strip()] if instruction else []
    if options:
        lines.append(f"Option: {', '.join(options)}")
    return "\n".join(lines) + "\n" if lines else ""
