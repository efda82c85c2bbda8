"""A list of files with their sizes and hashes, written last: what it lists is whole, or named as damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kifuse.errors import RunError
from kifuse.folders import check_file
from kifuse.storage import read_json, sha256_file, write_json

FORMAT = 1


def write_manifest(file: Path, folders: Sequence[Path]) -> None:
    """Write sizes and SHA-256 hashes of all files in some folders.

    Args:
        file: The manifest; the folders are kept relative to its folder's parent's parent, the run.
        folders: Read recursively; the manifest itself and what training does not read back are left out.
    """
    root = _root(file)
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file() and _counts(p, file))
    entries = {
        p.relative_to(root).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files
    }
    write_json(file, {"format": FORMAT, "files": entries})


def check_manifest(file: Path) -> None:
    """Make sure that every file is as it was when the manifest was written.

    Raises:
        RunError: A file is missing, or of another size or content; the message names it.
        KifuseError: The manifest itself is missing or no JSON.
    """
    found = read_json(file)
    files = found.get("files") if isinstance(found, dict) and found.get("format") == FORMAT else None
    if not isinstance(files, dict):
        raise RunError(f"{file}: not a list of files of format {FORMAT}; the file is damaged.")
    root = _root(file)
    for name, expected in files.items():
        if not _counts(root / name, file):
            continue
        check_file(root / name, expected.get("sha256"), str(file), size=expected.get("bytes"))


def _counts(path: Path, file: Path) -> bool:
    """A model card is its reader's to edit, and what a crash left of a write is nobody's."""
    return path != file and path.name != "README.md" and path.suffix != ".tmp"


def _root(file: Path) -> Path:
    return file.parents[2]
