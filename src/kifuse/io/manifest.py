"""A list of files with their sizes and hashes, written last: a file that differs from it is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kifuse.errors import RunError
from kifuse.io.storage import read_json, sha256_file, write_json
from kifuse.io.whole_folders import check_file

FORMAT = 1


def write_manifest(file: Path, folders: Sequence[Path]) -> None:
    """Write sizes and SHA-256 hashes of all files in some folders.

    Args:
        file: The manifest. It names files relative to the run's folder, which is `file.parents[2]`.
        folders: The folders whose files are listed, at any depth. The manifest itself, model cards and
            temporary files are left out.
    """
    root = _root(file)
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file() and _counts(p, file))
    entries = {
        p.relative_to(root).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files
    }
    write_json(file, {"format": FORMAT, "files": entries})


def check_manifest(file: Path, folders: Sequence[Path], seal: str | None = None) -> None:
    """Make sure that every file is as it was when the manifest was written.

    Args:
        file: The manifest.
        folders: The folders it was written for. It must list files of each of them and of no other folder.
        seal: The manifest's own SHA-256, as the record holds it; None if it is not known.

    Raises:
        RunError: A file is missing or has another size or content; or the manifest is not the one that the
            record knows, or lists files of other folders. The message names the file.
        KifuseError: The manifest itself is missing or is not JSON.
    """
    if seal is not None and file.is_file() and sha256_file(file) != seal:
        raise RunError(
            f"{file}: is not the list of files that record.json knows of this task (SHA-256 differs). It "
            "was replaced, edited or damaged. Restore it and the files in it from a copy."
        )
    found = read_json(file)
    files = found.get("files") if isinstance(found, dict) and found.get("format") == FORMAT else None
    if not isinstance(files, dict):
        raise RunError(f"{file}: not a list of files of format {FORMAT}; the file is damaged.")
    root = _root(file)
    own = [folder.relative_to(root).as_posix() + "/" for folder in folders]
    strange = [name for name in files if not name.startswith(tuple(own)) or ".." in Path(name).parts]
    absent = [folder for folder in own if not any(name.startswith(folder) for name in files)]
    wrong = [name for name, expected in files.items() if not isinstance(expected, dict)]
    if strange or absent or wrong:
        what = f"lists {strange[0]!r}, expected files of" if strange else "lists no files of"
        what = what if strange or absent else f"says nothing of {wrong[0]!r}; expected sizes and hashes of"
        raise RunError(f"{file}: {what} {' and '.join(absent or own)}; the file is damaged.")
    for name, expected in files.items():
        if not _counts(root / name, file):
            continue
        check_file(root / name, expected.get("sha256"), str(file), size=expected.get("bytes"))


def _counts(path: Path, file: Path) -> bool:
    """Whether to list a file: not the manifest, a model card (users may edit it) or a temporary file."""
    return path != file and path.name != "README.md" and path.suffix != ".tmp"


def _root(file: Path) -> Path:
    return file.parents[2]
