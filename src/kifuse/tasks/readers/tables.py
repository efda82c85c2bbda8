"""Reads files into rows: JSON, JSON Lines, CSV, Parquet, and folders that ``save_to_disk`` wrote."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kifuse.errors import DataError, KifuseError, counted
from kifuse.io.file_names import leads_out
from kifuse.io.storage import check_plain, read_json
from kifuse.tasks.readers.names import DataFile, split_of
from kifuse.tasks.readers.rows import Row
from kifuse.tasks.readers.text_files import (
    holders,
    most_unpacked,
    read_list,
    read_rows,
    read_text,
    unpacks_without_measure,
)

_BATCH = 1000
_LARGEST_BATCH = 65_536
_ROW = 64
"""Bytes that every row counts as, whatever it contains."""


@dataclass(frozen=True)
class Table:
    """Rows of one split.

    Attributes:
        rows: At least one row.
        kind: The kind of their source: a value of `names.KINDS`, ``"arrow"``, ``"rows"`` or ``"hub"``.
        names: For each column that contained label numbers, the names of the labels.
        files: Names of the files that the rows come from.
        passed_over: Notes about what was not read besides the rows.
    """

    rows: Sequence[Row]
    kind: str
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


def read_file(file: DataFile) -> dict[str, Table]:
    """Read a file or an Arrow folder.

    Args:
        file: The file or folder to read.

    Returns:
        Its rows, by the name of their split if the file contains several splits, otherwise under an empty
        name.

    Raises:
        DataError: If it cannot be read or is not what its name says; the message names the line or row.
    """
    path, name = file.path, file.path.name
    if file.kind == "arrow":
        return {split: replace(table, files=(name,)) for split, table in _arrow(path).items()}
    if file.kind == "parquet":
        table = _parquet(path)
    elif file.kind in ("csv", "tsv"):
        table = Table(_separated(path, file.kind), "csv")
    else:
        rows = read_rows(path)
        if isinstance(rows, dict):
            return _inside(path, rows)
        table = Table(rows, "jsonl" if file.kind == "jsonl" else "json")
    return {"": replace(table, files=(name,))}


def joined(tables: Sequence[Table]) -> Table:
    """Join several parts into one table."""
    if len(tables) == 1:
        return tables[0]
    names: dict[str, tuple[str, ...]] = {}
    for table in tables:
        for column, labels in table.names.items():
            names[column] = tuple(dict.fromkeys([*names.get(column, ()), *labels]))
    return Table(
        Row.held(row for table in tables for row in table.rows),
        tables[0].kind,
        names,
        tuple(name for table in tables for name in table.files),
        tuple(note for table in tables for note in table.passed_over),
    )


def _inside(path: Path, value: Mapping[str, Any]) -> dict[str, Table]:
    """Read the rows in the lists of a JSON object."""
    keys = holders(value)
    if not split_of(keys[0]):
        keys = keys[:1]
    others = [f"'{key}'" for key in value if key not in keys]
    said = (f"The keys {', '.join(others)} of '{path.name}' were not read.",) if others else ()
    return {
        key if split_of(key) else "": Table(
            read_list(path, value[key], key), "json", files=(path.name,), passed_over=said
        )
        for key in keys
    }


def _separated(path: Path, kind: str) -> Sequence[Row]:
    """Read the rows of a CSV file; every value is text."""
    rows = Row.held(_separated_one_by_one(path, kind))
    if not rows:
        raise DataError(f"{path}: holds no rows below the names of the columns, expected at least one.")
    return rows


def _separated_one_by_one(path: Path, kind: str) -> Iterator[Row]:
    text = read_text(path)
    start = next(line for line in text.splitlines() if line.strip())
    separator = "\t" if kind == "tsv" else next((mark for mark in ",;\t|" if mark in start), ",")
    header: list[str] = []
    with _long_values():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        line = 1
        try:
            for values in reader:
                line, start_line = reader.line_num + 1, line
                if not any(value.strip() for value in values) and (not header or len(values) <= 1):
                    continue
                if not header:
                    header = _header(path, start_line, values)
                    continue
                if len(values) != len(header):
                    raise DataError(
                        f"{path}:{start_line}: found {counted(len(values), 'value')}, expected "
                        f"{len(header)}, one for each of the columns {', '.join(header)}; put a value that "
                        f"holds the separator {separator!r} or a line break into double quotes."
                    )
                yield Row(f"{path}:{start_line}", dict(zip(header, values, strict=True)))
        except csv.Error as error:
            raise DataError(
                f"{path}:{line}: not valid {kind.upper()}: {error}; put a value that holds a double quote "
                "into double quotes, and double each quote inside."
            ) from error


def _header(path: Path, line: int, values: Sequence[str]) -> list[str]:
    names = [value.strip() for value in values]
    counts = Counter(names)
    if twice := next((name for name in names if name and counts[name] > 1), None):
        raise DataError(f"{path}:{line}: the column '{twice}' appears twice; rename one of the two.")
    if counts[""] > 1:
        raise DataError(f"{path}:{line}: {counts['']} columns have no name, expected one for each.")
    return names


@contextmanager
def _long_values() -> Iterator[None]:
    """Allow values of more than 131,072 characters, at which Python's reader stops."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Table:
    from datasets import Dataset

    _check_plain(path)
    with _decoding(path, "Parquet file"):
        # a fingerprint is given, because computing one by hashing takes longer than reading
        return dataset_table(Dataset(_unpacked(path), fingerprint="parquet"), str(path), "parquet")


def _unpacked(path: Path) -> Any:
    """Read the table in a Parquet file; refuse one that would fill the memory, before it does."""
    import pyarrow
    import pyarrow.parquet as parquet

    file, most = parquet.ParquetFile(path), most_unpacked(path.stat().st_size)
    groups = [file.metadata.row_group(place) for place in range(file.metadata.num_row_groups)]
    sizes = [group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns)]
    too_much = unpacks_without_measure(path, most, "write it as JSON Lines")
    if sum(sizes) > most or file.metadata.num_rows > most // _ROW:
        raise too_much
    # a dictionary stores each value once, so a batch can unfold to its number of rows times the largest size
    rows, batches, unfolded = max(1, min(_LARGEST_BATCH, most // max([1, *sizes]))), [], 0
    for batch in file.iter_batches(batch_size=rows):
        unfolded += _plain_size(batch)
        if unfolded > most:
            raise too_much
        batches.append(batch)
    return pyarrow.Table.from_batches(batches, file.schema_arrow)


def _plain_size(batch: Any) -> int:
    """Bytes of a batch with its dictionaries written out; a dictionary stores each value once."""
    import pyarrow

    plain = [c.dictionary_decode() if pyarrow.types.is_dictionary(c.type) else c for c in batch.columns]
    return sum(column.nbytes for column in plain) + _ROW * batch.num_rows


def _arrow(folder: Path) -> dict[str, Table]:
    from datasets import Dataset, DatasetDict, load_from_disk

    for path in folder.rglob("*"):
        if not path.is_dir():
            _check_plain(path)
        if path.name == "state.json":
            _refuse_files_elsewhere(path)
    with _decoding(folder, "folder of save_to_disk"):
        found = load_from_disk(str(folder))
        splits: Mapping[str, Dataset] = found if isinstance(found, DatasetDict) else {"": found}  # pyright: ignore
        for dataset in splits.values():
            # otherwise damaged data would be read beyond its end
            dataset.data.table.validate(full=True)
        where = {name: f"{folder}{': ' if name else ''}{name}" for name in splits}
        return {name: dataset_table(dataset, where[name], "arrow") for name, dataset in splits.items()}


def _refuse_files_elsewhere(state: Path) -> None:
    """Refuse a data set whose list of files points outside its own folder."""
    found = read_json(state)
    listed = found.get("_data_files") if isinstance(found, dict) else None
    for each in listed if isinstance(listed, list) else ():
        name = each.get("filename") if isinstance(each, dict) else each
        if not isinstance(name, str) or leads_out(name):
            raise DataError(f"{state}: names the file {name!r}, expected files of this folder.")


def dataset_table(dataset: Any, where: str, kind: str) -> Table:
    """Read the rows of a `datasets.Dataset` or `IterableDataset`.

    Args:
        dataset: The data set, in any of its formats.
        where: What holds the data set, for messages.
        kind: See `Table`.

    Returns:
        The rows, with labels by name, and without the null values with which datasets fills up objects.

    Raises:
        DataError: If there is no row.
    """
    features = dataset.features or {}
    names = {
        column: tuple(feature.names)
        for column, feature in features.items()
        if type(feature).__name__ == "ClassLabel" and feature.names
    }

    def named() -> Iterator[Row]:
        for number, values in enumerate(_values(dataset), 1):
            row = {str(key): without_null(value) for key, value in values.items()}
            for column, labels in names.items():
                label = row.get(column)
                if isinstance(label, int):
                    row[column] = labels[label] if 0 <= label < len(labels) else None
            yield Row(f"{where}: row {number}", row)

    rows = Row.held(named())
    if not rows:
        raise DataError(f"{where}: holds no rows, expected at least one example.")
    return Table(rows, kind, names)


def _values(dataset: Any) -> Iterator[Mapping[str, Any]]:
    if hasattr(dataset, "num_rows"):
        # in the Arrow format pictures and sounds, which are not needed here, are not decoded
        for batch in dataset.with_format("arrow").iter(_BATCH):
            yield from batch.to_pylist()
    else:
        yield from dataset.with_format(None)


def without_null(value: Any) -> Any:
    """Remove keys from a value that are null only because other rows have them."""
    if isinstance(value, dict):
        return {key: without_null(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [without_null(inner) for inner in value]
    return value


def _check_plain(path: Path) -> None:
    try:
        check_plain(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except KifuseError as error:
        raise DataError(str(error)) from error


@contextmanager
def _decoding(path: Path, what: str) -> Iterator[None]:
    """Name the file that a library cannot decode; for damaged bytes it may raise any error."""
    try:
        yield
    except KifuseError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{path}: not a readable {what}: {error}; write it again.") from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: not a readable {what}: {said}; write it again.") from error
