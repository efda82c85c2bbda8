"""Reads rows that are in memory: data sets of the library datasets, data frames, lists, generators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kifuse.errors import DataError
from kifuse.io.storage import DEEPEST
from kifuse.tasks.readers.names import split_of
from kifuse.tasks.readers.own import by_split
from kifuse.tasks.readers.rows import Row, kind_of
from kifuse.tasks.readers.tables import Table, dataset_table


def object_tables(data: Any, where: str) -> tuple[dict[str, Table], list[str]]:
    """Return the rows of any object that holds rows, by split.

    Args:
        data: A `datasets.Dataset`, `IterableDataset`, `DatasetDict` or `IterableDatasetDict`, a data frame, a
            list or other iterable of mappings, a mapping of splits to those, or a mapping of columns.
        where: The task's name, for messages.

    Returns:
        Tables of ``train``, ``dev`` and ``test``, and one sentence for each other split.

    Raises:
        DataError: If the object is none of these, has no rows, or holds something other than rows.
    """
    if not isinstance(data, Mapping):
        return {"train": _table(data, f"{where}, train")}, []
    if data and all(_is_column(column) for column in data.values()) and not any(map(_split, data)):
        return {"train": _table(_from_columns(data, where), f"{where}, train")}, []
    if not data:
        raise DataError(f"{where}: holds no split, expected at least train.")
    tables = {str(key): rows for key, rows in data.items()}
    unknown = [key for key in tables if not split_of(key)]
    found = {
        key: _table(rows, f"{where}, {split_of(key) or key}") if key not in unknown else _counted(rows)
        for key, rows in tables.items()
    }
    return by_split(found, where)


def _split(key: Any) -> str | None:
    return split_of(str(key))


def _is_column(value: Any) -> bool:
    """Whether a value is a list that contains no rows."""
    return isinstance(value, (list, tuple)) and not any(isinstance(item, Mapping) for item in value)


def _from_columns(data: Mapping[Any, Any], where: str) -> list[dict[str, Any]]:
    lengths = {str(key): len(column) for key, column in data.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DataError(
            f"{where}: the columns differ in length: {said}; expected the same number of values in each."
        )
    return [dict(zip(map(str, data), values, strict=True)) for values in zip(*data.values(), strict=True)]


def _counted(rows: Any) -> Table:
    """Make a table for a split that is not read, only to report its length."""
    return Table(range(len(rows)) if hasattr(rows, "__len__") else (), "rows")  # pyright: ignore


def _table(data: Any, where: str) -> Table:
    if type(data).__module__.partition(".")[0] == "datasets" and hasattr(data, "features"):
        return dataset_table(data, where, "rows")
    rows = [_row(f"{where} row {number}", row) for number, row in enumerate(_mappings(data), 1)]
    if not rows:
        raise DataError(f"{where}: holds no rows, expected at least one example.")
    return Table(rows, "rows")


def _mappings(data: Any) -> Iterable[Any]:
    if hasattr(data, "to_pylist"):  # a table of pyarrow
        return data.to_pylist()
    if hasattr(data, "to_dicts"):  # a data frame of polars
        return data.to_dicts()
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # a data frame of pandas, where gaps are NaN
        return data.astype(object).where(data.notna(), None).to_dict("records")
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise DataError(
            f"learn(): found {type(data).__name__}, expected a Task, a path, a datasets.Dataset, a data "
            "frame or a list of rows."
        )
    return data


def _row(where: str, row: Any) -> Row:
    if not isinstance(row, Mapping):
        raise DataError(
            f"{where}: found {kind_of(row)}, expected a row with fields, such as input and output."
        )
    values = {}
    for key, value in row.items():
        try:
            values[str(key)] = _plain(value, DEEPEST)
        except RecursionError as error:
            raise DataError(
                f"{where}: the field '{key}' is nested too deeply, more than {DEEPEST} levels."
            ) from error
    return Row(where, values)


def _plain(value: Any, levels: int) -> Any:
    """Turn tuples and arrays into lists, and NumPy's numbers into Python's."""
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), levels)
    is_list = isinstance(value, Sequence) and not isinstance(value, bytes)
    if not levels and (is_list or isinstance(value, Mapping)):
        raise RecursionError
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, levels - 1) for key, inner in value.items()}
    return [_plain(inner, levels - 1) for inner in value] if is_list else value
