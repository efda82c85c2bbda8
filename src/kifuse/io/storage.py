"""Files written whole or not at all: text, JSON and tensors, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kifuse.errors import KifuseError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 20
DEEPEST = 100
"""JSON in which lists and objects are nested more levels deep than this is refused."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically, creating its folder when absent.

    Args:
        path: The file to write; an existing one is replaced in one step.
        text: Its content, written with the line endings it has.

    Raises:
        KifuseError: If the file cannot be written.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise KifuseError(
            f"{path}: cannot be written: half a surrogate pair at character {error.start + 1}."
        ) from error

    def fill(temporary: Path) -> None:
        temporary.write_bytes(data)

    _replace(Path(path), fill)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file of any kind atomically, creating its folder when absent.

    Args:
        path: The file to write; an existing one is replaced in one step.
        data: Its content.

    Raises:
        KifuseError: If the file cannot be written.
    """

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
    write_text(path, json_text(path, obj))


def json_text(path: str | os.PathLike[str], obj: Any) -> str:
    """Return an object as indented JSON, the text that `write_json` writes to a file.

    Raises:
        KifuseError: If the object is no JSON value; the message names the file.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise KifuseError(f"{path}: cannot be written as JSON: {error}.") from error
    return text + "\n"


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file. A link is followed; a pipe or a device is refused because it may never end.

    Args:
        path: The file to read.

    Returns:
        Its content.

    Raises:
        KifuseError: If it is missing, unreadable, or not a plain file.
    """
    try:
        check_plain(path)
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise KifuseError(f"{path}: no such file.") from error
    except (OSError, ValueError) as error:
        raise KifuseError(f"{path}: cannot be read: {_reason(error)}.") from error
    except MemoryError as error:
        raise KifuseError(f"{path}: cannot be read: it is larger than this machine's memory.") from error


def check_plain(path: str | os.PathLike[str]) -> None:
    """Refuse a path that is not a plain file, without opening it.

    Args:
        path: The file to look at; links are followed.

    Raises:
        KifuseError: If it is a folder, a pipe or a device.
        OSError: If it is missing or may not be looked at.
        ValueError: If the path holds a NUL character.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device"
        raise KifuseError(f"{path}: found {kind}, expected a file. Put the file itself there.")


def decode_utf8(raw: bytes, path: str | os.PathLike[str]) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Args:
        raw: The content of a file.
        path: The file, for the message.

    Returns:
        The text.

    Raises:
        KifuseError: If it is not UTF-8; the message names the line.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise KifuseError(
            f"{path}:{line}: not UTF-8 text; save the file as UTF-8 (in Excel: CSV UTF-8)."
        ) from error


def parse_json(text: str, path: str | os.PathLike[str], first_line: int = 1) -> Any:
    """Decode JSON, and refuse an object that has the same key twice.

    Args:
        text: The JSON text.
        path: The file it comes from, for the message.
        first_line: The line of the file that the text begins in.

    Returns:
        The decoded value.

    Raises:
        KifuseError: If it is no JSON, is nested more than 100 levels deep, or an object has a key twice.
    """
    twice: list[tuple[dict[str, Any], str]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice.append((found, next(name for name in names if names.count(name) > 1)))
        return found

    try:
        value = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        said = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        found = said if text.strip() else "the file is empty"
        raise KifuseError(f"{path}:{line}: not valid JSON: {found}.") from error
    except ValueError as error:  # Python reads no whole number of more than 4300 digits
        raise KifuseError(f"{path}:{first_line}: not readable JSON: a number has too many digits.") from error
    except RecursionError as error:
        raise KifuseError(f"{path}:{first_line}: not readable JSON: nested too deeply.") from error
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise KifuseError(
            f"{path}:{first_line}: not readable JSON: nested too deeply, more than {DEEPEST} levels."
        )
    if twice:
        # In a text of many lines only the place inside the value is known.
        line = "" if "\n" in text.strip() else f":{first_line}"
        place = f"{path}{line}{_place_of(twice[0][0], value)}"
        raise KifuseError(f"{place}: the key '{twice[0][1]}' appears twice; remove one of the two.")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for children in inner for child in children if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def _place_of(wanted: object, value: Any) -> str:
    """Where an object stands inside a JSON value, e.g. ``: 'Instances' row 3``; empty for the whole."""
    open_items: list[tuple[Any, str]] = [(value, "")]
    while open_items:
        item, place = open_items.pop()
        if item is wanted:
            return f":{place}" if place else ""
        if isinstance(item, dict):
            open_items += [(child, f"{place} '{key}'") for key, child in item.items()]
        elif isinstance(item, list):
            open_items += [(child, f"{place} row {number}") for number, child in enumerate(item, 1)]
    return ""


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a UTF-8 JSON file, with or without a byte order mark.

    Args:
        path: The file to read.

    Returns:
        The decoded value. None of its texts holds half a surrogate pair, so all can be written out again.

    Raises:
        KifuseError: If the file is missing, unreadable, not UTF-8, or not JSON; the message names file and
            line.
    """
    text = decode_utf8(read_bytes(path), path)
    value = parse_json(text, path)
    if _HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise KifuseError(f"{path}: a text holds half a surrogate pair; the file is damaged.") from error
    return value


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
        check_plain(path)
        with Path(path).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except (OSError, ValueError) as error:
        raise KifuseError(f"{path}: cannot be read: {_reason(error)}.") from error
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
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    kept = None if metadata is None else dict(metadata)

    def fill(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata=kept)
        except SafetensorError as error:  # safetensors raises this when the disk is full
            raise OSError(str(error)) from error

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
    from safetensors import safe_open

    try:
        check_plain(path)
    except FileNotFoundError as error:
        raise KifuseError(f"{path}: no such file.") from error
    except (OSError, ValueError) as error:
        raise KifuseError(f"{path}: cannot be read: {_reason(error)}.") from error
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            metadata = dict(stream.metadata() or {})
    except Exception as error:  # a damaged header makes torch raise errors of many kinds
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
    except (OSError, ValueError) as error:
        raise KifuseError(f"{path}: cannot be written: {_reason(error)}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


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
