"""Readers of the published benchmark layouts and of your own data in many formats."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from kifuse.errors import DataError, did_you_mean
from kifuse.scoring.superni import gpt2
from kifuse.tasks.readers import cl_benchmark, long_sequence, own, superni
from kifuse.tasks.readers.building import grouped
from kifuse.tasks.readers.hub import PREFIX, hub_id, hub_tables
from kifuse.tasks.readers.names import ENDINGS, data_file, listed, no_data
from kifuse.tasks.readers.own import Found
from kifuse.tasks.readers.rows import visible
from kifuse.tasks.readers.settings import OF_STREAM, Settings, checked_settings
from kifuse.tasks.task import SPLITS, Metric, Task, TaskStream, check_different, check_task_name

Layout = Literal["long_sequence", "cl_benchmark", "superni", "jsonl"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
SUPERNI_METRICS = (
    "rouge_l",
    "exact_match",
    "superni_rouge_l",
    "superni_rouge_l_xlingual",
    "superni_exact_match",
)
"""The metrics that may score the tasks of SuperNI."""
_NUMBERED = re.compile(r"task0*(\d+)(?:_|\Z)")
_NUMBER = re.compile(r"(?:task)?0*(\d+)\Z")

__all__ = ["LAYOUTS", "Layout", "detect_layout", "read_stream", "read_task"]


def read_stream(
    path: str | os.PathLike[str],
    order: Sequence[str] | None = None,
    layout: str = "auto",
    *,
    superni_metric: Metric = "rouge_l",
    name: str | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> TaskStream:
    """Read a stream of tasks.

    Links are followed wherever they lead, because download caches keep data behind links. Hidden files and
    folders are skipped.

    Args:
        path: A folder in one of the layouts, one file, or a data set of the hub: ``owner/name``, or
            ``hub:owner/name:configuration``.
        order: Names of the tasks to read, in order; letter case does not matter, and a SuperNI task may be
            named by its number, such as ``"1572"``. None reads all tasks, sorted by name or in the order of a
            file.
        layout: ``"long_sequence"``, ``"cl_benchmark"``, ``"superni"``, ``"jsonl"`` for your own data in any
            format, or ``"auto"`` to recognise the layout.
        superni_metric: The metric of tasks in the layout ``"superni"``, one of `SUPERNI_METRICS`. As in KIF,
            ``"exact_match"`` only scores classifications by exact match, and other tasks by ROUGE-L.
        name: Name of the stream; None takes the folder's name.
        format: Format of the rows of your own data, such as ``"alpaca"``; None recognises it from their
            fields.
        columns: Names of your data's own columns by their contents: ``{"input": "question"}``.

    Returns:
        The tasks in the requested order, and the files that were skipped.

    Raises:
        DataError: If the folder, a file, a row or a name in the order is wrong, or something other than a
            plain file is in the place of a file; the message says which, and what to do.
    """
    root = _root(path)
    found, passed_over = _discover(root, layout, superni_metric, _settings(root, format, columns))
    if order is not None:
        if isinstance(order, str) or not all(isinstance(item, str) for item in order):
            raise DataError(f"The order of tasks is {order!r}, expected a list of names.")
        if not order:
            raise DataError("The order of tasks is empty, expected at least one name.")
    names = list(found) if order is None else [_resolve(item, found, root) for item in order]
    if order is not None and (twice := [item for item, count in Counter(names).items() if count > 1]):
        raise DataError(f"The order of tasks names '{twice[0]}' twice, expected each task once.")
    check_different(names, f"{root}: the stream")
    stream_name = name or ascii(root.resolve().stem)[1:-1]
    return TaskStream(stream_name, tuple(_read(item, found, root) for item in names), passed_over)


def read_task(
    path: str | os.PathLike[str],
    name: str | None = None,
    layout: str = "auto",
    *,
    superni_metric: Metric = "rouge_l",
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Task:
    """Read one task.

    Args:
        path: The task's own folder or file; with ``name`` also a folder of several tasks.
        name: Which task of the folder to read.
        layout: As in :func:`read_stream`.
        superni_metric: As in :func:`read_stream`.
        format: As in :func:`read_stream`.
        columns: As in :func:`read_stream`.

    Returns:
        The task.

    Raises:
        DataError: If there is no such task, if there are several tasks but no name was given, or if the data
            is wrong.
    """
    return task_with(path, _settings(path, format, columns), name, layout, superni_metric)


def task_with(
    path: str | os.PathLike[str],
    settings: Settings,
    name: str | None = None,
    layout: str = "auto",
    superni_metric: Metric = "rouge_l",
) -> Task:
    """Read one task as `read_task` does, with settings that a ``task.json`` may complete."""
    root = _root(path)
    found, _ = _discover(root, layout, superni_metric, settings)
    if name is None and len(found) > 1:
        raise DataError(
            f"{root}: holds {len(found)} tasks, expected one. Name one of them: {', '.join(found)}."
        )
    return _read(next(iter(found)) if name is None else _resolve(name, found, root), found, root)


def detect_layout(path: str | os.PathLike[str]) -> Layout:
    """Recognise the layout of a folder or file.

    Args:
        path: The folder or file.

    Returns:
        The layout.

    Raises:
        DataError: If nothing is there, or no layout fits; the message suggests a folder inside that fits.
    """
    root = _root(path)
    with _readable(root):
        return _detect(root)


def _detect(root: Path) -> Layout:
    if not root.exists():
        hub = f" A data set of the hub is named {PREFIX}owner/name." if len(root.parts) == 2 else ""
        raise DataError(f"{root}: no such file or folder.{_near_path(root)}{hub}")
    found = _look(root)
    if found is not None:
        return found
    if not root.is_dir():
        raise DataError(
            f"{root}: not a known layout, expected a folder or a file that ends in one of {ENDINGS}."
            f"{no_data(root)}"
        )
    folders = [child for child in visible(root.iterdir(), root) if child.is_dir()]
    inside = [child.name for child in folders if _look(child) is not None]
    hint = f" These folders inside are: {', '.join(inside)}." if inside else ""
    raise DataError(
        f"{root}: not a known layout, expected train/<task>.json (long_sequence), "
        f"<CATEGORY>/<task>/train.json with labels.json (cl_benchmark), <task>/train.json (superni), "
        f"or <task>/train.jsonl or <task>.jsonl (jsonl; also with the endings {ENDINGS}).{hint}"
    )


def _look(root: Path) -> Layout | None:
    if root.is_dir():
        if any((root / "train").glob("*.json")) and not own.is_arrow(root / "train"):
            return "long_sequence"
        marks = ("labels.json", "*/labels.json", "*/*/labels.json", "*/*/train.json")
        if any(any(root.glob(mark)) for mark in marks):
            return "cl_benchmark"
        if _is_superni(root):
            return "superni"
    return "jsonl" if own.is_own(root) else None


def _is_superni(root: Path) -> bool:
    """Whether all tasks are SuperNI's and nothing else is there; `own` also reads mixed folders."""
    if (root / "train.json").is_file():
        return own.is_superni(root)
    folders = {path.parent for path in visible(root.glob("*/train.json"), root)}
    if not any(own.is_superni(folder) for folder in folders):
        return False
    return all(
        file.path.parent in folders and file.kind == "json"
        for path in visible([*root.glob("*"), *root.glob("*/*")], root)
        if (file := data_file(path)) is not None
    )


def _settings(
    path: str | os.PathLike[str], format: str | None, columns: Mapping[str, str] | None
) -> Settings:
    values = {"format": format, "columns": columns}
    return checked_settings(f"{os.fspath(path)}", values, OF_STREAM)


def _discover(root: Path, layout: str, metric: Metric, settings: Settings) -> Found:
    if layout != "auto" and layout not in LAYOUTS:
        raise DataError(
            f"The layout is '{layout}', expected one of auto, {', '.join(LAYOUTS)}."
            f"{did_you_mean(str(layout), LAYOUTS)}"
        )
    if metric not in SUPERNI_METRICS:
        raise DataError(
            f"superni_metric is {metric!r}, expected one of {', '.join(SUPERNI_METRICS)}."
            f"{did_you_mean(str(metric), SUPERNI_METRICS)}"
        )
    if metric == "superni_rouge_l_xlingual":
        gpt2()
    if (hub := hub_id(root)) is not None and layout in ("auto", "jsonl"):
        name, tables, said = hub_tables(hub)
        return Found(grouped(name, tables, settings, said))
    with _readable(root):
        detected = _detect(root) if layout == "auto" or not root.exists() else layout
        if detected == "long_sequence":
            readers = long_sequence.discover(root)
        elif detected == "cl_benchmark":
            readers = cl_benchmark.discover(root)
        elif detected == "superni":
            readers = superni.discover(root, metric)
        else:
            readers, passed_over = own.discover(root, settings, metric)
        if detected != "jsonl":
            passed_over = _strays(root, detected, readers)
            if settings != Settings(origin=settings.origin):
                raise DataError(
                    f"{root}: found format or columns, but the layout {detected} has fixed fields. Leave "
                    "them out; they are for your own data (layout 'jsonl')."
                )
    if not readers:
        more = " ".join(passed_over)
        raise DataError(f"{root}: holds no task in the layout {detected}; try layout 'auto'. {more}".rstrip())
    return Found(readers, passed_over)


def _strays(root: Path, layout: str, names: Mapping[str, object]) -> tuple[str, ...]:
    """Name the data files in a folder with a published layout that are part of no task."""

    def is_read(path: Path) -> bool:
        if layout == "long_sequence":
            return path.suffix == ".json" and path.parent.name in SPLITS and path.stem in names
        known = path.name in {f"{split}.json" for split in SPLITS} or path.name == "labels.json"
        return known and (path.parent.name in names or path.parent == root)

    depth = {"long_sequence": 2, "superni": 2, "cl_benchmark": 3}[layout]
    paths = [path for level in range(depth) for path in root.glob("/".join(["*"] * (level + 1)))]
    left = [
        path.relative_to(root).as_posix()
        for path in visible(paths, root)
        if data_file(path) is not None and not path.is_dir() and not is_read(path)
    ]
    return (f"Not read in '{root.name}', as the layout is {layout}: {listed(left)}.",) if left else ()


def _root(path: str | os.PathLike[str]) -> Path:
    """Return the path as given; ``.`` and ``..`` become the name of their folder, which may name the task."""
    root = Path(path)
    if root.name in ("", ".."):
        with _readable(root):
            return root.resolve()
    return root


@contextmanager
def _readable(root: Path) -> Iterator[None]:
    """Turn an error of the operating system into one that names the folder that cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read: {error.strerror or error}.") from error


def _read(name: str, found: Mapping[str, Callable[[], Task]], root: Path) -> Task:
    """Read one task; check its name first, because a folder may have any, then add notes about its ids."""
    _check_name(name, root)
    with _readable(root):
        task = found[name]()
    return replace(task, warnings=(*task.warnings, *repeated_ids(task)))


def _check_name(name: str, root: Path) -> None:
    try:
        check_task_name(name)
    except DataError as error:
        raise DataError(f"{root}: {error} Rename the task.") from error


def repeated_ids(task: Task) -> list[str]:
    """Say which splits of a task give one id to several examples.

    Nothing is refused: an id only helps people to find an example again; two examples are the same if their
    contents are. An id that occurs in two splits means nothing at all, because the published files count from
    0 in each split. :meth:`TaskStream.overlaps` finds equal inputs in two splits.

    Args:
        task: The task.

    Returns:
        One sentence for each such split.
    """
    warnings = []
    for split in SPLITS:
        counts = Counter(example.id for example in task.split(split) if example.id is not None)
        if repeated := [item for item, count in counts.items() if count > 1]:
            ids = f"the id '{repeated[0][:80]}'" + (f" and {len(repeated) - 1} more" if repeated[1:] else "")
            warnings.append(f"Task '{task.name}': in {split}, more than one example has {ids}.")
    return warnings


def _resolve(name: str, found: Mapping[str, object], root: Path) -> str:
    _check_name(name, root)
    if name in found:
        return name
    alike = [item for item in found if item.casefold() == name.casefold()]
    if not alike and (number := _NUMBER.match(name)):
        alike = [item for item in found if (own := _NUMBERED.match(item)) and own[1] == number[1]]
    if len(alike) == 1:
        return alike[0]
    raise DataError(
        f"{root}: no task '{name}', expected one of {', '.join(found)}.{did_you_mean(name, found)}"
    )


def _near_path(path: Path) -> str:
    parent = path.parent
    return did_you_mean(path.name, [child.name for child in parent.iterdir()]) if parent.is_dir() else ""
