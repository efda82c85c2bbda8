"""What a task leaves behind: the adapter, the method's state and the memory buffer, all of it or nothing.

<run>/adapters/after-<k>/    the standard adapter folder
<run>/state/after-<k>/       method.safetensors, method.json, memory.json, manifest.json (written last)
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from kifuse.adapters.base import Adapter
from kifuse.errors import RunError
from kifuse.io.manifest import check_manifest, write_manifest
from kifuse.io.storage import read_json, read_tensors, sha256_file, write_json, write_tensors
from kifuse.methods.base import Method, MethodState
from kifuse.tasks.memory import MemoryBuffer

FORMAT = 1


class Snapshots:
    """The snapshots of a run, one after each task.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def adapter(self, k: int) -> Path:
        """Folder of the adapter after k tasks."""
        return self.folder / "adapters" / f"after-{k}"

    def state(self, k: int) -> Path:
        """Folder of the method's state and the memory after k tasks."""
        return self.folder / "state" / f"after-{k}"

    def has(self, k: int) -> bool:
        """Whether the snapshot after k tasks was written to its end, and its adapter is still there."""
        return (self.state(k) / "manifest.json").is_file() and self.adapter(k).is_dir()

    def save(self, k: int, adapter: Adapter, method: Method, memory: MemoryBuffer) -> str:
        """Write the snapshot after k tasks.

        Returns:
            The SHA-256 of its list of files, for the record.

        Raises:
            RunError: It cannot be written, for example because the disk is full.
        """
        manifest = self.state(k) / "manifest.json"
        try:
            manifest.unlink(missing_ok=True)
            adapter.save(self.adapter(k))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"{self.adapter(k)}: the adapter cannot be written: {reason}.") from error
        save_state(self.state(k), method, memory)
        write_manifest(manifest, [self.adapter(k), self.state(k)])
        return sha256_file(manifest)

    def check(self, k: int, seal: str | None) -> None:
        """Make sure that the snapshot after k tasks is as it was written.

        Args:
            k: The number of tasks.
            seal: What `save` gave; None if it is not known.

        Raises:
            RunError: A file is damaged, missing, or of another snapshot.
        """
        check_manifest(self.state(k) / "manifest.json", [self.adapter(k), self.state(k)], seal)

    def load(self, k: int, adapter: Adapter, method: Method, seal: str | None) -> MemoryBuffer:
        """Restore the snapshot after k tasks; `seal` is that of `check`.

        Returns:
            The memory buffer.

        Raises:
            RunError: A file is damaged, or of another version or method.
        """
        self.check(k, seal)
        adapter.load(self.adapter(k))
        return load_state(self.state(k), method)


def save_state(folder: Path, method: Method, memory: MemoryBuffer) -> None:
    """Write a method's state and the memory; each file is written whole or not at all.

    Args:
        folder: `state/after-<k>` of the run.
        method: The method.
        memory: The memory buffer.
    """
    state = method.state()
    write_tensors(folder / "method.safetensors", state.tensors)
    write_json(folder / "memory.json", memory.state())
    write_json(
        folder / "method.json",
        {
            "format": FORMAT,
            "method": type(method).__name__,
            "method_version": method.version,
            "values": state.values,
            "tensors": sorted(state.tensors),
        },
    )


def load_state(folder: Path, method: Method) -> MemoryBuffer:
    """Restore a method's state.

    Returns:
        The memory buffer.

    Raises:
        RunError: The state is of another format, version or method, or incomplete.
    """
    file = folder / "method.json"
    described = read_json(file)
    expected = {"format": FORMAT, "method": type(method).__name__, "method_version": method.version}
    for key, value in expected.items():
        if described.get(key) != value:
            raise RunError(
                f"{file}: {key} is {described.get(key)!r}, expected {value!r}; the run was made by another "
                "version or method, so this one cannot continue it."
            )
    tensors, _ = read_tensors(folder / "method.safetensors")
    if sorted(tensors) != described["tensors"]:
        raise RunError(
            f"{folder / 'method.safetensors'}: holds {sorted(tensors)}, expected {described['tensors']}."
        )
    method.load_state(MethodState(tensors, described["values"]))
    return MemoryBuffer.from_state(read_json(folder / "memory.json"), where=folder / "memory.json")
