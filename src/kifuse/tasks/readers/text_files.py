"""Reads text files of data: UTF-8 or UTF-16, also gzip; JSON values, JSON lists and JSON Lines."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kifuse.errors import DataError, KifuseError
from kifuse.io.storage import check_plain, decode_utf8, parse_json, read_bytes
from kifuse.tasks.readers.names import split_of
from kifuse.tasks.readers.rows import Row, kind_of

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_CHUNK = 1 << 20
_START = 64
ROWS = ("data", "rows", "examples")
"""Names of the list of rows in a JSON object that contains more than the rows."""

_MOST_TIMES, _SURELY_FINE = 200, 64 << 20


def read_text(path: Path) -> str:
    """Read a data file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Args:
        path: The file; a file that ends in ``.gz`` is unpacked.

    Returns:
        Its text.

    Raises:
        DataError: If it is missing, unreadable, empty, or in another encoding.
    """
    try:
        raw = read_bytes(path)
        if path.name.casefold().endswith(".gz"):
            raw = _unpacked(raw, path)
        text = _utf16(raw, path) if raw.startswith(_UTF16) else decode_utf8(raw, path)
    except KifuseError as error:
        raise DataError(str(error)) from error
    if "\x00" in text[:_START]:
        raise DataError(
            f"{path}:1: holds zero bytes, as UTF-16 text without a byte order mark does; save the file "
            "as UTF-8."
        )
    if not text.strip():
        raise DataError(f"{path}: the file is empty, expected examples; write rows into it or remove it.")
    return text


def _utf16(raw: bytes, path: Path) -> str:
    try:
        if raw.startswith(_UTF32):
            raise UnicodeError
        return raw.decode("utf-16")
    except UnicodeError as error:
        raise DataError(f"{path}:1: not readable UTF-16 text; save the file as UTF-8.") from error


def _unpacked(raw: bytes, path: Path) -> bytes:
    """Unpack gzip; a file that would fill the memory is refused before it does."""
    most = most_unpacked(len(raw))
    found = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            while chunk := stream.read(_CHUNK):
                found += chunk
                if len(found) > most:
                    raise unpacks_without_measure(path, most, "unpack it yourself")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file: {error}; pack it again.") from error
    return bytes(found)


def most_unpacked(size: int) -> int:
    """Most bytes that a packed file of this size may unpack to."""
    return max(_SURELY_FINE, _MOST_TIMES * size)


def unpacks_without_measure(path: Path, most: int, remedy: str) -> DataError:
    """Make the error for a file that unpacks to more than that."""
    return DataError(
        f"{path}: unpacks to more than {most >> 20} MB, {_MOST_TIMES} times its size; {remedy} if this is "
        "intended."
    )


def read_value(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        The decoded value.

    Raises:
        DataError: If it cannot be read or is not JSON; the message names the line.
    """
    return _decode(read_text(path), str(path), first_line=1)


def read_list(path: Path, value: Any = None, key: str = "") -> list[Row]:
    """Return the rows of a JSON list of objects.

    Args:
        path: The file; it is read unless ``value`` is given.
        value: The list from the file, if the rows are only a part of the file.
        key: The field of the file that contained ``value``.

    Returns:
        The rows, numbered from 1.

    Raises:
        DataError: If there is no list, no row, or a row that is not an object.
    """
    place = f"{path}: '{key}'" if key else f"{path}:"
    value = read_value(path) if value is None else value
    if not isinstance(value, list):
        raise DataError(f"{place} holds {kind_of(value)}, expected a list of objects.")
    if not value:
        raise DataError(f"{place} holds no rows, expected at least one example.")
    return [_row(f"{path}: row {number}", item) for number, item in enumerate(value, 1)]


def read_rows(path: Path) -> Sequence[Row] | dict[str, Any]:
    """Read the rows of a file that is either JSON or JSON Lines.

    Args:
        path: The file.

    Returns:
        The rows; their places have line numbers, or row numbers in a list. An object that contains lists of
        objects is returned unchanged, because its keys may be splits.

    Raises:
        DataError: If the file cannot be read, a line is not a JSON object, or there is no row.
    """
    if _is_streamed(path):
        return _rows_of_lines(path, _streamed(path))
    text = read_text(path)
    if text.lstrip().startswith("["):
        return read_list(path, _decode(text, str(path), first_line=1))
    # Only a line feed ends a line: JSON text may contain other Unicode line breaks unescaped.
    lines = text.split("\n") if "\n" in text else text.split("\r")
    first = next(number for number, line in enumerate(lines) if line.strip())
    more = any(line.strip() for line in lines[first + 1 :])
    is_json = path.name.casefold().removesuffix(".gz").endswith(".json")
    # this may be one object on several lines, as json.dump(..., indent=2) writes it
    if more and not _is_json(lines[first]) and (is_json or _is_json(text)):
        return _one_object(path, _decode(text, str(path), first_line=1))
    return _rows_of_lines(path, lines)


def _rows_of_lines(path: Path, lines: Iterable[str]) -> Sequence[Row] | dict[str, Any]:
    """Read a row from each line that is not empty; a single one may be an object with lists of rows."""
    rows = Row.held(_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    if len(rows) == 1 and isinstance(found := _one_object(path, rows[0].values), dict):
        return found
    return rows


def _is_streamed(path: Path) -> bool:
    """Whether a file is read line by line: UTF-8 whose first line, on its own, is a JSON object."""
    try:
        check_plain(path)
        if path.name.casefold().endswith(".gz"):
            return False
        with path.open("rb") as file:
            first = file.readline(_CHUNK).decode("utf-8-sig")
    except (OSError, ValueError, KifuseError):
        return False  # reading it as a whole says what is wrong
    return first.endswith("\n") and first.lstrip().startswith("{") and _is_json(first)


def _streamed(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not UTF-8 text; save the file as UTF-8 (in Excel: CSV UTF-8)."
                ) from error
            yield line.removesuffix("\n")


def _one_object(path: Path, value: Any) -> list[Row] | dict[str, Any]:
    return value if isinstance(value, dict) and holders(value) else [_row(f"{path}:1", value)]


def holders(value: Mapping[str, Any]) -> list[str]:
    """The keys of an object whose lists are rows: those named after splits, or in `ROWS`."""
    lists = [key for key, inner in value.items() if isinstance(inner, list) and inner]
    lists = [key for key in lists if all(isinstance(item, dict) for item in value[key])]
    return [key for key in lists if split_of(key)] or [key for key in lists if key in ROWS]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _line(path: Path, number: int, line: str) -> Row:
    try:
        value = _decode(line, str(path), first_line=number)
    except DataError as error:
        way = ""
        if line.rstrip().endswith(",") and _is_json(line.rstrip()[:-1]):
            way = " Remove the comma at the end of the line, or make the file a list in [ ]."
        elif line.strip() in ("{", "["):
            way = " Put each object on a line of its own, as json.dumps(row) writes it, or all into one list."
        elif line.lstrip().startswith("{'"):
            way = " JSON uses double quotes; write each row with json.dumps(row)."
        raise DataError(f"{error}{way}") from error
    return _row(f"{path}:{number}", value)


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{where}: found {kind_of(value)}, expected an object such as {{"input": …}}.')
    return Row(where, value)


def _decode(text: str, path: str, *, first_line: int) -> Any:
    try:
        return parse_json(text, path, first_line)
    except KifuseError as error:
        raise DataError(str(error)) from error
