"""A folder of state that is there whole or not at all: JSON, safetensors and text, with their hashes."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kifuse.errors import RunError
from kifuse.io.sealed_json import read_sealed, write_sealed
from kifuse.io.storage import json_text, read_tensors, sha256_file, write_tensors, write_text
from kifuse.io.whole_folders import check_file, replace_folder
from kifuse.methods.base import Method, MethodState, Parameters
from kifuse.models.names import file_name, for_state

FORMAT = 1
STATE = "state.json"
"""The file that describes a folder."""


@dataclass
class StateFolder:
    """What a folder of state holds.

    Attributes:
        values: What `state.json` says.
        tensors: Tensors by the name of their file without its ending, then by their own name.
        texts: Texts by the name of their file.
        folders: Functions that write a folder, by its name. Its files are listed with hashes, and not read.
    """

    values: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Callable[[Path], None]] = field(default_factory=dict)


def write_state(folder: Path, content: StateFolder) -> None:
    """Write a folder of state; one of that name is replaced.

    Raises:
        RunError: The folder cannot be written.
        KifuseError: A file in it cannot be written.
    """

    def fill(partial: Path) -> None:
        for name, tensors in content.tensors.items():
            write_tensors(partial / f"{name}.safetensors", tensors)
        for name, text in content.texts.items():
            write_text(partial / name, text)
        for name, save in content.folders.items():
            save(partial / name)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {path.relative_to(partial).as_posix(): sha256_file(path) for path in paths}
        found = {"format": FORMAT, **content.values, "files": files}
        write_sealed(partial / STATE, json_text(partial / STATE, found))

    try:
        replace_folder(folder, fill)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror or error}.") from error


def read_state(folder: Path, *, without: frozenset[str] = frozenset()) -> StateFolder:
    """Read a folder of state, and make sure that every file is as it was written.

    Args:
        folder: The folder to read.
        without: Names of files that are not needed.

    Raises:
        RunError: A file is missing, damaged, or of another format; the message names it.
        KifuseError: `state.json` is missing or not JSON.
    """
    file = folder / STATE
    values = sealed_values(file)
    found = StateFolder(values)
    for name, expected in values["files"].items():
        if name in without:
            continue
        path = folder / name
        if not _within(name):
            raise RunError(f"{file}: lists {name!r}, which is not in this folder; the file is damaged.")
        check_file(path, expected, STATE)
        if path.parent != folder:
            continue
        if path.suffix == ".safetensors":
            found.tensors[path.stem] = read_tensors(path)[0]
        else:
            found.texts[name] = path.read_text(encoding="utf-8")
    return found


def sealed_values(file: Path) -> dict[str, Any]:
    """Read the `state.json` of a folder; its other files are not looked at.

    Raises:
        RunError: It is damaged, or of another format.
        KifuseError: It is missing or not JSON.
    """
    values, _ = read_sealed(file)
    if not isinstance(values, dict) or values.get("format") != FORMAT or "files" not in values:
        raise RunError(
            f"{file}: not a state of format {FORMAT}; it is damaged or of another version of kifuse."
        )
    return values


def _within(name: str) -> bool:
    """Whether a listed file lies in the folder, or in one below it."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def after_folder(state_dir: Path, k: int) -> Path:
    """Folder of the state after k tasks."""
    return state_dir / f"after-{k}"


def newest_state(state_dir: Path) -> int:
    """The number of tasks after which the newest state was written; 0 if there is none.

    A folder appears whole or not at all. So one without its `state.json` is damaged, and it counts.
    """
    numbers = {path.parent.name.removeprefix("after-") for path in state_dir.glob("after-*/*")}
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def refuse_unwritable(folder: Path) -> None:
    """Make a folder, and check that files can be written in it: better now than after the training.

    Raises:
        KifuseError: They cannot.
    """
    probe = folder / ".probe"
    write_text(probe, "")
    probe.unlink(missing_ok=True)


def refuse_other_writer(state_dir: Path, newest: int) -> None:
    """Refuse to overwrite what another script has written meanwhile.

    Args:
        state_dir: Folder of states.
        newest: The number of tasks of the newest state when this task began.

    Raises:
        RunError: There is a newer state.
    """
    found = newest_state(state_dir)
    if found != newest:
        raise RunError(
            f"{state_dir}: another script has written {after_folder(state_dir, found).name} since this task "
            "began. Its state is kept, and the state of this task is not written. Train one task after "
            "another, or give each script its own state_dir."
        )


def describe(method: Method) -> dict[str, Any]:
    """What a method's state depends on, as JSON."""
    settings = json.loads(json.dumps(method.settings(), default=str))
    return {"method": type(method).__name__, "version": method.version, "settings": settings}


def refuse_other_method(file: Path, values: Mapping[str, Any], method: Method) -> None:
    """Refuse a state that another method, version or setting wrote.

    Raises:
        RunError: It is not this method's state; the message names the first thing that differs.
    """
    own = describe(method)
    pairs = [(key, values.get(key), own[key]) for key in ("method", "version")]
    kept = values.get("settings") or {}
    # a setting that the writer did not know yet has its default
    pairs += [(f"setting {key}", kept[key], value) for key, value in own["settings"].items() if key in kept]
    for what, found, expected in pairs:
        if found != expected:
            raise RunError(
                f"{file}: {what} is {found!r}, but {expected!r} now. Use the method and the settings that "
                "wrote the folder, or name a new folder."
            )


def refuse_other_weights(
    found: str, learned: Sequence[Mapping[str, Any]], state_dir: Path | None, *, kept: bool
) -> None:
    """Refuse weights that are not those after the last task.

    Args:
        found: Fingerprint of the trained tensors.
        learned: What was learned, at least one task.
        state_dir: Folder of states, if there is one.
        kept: Whether that folder holds the weights too.

    Raises:
        RunError: They are other weights.
    """
    last = learned[-1]
    if found == last["weights"]:
        return
    place = f"{state_dir}: " if state_dir is not None else ""
    known = next((task["name"] for task in learned if task["weights"] == found), None)
    what = f"those after task {known!r}" if known else "others"
    remedy = ""
    if state_dir is not None and kept:
        remedy = " callback.restore(model) puts them back from that folder."
    raise RunError(
        f"{place}the state is the one after task {last['name']!r} (weights {last['weights'][:12]}…), but "
        f"the model's trainable weights are {what} ({found[:12]}…). Load the adapter that "
        "trainer.save_model() wrote after that task; a checkpoint of the Trainer is from before the "
        f"method's last change.{remedy} To learn something else from here, name a new state_dir."
    )


def weights_of(params: Parameters) -> dict[str, Tensor]:
    """The trained tensors by the names that an adapter's file gives them."""
    return {file_name(name): p.detach() for name, p in sorted(zip(params.names, params.tensors, strict=True))}


@torch.no_grad()
def fingerprint(params: Parameters) -> str:
    """A hash of the trained tensors: names, shapes and values, whatever precision they are held in."""
    digest = hashlib.sha256()
    for name, tensor in weights_of(params).items():
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        # half precisions come back from float32 bit for bit
        wide = tensor.cpu() if tensor.dtype == torch.float64 else tensor.cpu().float()
        digest.update(wide.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def copied(state: MethodState, device: torch.device) -> MethodState:
    """Copy a state, so that it shares no memory with what the method goes on changing."""
    tensors = {name: tensor.detach().to(device, copy=True) for name, tensor in state.tensors.items()}
    return MethodState(tensors, copy.deepcopy(state.values))


@torch.no_grad()
def put_weights(kept: Mapping[str, Tensor], params: Parameters) -> None:
    """Overwrite trained tensors with what `weights_of` gave."""
    for name, tensor in weights_of(params).items():
        tensor.copy_(kept[name])


@torch.no_grad()
def restore_weights(state_dir: Path | None, model: Any) -> None:
    """Put the weights after the last finished task into a model.

    Args:
        state_dir: Folder of states, if there is one.
        model: A model with the same trainable parameters.

    Raises:
        RunError: There is no state, or it was written without weights or with those of another model.
    """
    newest = newest_state(state_dir) if state_dir is not None else 0
    if state_dir is None or not newest:
        raise RunError(f"state_dir: {state_dir} holds no finished task to restore.")
    folder = after_folder(state_dir, newest)
    kept = read_state(folder).tensors.get("weights")
    params = Parameters(for_state(model))
    own = weights_of(params)
    if kept is None or {n: t.shape for n, t in kept.items()} != {n: t.shape for n, t in own.items()}:
        found = "no weights" if kept is None else f"weights of another model ({len(kept)} tensors)"
        raise RunError(f"{folder}: holds {found}, expected those of the {len(own)} trainable tensors.")
    put_weights(kept, params)
