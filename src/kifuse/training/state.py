"""What must survive the end of a task beside the adapter: the method's state and the memory buffer."""

from __future__ import annotations

from pathlib import Path

from kifuse.errors import RunError
from kifuse.methods.base import Method, MethodState
from kifuse.storage import read_json, read_tensors, write_json, write_tensors
from kifuse.tasks.memory import MemoryBuffer

FORMAT = 1


def save_state(folder: Path, method: Method, memory: MemoryBuffer) -> None:
    """Write the state after a task; each file is written whole or not at all, the JSON last.

    Args:
        folder: `state/after-<k>` of the run.
        method: The method.
        memory: The memory buffer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = method.state()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    write_tensors(folder / "method.safetensors", tensors)
    write_json(folder / "memory.json", memory.state())
    write_json(
        folder / "method.json",
        {
            "format": FORMAT,
            "method": type(method).__name__,
            "method_version": method.version,
            "values": state.values,
            "tensors": sorted(tensors),
        },
    )


def load_state(folder: Path, method: Method) -> MemoryBuffer:
    """Give a method its state back.

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
                f"{file}: {key} is {described.get(key)!r}, expected {value!r}; "
                "the run was made by another version or method and cannot go on with this one."
            )
    tensors, _ = read_tensors(folder / "method.safetensors")
    if sorted(tensors) != described["tensors"]:
        raise RunError(
            f"{folder / 'method.safetensors'}: holds {sorted(tensors)}, expected {described['tensors']}."
        )
    method.load_state(MethodState(tensors, described["values"]))
    return MemoryBuffer.from_state(read_json(folder / "memory.json"))
