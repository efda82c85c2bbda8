"""Files written whole or not at all: text, JSON and tensors, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kifuse.errors import KifuseError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 20


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically, creating its folder when absent.

    Args:
        path: The file to write; an existing one is replaced in one step.
        text: Its content, written with the line endings it has.

    Raises:
        KifuseError: If the file cannot be written.
    """
    data = text.encode("utf-8")

    def fill(temporary: Path) -> None:
        temporary.write_bytes(data)

    _replace(Path(path), fill)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write an object as indented JSON, atomically.

    Args:
        path: The file to write.
        obj: Anything JSON can hold; NaN and infinities are refused because JSON has none.

    Raises:
        KifuseError: If the object is no JSON value or the file cannot be written.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise KifuseError(f"{path}: cannot be written as JSON: {error}.") from error
    write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a UTF-8 JSON file, with or without a byte order mark.

    Args:
        path: The file to read.

    Returns:
        The decoded value.

    Raises:
        KifuseError: If the file is missing, unreadable, not UTF-8, or not JSON; names file and line.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise KifuseError(f"{path}: no such file.") from error
    except OSError as error:
        raise KifuseError(f"{path}: cannot be read: {error.strerror or error}.") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise KifuseError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8.") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = "the file is empty" if not text.strip() else f"{error.msg} at column {error.colno}"
        raise KifuseError(f"{path}:{error.lineno}: not valid JSON: {found}.") from error
    except RecursionError as error:
        raise KifuseError(f"{path}: not readable JSON: nested too deeply.") from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hash the content of a file.

    Args:
        path: The file to read.

    Returns:
        The SHA-256 digest as 64 hexadecimal digits.

    Raises:
        KifuseError: If the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise KifuseError(f"{path}: cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hash a text as UTF-8.

    Args:
        text: Any text; lone surrogates, which JSON can smuggle in, are hashed too.

    Returns:
        The SHA-256 digest as 64 hexadecimal digits.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as a safetensors file, atomically.

    Args:
        path: The file to write.
        tensors: Tensors by name, on any device; views and shared memory are copied out.
        metadata: Text to keep beside them.

    Raises:
        KifuseError: If the file cannot be written.
    """
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    kept = None if metadata is None else dict(metadata)

    def fill(temporary: Path) -> None:
        save_file(plain, temporary, metadata=kept)

    _replace(Path(path), fill)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file onto the CPU.

    Args:
        path: The file to read.

    Returns:
        The tensors by name, and the metadata (empty when the file has none).

    Raises:
        KifuseError: If the file is missing or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise KifuseError(f"{path}: no such file.")
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            metadata = dict(stream.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise KifuseError(f"{path}: not a readable safetensors file: {error}.") from error
    return tensors, metadata


def _replace(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary file beside ``path`` and move it into place once it is on disk."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        fill(temporary)
        # mkstemp makes files private; a result file follows the user's umask like any other.
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        temporary = None
        if os.name == "posix":
            _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        raise KifuseError(f"{path}: cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
