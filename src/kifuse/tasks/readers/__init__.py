"""Readers of the published benchmark layouts and of your own JSON Lines."""

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
from kifuse.tasks.readers import cl_benchmark, jsonl, long_sequence, superni
from kifuse.tasks.readers.rows import visible
from kifuse.tasks.task import METRICS, SPLITS, Metric, Task, TaskStream, check_different, check_task_name

Layout = Literal["long_sequence", "cl_benchmark", "superni", "jsonl"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
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
) -> TaskStream:
    """Read a stream of tasks.

    Links are followed wherever they lead, as download caches keep data behind links; hidden files and folders
    are passed over.

    Args:
        path: A folder in one of the layouts, or one JSON Lines file.
        order: Names of the tasks to read, in order; letter case does not matter, and a SuperNI task may be
            named by its number, such as ``"1572"``. None reads all, sorted by name or as first met in a file.
        layout: ``"long_sequence"``, ``"cl_benchmark"``, ``"superni"``, ``"jsonl"``, or ``"auto"`` to look.
        superni_metric: What scores SuperNI classifications: ``"rouge_l"`` as SAPT, or ``"exact_match"``.
        name: Name of the stream; None takes that of the folder.

    Returns:
        The tasks in the order asked for.

    Raises:
        DataError: If the folder, a file, a row or a name in the order is wrong, or what stands in the place
            of a file is no plain file; says which and what to do.
    """
    root = _root(path)
    found = _discover(root, layout, superni_metric)
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
    return TaskStream(stream_name, tuple(_read(item, found, root) for item in names))


def read_task(
    path: str | os.PathLike[str],
    name: str | None = None,
    layout: str = "auto",
    *,
    superni_metric: Metric = "rouge_l",
) -> Task:
    """Read one task.

    Args:
        path: The task's own folder or file; with ``name`` also a folder of several tasks.
        name: Which task of the folder to read.
        layout: As in :func:`read_stream`.
        superni_metric: As in :func:`read_stream`.

    Returns:
        The task.

    Raises:
        DataError: If there is no such task, several and no name, or the data is wrong.
    """
    root = _root(path)
    found = _discover(root, layout, superni_metric)
    if name is None and len(found) > 1:
        raise DataError(f"{root}: holds {len(found)} tasks, expected one; name it: {', '.join(found)}.")
    return _read(next(iter(found)) if name is None else _resolve(name, found, root), found, root)


def detect_layout(path: str | os.PathLike[str]) -> Layout:
    """Tell in which layout a folder or file is.

    Args:
        path: The folder or file.

    Returns:
        The layout.

    Raises:
        DataError: If there is nothing there or it is in none of them; suggests a folder inside that is.
    """
    root = _root(path)
    with _readable(root):
        return _detect(root)


def _detect(root: Path) -> Layout:
    if not root.exists():
        raise DataError(f"{root}: no such file or folder.{_near_path(root)}")
    found = _look(root)
    if found is not None:
        return found
    if not root.is_dir():
        raise DataError(f"{root}: not a known layout, expected a folder or a file that ends in '.jsonl'.")
    folders = [child for child in visible(root.iterdir(), root) if child.is_dir()]
    inside = [child.name for child in folders if _look(child) is not None]
    hint = f" These folders inside are: {', '.join(inside)}." if inside else ""
    raise DataError(
        f"{root}: not a known layout, expected train/<task>.json (long_sequence), "
        f"<CATEGORY>/<task>/train.json with labels.json (cl_benchmark), <task>/train.json (superni), "
        f"or <task>/train.jsonl or <task>.jsonl (jsonl).{hint}"
    )


def _look(root: Path) -> Layout | None:
    if root.is_file():
        return "jsonl" if jsonl.is_jsonl(root) else None
    if any((root / "train").glob("*.json")):
        return "long_sequence"
    marks = ("labels.json", "*/labels.json", "*/*/labels.json", "*/*/train.json")
    if any(any(root.glob(mark)) for mark in marks):
        return "cl_benchmark"
    if (root / "train.json").is_file() or any(root.glob("*/train.json")):
        return "superni"
    return "jsonl" if jsonl.is_jsonl(root) else None


def _discover(root: Path, layout: str, metric: Metric) -> Mapping[str, Callable[[], Task]]:
    if layout != "auto" and layout not in LAYOUTS:
        raise DataError(
            f"The layout is '{layout}', expected one of auto, {', '.join(LAYOUTS)}."
            f"{did_you_mean(str(layout), LAYOUTS)}"
        )
    if metric not in METRICS:
        raise DataError(f"superni_metric is {metric!r}, expected one of {', '.join(METRICS)}.")
    with _readable(root):
        detected = _detect(root) if layout == "auto" or not root.exists() else layout
        if detected == "long_sequence":
            found = long_sequence.discover(root)
        elif detected == "cl_benchmark":
            found = cl_benchmark.discover(root)
        elif detected == "superni":
            found = superni.discover(root, metric)
        else:
            found = jsonl.discover(root)
    if not found:
        raise DataError(f"{root}: holds no task in the layout {detected}; try layout 'auto'.")
    return found


def _root(path: str | os.PathLike[str]) -> Path:
    """The path as given; ``.`` and ``..`` get the name of their folder, which may name the task."""
    root = Path(path)
    if root.name in ("", ".."):
        with _readable(root):
            return root.resolve()
    return root


@contextmanager
def _readable(root: Path) -> Iterator[None]:
    """Say which folder it is that may not be looked into."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read: {error.strerror or error}.") from error


def _read(name: str, found: Mapping[str, Callable[[], Task]], root: Path) -> Task:
    """Read one task: its name first, as a folder or file may have any; then what is odd about its ids."""
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

    Nothing is refused: an id only helps people to find an example again, what makes two examples the same is
    their content. An id that stands in two splits says nothing at all, as the published files count from 0
    in each of them; equal inputs in two splits are found by :meth:`TaskStream.overlaps`.

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
            warnings.append(f"Task '{task.name}': in {split}, {ids} stand on more than one example each.")
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
