"""Reads your own data: a folder of tasks, or the folder or file of one task, in any supported format."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kifuse.errors import DataError, KifuseError, counted, did_you_mean
from kifuse.io.storage import read_bytes
from kifuse.tasks.readers import superni
from kifuse.tasks.readers.building import build, check_one_task, grouped
from kifuse.tasks.readers.names import (
    SPLIT_NAMES,
    DataFile,
    data_file,
    elsewise,
    is_arrow,
    listed,
    members,
    parts_of,
    split_of,
    unread,
)
from kifuse.tasks.readers.rows import visible
from kifuse.tasks.readers.settings import Settings, folder_settings
from kifuse.tasks.readers.tables import Table, joined, read_file
from kifuse.tasks.task import SPLITS, Metric, Task

Readers = dict[str, Callable[[], Task]]
_FILES = [f"{name}.jsonl" for names in SPLIT_NAMES.values() for name in names] + ["task.json"]
_PEEK = 1 << 16


class Found(NamedTuple):
    """The tasks of a folder, not yet read, and notes about what belongs to no task."""

    readers: Readers
    passed_over: tuple[str, ...] = ()


def discover(root: Path, given: Settings, metric: Metric = "rouge_l") -> Found:
    """Find the tasks of a folder or a file.

    Args:
        root: A folder of task folders and task files; a folder of split folders, ``train/<task>.csv``; a
            folder of ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``, in any of the formats; or one file.
            In the last two, rows may name their tasks in a field ``task``.
        given: Settings for all tasks.
        metric: The metric of SuperNI's classifications among them.

    Returns:
        For each name, a function that reads the task, and notes about what is not read.

    Raises:
        DataError: If two tasks have the same name, or two files belong to the same split.
    """
    file = data_file(root)
    if file is not None and (file.kind == "arrow" or not root.is_dir()):
        tables, said = file_tables(file)
        return Found(grouped(file.stem, tables, given, said))
    if is_task_folder(root):
        if is_superni(root):
            return Found({root.resolve().name: partial(superni.read, root, metric)})
        tables, said = _folder_tables(root)
        return Found(grouped(root.resolve().name, tables, folder_settings(root, given), said))
    if split_folders(root):
        return _split_folders(root, given)
    return _tasks(root, given, metric)


def is_own(root: Path) -> bool:
    """Whether a path contains data that can be read."""
    if not root.is_dir():
        return data_file(root) is not None
    if is_arrow(root) or is_task_folder(root) or any(not f.path.is_dir() for f in members(root)[0]):
        return True
    folders = [path for path in visible(root.iterdir(), root) if path.is_dir()]
    tasks = any(is_arrow(path) or is_task_folder(path) or _has_data_file(path) for path in folders)
    return tasks or bool(split_folders(root))


def is_task_folder(folder: Path) -> bool:
    """Whether a folder contains a file, or an Arrow folder, with the name of a split."""
    return any(file.split for file in members(folder)[0])


def is_superni(folder: Path) -> bool:
    """Whether a folder's ``train.json`` is an object with a definition and instances."""
    try:
        start = read_bytes(folder / "train.json")[:_PEEK]
    except KifuseError:
        return False
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") and (
        b'"Definition"' in start or b'"Instances"' in start
    )


def split_folders(root: Path) -> dict[str, list[Path]]:
    """Find folders named after splits, such as ``train/``, that contain the files of tasks; by split."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in visible(root.iterdir(), root):
        split = split_of(path.name)
        if split and path.is_dir() and not is_arrow(path) and _holds_data(path) and not is_task_folder(path):
            found[split].append(path)
    return dict(found)


def _holds_data(folder: Path) -> bool:
    return any(not file.path.is_dir() or file.kind == "arrow" for file in members(folder)[0])


def _tasks(root: Path, given: Settings, metric: Metric) -> Found:
    """Find task folders and task files that are side by side."""
    found: Readers = {}
    files, others = members(root)
    single: dict[str, list[DataFile]] = defaultdict(list)
    left: list[Path] = []
    # a folder's name may look like a file's
    folders = [file.path for file in files if file.path.is_dir() and file.kind != "arrow"]
    folders += [path for path in others if path.is_dir()]
    left += [path for path in others if not path.is_dir()]
    for file in files:
        if not file.path.is_dir() or file.kind == "arrow":
            single[file.stem].append(file)

    def add(name: str, path: Path, reader: Callable[[], Task]) -> None:
        if name in found:
            raise DataError(f"{path}: {root} already has a task '{name}'; rename the file or the folder.")
        found[name] = reader

    for path in sorted([*folders, *(files[0].path for files in single.values())]):
        named = next((files for files in single.values() if files[0].path == path), None)
        if named is not None:
            whole = [file for file in named if file.part is None]
            if len(whole) > 1:
                raise DataError(
                    f"{whole[1].path}: {root} already has a task '{named[0].stem}'; rename the file or the "
                    "folder."
                )
            add(named[0].stem, path, partial(_read_file, named, given))
        elif is_superni(path):
            add(path.name, path, partial(superni.read, path, metric))
        elif is_task_folder(path) or _has_data_file(path):
            add(path.name, path, partial(_read_folder, path, given))
        else:
            left.append(path)
    said = _left(root, left)
    return Found(found, said)


def _left(root: Path, left: Sequence[Path]) -> tuple[str, ...]:
    """Name what belongs to no task, and how it could become a task."""
    said = []
    folders = [path for path in left if path.is_dir()]
    if files := [path for path in left if not path.is_dir()]:
        said.append(f"Not read in '{root.name}': {listed(unread(sorted(files), _FILES, root))}.")
    for folder in sorted(folders):
        inside = [path.name for path in visible(folder.iterdir(), folder)] if _readable(folder) else []
        hints = [hint for name in inside if (hint := elsewise(name) or did_you_mean(name, _FILES))]
        what = f"it holds {listed(inside, 5)}" if inside else "it is empty"
        said.append(
            f"The folder '{folder.name}' in '{root.name}' is not a task, as it has no file called train, "
            f"dev or test, such as train.jsonl; {what}.{hints[0] if hints else ''}"
        )
    return tuple(said)


def _readable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _has_data_file(folder: Path) -> bool:
    """Whether a file is called ``data``, the usual name when the data is not split."""
    return any(file.stem.casefold() == "data" for file in members(folder)[0])


def _read_file(files: Sequence[DataFile], given: Settings) -> Task:
    tables, said = file_tables(*files)
    name = files[0].stem
    check_one_task(name, tables, given)
    return build(name, tables, given, said)


def _read_folder(folder: Path, given: Settings) -> Task:
    tables, said = _folder_tables(folder)
    settings = folder_settings(folder, given)
    check_one_task(folder.name, tables, settings)
    return build(folder.name, tables, settings, said)


def file_tables(*files: DataFile) -> tuple[dict[str, Table], list[str]]:
    """Read the only file of a task, which may have parts and may contain several splits.

    Args:
        files: The file, or its parts.

    Returns:
        Rows by split, and notes about what was not read.

    Raises:
        DataError: If a file is wrong or a part is missing.
    """
    said: list[str] = []
    if len(files) == 1 and files[0].part is not None:
        number, count = files[0].part
        said.append(f"'{files[0].path.name}' is part {number} of {count}; the others were not read.")
        parts: Sequence[DataFile] = files
    else:
        parts = parts_of(files, f"task '{files[0].stem}'")
    found: dict[str, list[Table]] = defaultdict(list)
    for part in parts:
        for name, table in read_file(part).items():
            found[name].append(table)
    named = {name: joined(tables) for name, tables in found.items()}
    splits, unused = by_split(named, str(files[0].path))
    return splits, [*said, *unused]


def by_split(named: Mapping[str, Table], where: str) -> tuple[dict[str, Table], list[str]]:
    """Sort tables into train, dev and test by their names.

    Args:
        named: Tables by the names of their splits in the data; a table without a name is for training.
        where: What holds the tables, for messages.

    Returns:
        Tables by split, and one sentence for each table that is none of the three.

    Raises:
        DataError: If two tables belong to the same split, or no table to any.
    """
    found: dict[str, tuple[str, Table]] = {}
    said = []
    for name, table in named.items():
        split = split_of(name) if name else "train"
        if split is None:
            rows = counted(len(table.rows), "row")
            said.append(f"the split '{name}' ({rows}) was not read.{did_you_mean(name, SPLIT_NAMES)}")
        elif split in found:
            raise DataError(
                f"{where}: the splits '{found[split][0]}' and '{name}' are both {split}; leave one out."
            )
        else:
            found[split] = (name, table)
    if not found:
        known = ", ".join(alias for aliases in SPLIT_NAMES.values() for alias in aliases)
        name = next(iter(named))
        raise DataError(
            f"{where}: found a split '{name}', expected one of {known}.{did_you_mean(name, SPLIT_NAMES)} "
            f"Rename it, or give its rows alone: data['{name}'] in Python, a file train.jsonl on disk."
        )
    return {split: found[split][1] for split in SPLITS if split in found}, said


def _folder_tables(folder: Path) -> tuple[dict[str, Table], list[str]]:
    """Read the files of a task's folder, and name those that belong to no split."""
    files, others = members(folder)
    splits: dict[str, list[DataFile]] = defaultdict(list)
    for file in files:
        if file.split:
            splits[file.split].append(file)
    unnamed = [file for file in files if not file.split]
    if "train" not in splits:
        # "data" is the usual name of a file that is not split
        data = [file for file in unnamed if file.stem.casefold() == "data"]
        if data:
            splits["train"] = data
            unnamed = [file for file in unnamed if file not in data]
    tables = {}
    said = []
    for split in (split for split in SPLITS if split in splits):
        tables[split] = _of_one_split(split, splits[split], f"the split {split}")
    left = [file.path for file in unnamed] + [path for path in others if path.name != "labels.json"]
    if left:
        names = listed(unread(sorted(left), _FILES, folder))
        said.append(f"not read, as they are not names of splits: {names}.")
    return tables, said


def _of_one_split(split: str, files: Sequence[DataFile], what: str) -> Table:
    """Read the parts of a split from files named after it.

    Raises:
        DataError: A file contains another split, or several: its test rows would be trained on.
    """
    found = []
    for part in parts_of(files, what):
        tables = read_file(part)
        if len(tables) > 1 or any(name and split_of(name) != split for name in tables):
            inside = " and ".join(f"'{name}'" for name in tables)
            raise DataError(
                f"{part.path}: holds {inside}, but its name says {split}. Give this file as the path of a "
                f"task, or leave only the {split} rows in it."
            )
        found += tables.values()
    return joined(found)


def _split_folders(root: Path, given: Settings) -> Found:
    """Find tasks in split folders: ``train/<task>.jsonl`` and ``test/<task>.jsonl``."""
    folders = split_folders(root)
    tasks: dict[str, dict[str, list[DataFile]]] = defaultdict(lambda: defaultdict(list))
    left: list[Path] = []
    for split, paths in folders.items():
        for path in paths:
            files, others = members(path)
            left += others
            for file in files:
                tasks[file.stem][split].append(file)
    files, others = members(root)
    inside = {path for paths in folders.values() for path in paths}
    left += [file.path for file in files] + [path for path in others if path not in inside]
    without = [name for name, splits in tasks.items() if not splits.keys() & {"train", "test"}]
    for name in without:
        left += [file.path for files in tasks.pop(name).values() for file in files]
    readers: Readers = {}
    for name in sorted(tasks):
        readers[name] = partial(_read_splits, name, tasks[name], given)
    said = [f"Not read in '{root.name}': {listed(unread(sorted(left), _FILES, root))}."] if left else []
    return Found(readers, tuple(said))


def _read_splits(name: str, splits: Mapping[str, Sequence[DataFile]], given: Settings) -> Task:
    tables = {}
    for split in (split for split in SPLITS if split in splits):
        tables[split] = _of_one_split(split, splits[split], f"the split {split} of task '{name}'")
    check_one_task(name, tables, given)
    return build(name, tables, given)
