"""Data sets of the Hugging Face hub, through `datasets.load_dataset`."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from kifuse.errors import DataError
from kifuse.tasks.readers.objects import object_tables
from kifuse.tasks.readers.tables import Table

PREFIX = "hub:"
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_id(path: str | os.PathLike[str]) -> str | None:
    """Find out whether a path names a data set of the hub.

    Args:
        path: ``owner/name``, if there is neither such a path nor a folder ``owner``; or ``hub:owner/name``,
            or ``hub:owner/name:configuration``.

    Returns:
        The id, followed by a colon and the configuration if one is named; None for a path.
    """
    text = os.fspath(path)
    if text.startswith(PREFIX):
        return text.removeprefix(PREFIX)
    if not _ID.fullmatch(text) or os.path.lexists(text) or Path(text).parent.exists():
        return None
    return None if Path(text).suffix in (".json", ".jsonl", ".csv", ".tsv", ".gz", ".parquet") else text


def hub_tables(name: str) -> tuple[str, dict[str, Table], list[str]]:
    """Load a data set of the hub.

    Args:
        name: An id from `hub_id`. A local folder also works, because `load_dataset` accepts one.

    Returns:
        A name for the task, its rows by split, and notes about what was not read.

    Raises:
        DataError: If it cannot be loaded; the message says why, and how to use data that is on disk.
    """
    from datasets import load_dataset

    source, _, configuration = name.partition(":")
    try:
        found = load_dataset(source, configuration or None)
    except Exception as error:  # from the hub's client, the network, or any builder of datasets
        said = " ".join(str(error).split())
        raise DataError(
            f"{name}: no such file or folder, and it cannot be loaded as a data set of the hub: "
            f"{type(error).__name__}: {said} Give the path of a file or folder on disk, or "
            f"{PREFIX}owner/name:configuration."
        ) from error
    splits, said = object_tables(found, name)
    tables = {split: replace(table, kind="hub", files=(name,)) for split, table in splits.items()}
    return source.rstrip("/").rpartition("/")[2], tables, said
