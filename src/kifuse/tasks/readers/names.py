"""Recognises data files by their names: their kind, the task or split that they hold, and their parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.readers.rows import visible
from kifuse.tasks.task import SPLITS

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""File kinds that are read, by the ending of the name; all but the last may be packed, as in
``.jsonl.gz``."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""Names of splits, in any letter case, also followed by ``_sft``, ``_split`` or ``_set``."""

_ALIASES = {alias: split for split, names in SPLIT_NAMES.items() for alias in names}
_SPLIT = re.compile(rf"({'|'.join(_ALIASES)})(?:[-_ ](?:sft|split|set|data))?")
_PART = re.compile(r"(.+?)[-_](\d{2,6})[-_]of[-_](\d{2,6})")
# Files that other libraries or kifuse write beside the data, or notes for people.
_COMPANIONS = {"task.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NOTES = re.compile(r"(readme|license|licence|changelog|citation)\b.*|.*\.(md|rst)", re.IGNORECASE)
_ELSEWISE = {
    ".xlsx": "save it as CSV",
    ".xls": "save it as CSV",
    ".txt": 'put each text into a line {"text": ...} of a .jsonl file',
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".zst": "unpack it",
    ".bz2": "unpack it",
    ".xz": "unpack it",
    ".7z": "unpack it",
    ".yaml": "save it as JSON",
    ".yml": "save it as JSON",
    ".pkl": "save it as Parquet",
    ".arrow": "give the folder that save_to_disk wrote, or save it as Parquet",
    ".feather": "save it as Parquet",
}

ENDINGS = f"{', '.join(KINDS)}, also with .gz"


@dataclass(frozen=True)
class DataFile:
    """A file, or an Arrow folder, that contains rows.

    Attributes:
        path: The file's path.
        stem: Its name without endings and without the number of its part.
        kind: A value of `KINDS`, or ``"arrow"`` for a folder that ``save_to_disk`` wrote.
        part: Its number among the parts of one file, and the number of parts; None for a whole file.
    """

    path: Path
    stem: str
    kind: str
    part: tuple[int, int] | None = None

    @property
    def split(self) -> str | None:
        """The split that the file's name says, or None."""
        return split_of(self.stem)


def split_of(name: str) -> str | None:
    """The split that is meant by the name of a file, a folder or another library's split, or None."""
    found = _SPLIT.fullmatch(name.casefold())
    return _ALIASES[found[1]] if found else None


def data_file(path: Path) -> DataFile | None:
    """Say by its name what data a path holds; None if it holds none."""
    if path.is_dir() and is_arrow(path):
        return DataFile(path, path.name, "arrow")
    if path.name.casefold() in _COMPANIONS:
        return None
    stem, lower = path.name, path.name.casefold()
    if lower.endswith(".gz"):
        stem, lower = stem[:-3], lower[:-3]
    ending = next((each for each in KINDS if lower.endswith(each)), None)
    if ending is None or (ending == ".parquet" and len(stem) < len(path.name)):
        return None
    stem = stem[: -len(ending)]
    if stem and (found := _PART.fullmatch(stem)):
        return DataFile(path, found[1], KINDS[ending], (int(found[2]), int(found[3])))
    return DataFile(path, stem, KINDS[ending]) if stem else None


def is_arrow(folder: Path) -> bool:
    """Whether ``save_to_disk`` of datasets wrote this folder."""
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def members(folder: Path) -> tuple[list[DataFile], list[Path]]:
    """Return a folder's data files, and everything else there except people's notes and hidden files."""
    found, others = [], []
    for path in visible(folder.iterdir(), folder):
        file = data_file(path)
        if file is not None:
            found.append(file)
        elif path.name.casefold() not in _COMPANIONS and not _NOTES.fullmatch(path.name):
            others.append(path)
    return found, others


def parts_of(files: Sequence[DataFile], what: str) -> list[DataFile]:
    """Return the parts of one split in their order.

    Args:
        files: At least one file.
        what: Description of what the files hold, for the message.

    Returns:
        The only file, or all parts of it.

    Raises:
        DataError: If there are several whole files, or a part is missing.
    """
    names = ", ".join(file.path.name for file in files)
    first = files[0]
    if len(files) == 1 and first.part is None:
        return [first]
    same = {(file.stem, file.kind, file.part[1] if file.part else 0) for file in files}
    if len(same) > 1 or first.part is None:
        raise DataError(
            f"{first.path.parent}: {what} is in {len(files)} files, {names}; keep one of them, put their "
            "rows into one file, or name them as parts: train-00000-of-00002, train-00001-of-00002."
        )
    ordered = sorted(files, key=lambda file: file.part or (0, 0))
    numbers, wanted = [file.part[0] for file in ordered if file.part], first.part[1]
    if numbers != list(range(wanted)):
        missing = [str(number) for number in range(min(wanted, 10**5)) if number not in set(numbers)]
        listed = ", ".join(missing[:5]) + (", ..." if missing[5:] else "")
        raise DataError(
            f"{first.path.parent}: {what} is in {wanted} parts, found {names}; "
            + (f"missing are the parts {listed}." if missing else "the numbers begin at 0.")
        )
    return ordered


def unread(paths: Iterable[Path], known: Iterable[str], root: Path) -> list[str]:
    """Say for each path why it is not read.

    Args:
        paths: Files and folders that are skipped.
        known: File names that are read at that place.
        root: The folder to which the shown paths are relative.

    Returns:
        The beginning of a sentence for each path: its name, and what the user could do.
    """
    said = []
    names = list(known)
    for path in paths:
        shown = f"'{path.relative_to(root).as_posix()}'"
        away = _way(path.name)
        hint = away or did_you_mean(path.name, names).strip(" ?").replace("Did", "did")
        said.append(f"{shown} ({hint}{'' if away else '?'})" if hint else shown)
    return said


def listed(said: Sequence[str], most: int = 10) -> str:
    """Join several texts, and give the number of those left out."""
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def no_data(path: Path) -> str:
    """Say how to make a file readable that is not read."""
    return f" For this one: {away}." if (away := _way(path.name)) else ""


def elsewise(name: str) -> str:
    """Say what to do with a file of a kind that is not read; empty if there is no advice."""
    return f" As for '{name}': {away}." if (away := _way(name)) else ""


def _way(name: str) -> str | None:
    return _ELSEWISE.get(Path(name).suffix.casefold())


__all__ = ["ENDINGS", "KINDS", "SPLITS", "SPLIT_NAMES", "DataFile", "data_file", "is_arrow", "listed"]
__all__ += ["elsewise", "members", "no_data", "parts_of", "split_of", "unread"]
