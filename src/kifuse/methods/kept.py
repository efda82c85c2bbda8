"""State that a method declares in its class; it is then saved and resumed without further code.

    class Anchor(Method):
        strength: float = 1.0
        _start: OfTask[list[Tensor] | None] = None   # saved in the middle of a task, forgotten at its end
        _seen: Kept[int] = 0                         # kept from task to task

The table lists what may be declared, and where it is stored in a `MethodState`. `<name>` is the attribute's
name without the underscores in front:

| declared as | tensors | values |
| --- | --- | --- |
| `Tensor` | `<name>` | |
| `list[Tensor]`: one for each parameter, of its shape | `<name>.<parameter>` | |
| `dict[str, Tensor]` | `<name>.<key>` | |
| a class with `state_dict` and `load_state_dict`, made in `begin_task` | `<name>.<key>` | `<name>` |
| anything that JSON can hold | | `<name>` |

An attribute that is None is not saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, get_args

from torch import Tensor

from kifuse.methods.parameters import Parameters

T = TypeVar("T")
Kept = Annotated[T, "kept from task to task"]
"""Declares an attribute that is kept from task to task."""
OfTask = Annotated[T, "kept within a task"]
"""Declares an attribute that is saved in the middle of a task, and reset to its default when the task
ends."""
Unsaved = Annotated[T, "made anew by begin_task"]
"""Declares an attribute that is not saved: `begin_task` makes it anew, also in the middle of a task."""

MIDDLE = "of_task"
"""The key of the value that names the `OfTask` attributes in a state."""

_WRITTEN = re.compile(r"^(?:\w+\.)*(Kept|OfTask|Unsaved)\[")


@dataclass
class MethodState:
    """The state that a method must keep: `tensors` (by name) and JSON-serialisable `values`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Declared:
    """One declared attribute.

    Attributes:
        name: The attribute's name.
        within_task: Whether it is `OfTask`.
        written: Its type as text.
    """

    name: str
    within_task: bool
    written: str

    @property
    def saved(self) -> str:
        """Its name in a state."""
        return self.name.lstrip("_")

    @property
    def is_list(self) -> bool:
        """Whether it holds one tensor for each parameter."""
        return re.search(r"\blist\[(torch\.)?Tensor\]", self.written) is not None

    @property
    def is_dict(self) -> bool:
        """Whether it holds tensors by name."""
        return re.search(r"\bdict\[str, (torch\.)?Tensor\]", self.written) is not None


def declare(cls: Any) -> None:
    """Remove the declared attributes from a new class's annotations, so that they are not settings.

    Raises:
        TypeError: A default is a mutable object, which all objects of the class would share.
    """
    written = cls.__annotations__
    found = {}
    for name, annotation in list(written.items()):
        lifetime = _lifetime(annotation)
        if lifetime is None:
            continue
        del written[name]
        if name not in cls.__dict__:
            setattr(cls, name, None)
        if not isinstance(cls.__dict__[name], type(None) | bool | int | float | str | tuple):
            raise TypeError(
                f"{cls.__name__}.{name}: the default is a {type(cls.__dict__[name]).__name__}, which all "
                "methods of the class would share. Use None, and fill it in begin_task."
            )
        if lifetime != "Unsaved":
            found[name] = Declared(name, lifetime == "OfTask", str(annotation))
    cls.declared = {**getattr(cls, "declared", {}), **found}


def _lifetime(annotation: Any) -> str | None:
    if isinstance(annotation, str):
        match = _WRITTEN.match(annotation)
        return match.group(1) if match else None
    marks = get_args(annotation)[1:]
    for name, lifetime in (("Kept", Kept), ("OfTask", OfTask), ("Unsaved", Unsaved)):
        if get_args(lifetime)[1] in marks:
            return name
    return None


def forget(method: Any, *, all_of_it: bool) -> None:
    """Reset declared attributes to their defaults: all of them, or only those declared `OfTask`."""
    for each in _of(method):
        if all_of_it or each.within_task:
            setattr(method, each.name, getattr(type(method), each.name))


def collect(method: Any, names: Sequence[str]) -> MethodState:
    """Return all declared attributes of a method that are not None.

    Args:
        method: The method.
        names: Names of the parameters.
    """
    state, middle = MethodState(), []
    for each in _of(method):
        value = getattr(method, each.name)
        if value is None:
            continue
        if each.within_task:
            middle.append(each.saved)
        if isinstance(value, Tensor):
            state.tensors[each.saved] = value
        elif hasattr(value, "state_dict"):
            _add(state, each.saved, value.state_dict().items())
        elif each.is_list:
            _add(state, each.saved, zip(names, value, strict=True))
        elif each.is_dict:
            _add(state, each.saved, value.items())
        else:
            state.values[each.saved] = value
    if middle:
        state.values[MIDDLE] = middle
    return state


def _add(state: MethodState, name: str, entries: Iterable[tuple[str, Any]]) -> None:
    for key, value in entries:
        if isinstance(value, Tensor):
            state.tensors[f"{name}.{key}"] = value
        else:
            state.values.setdefault(name, {})[key] = value


def put_back(method: Any, state: MethodState, params: Parameters, *, begun: bool) -> None:
    """Set the declared attributes from a state, on the parameters' devices.

    Args:
        method: The method.
        state: A state from `collect`, possibly written to files and read again.
        params: The parameters.
        begun: Whether the state is from the middle of a task. Then `begin_task` was called again, so that
            objects that load their own state exist.

    Raises:
        ValueError: The state belongs to other parameters, or is not from the middle of a task.
    """
    device = params.tensors[0].device
    for each in _of(method):
        present = getattr(method, each.name)
        part = _under(each.saved, state.tensors)
        entries = {**part, **_named(state.values.get(each.saved))}
        if hasattr(present, "load_state_dict") and entries:
            present.load_state_dict(entries)
        elif each.is_list and part:
            setattr(method, each.name, one_for_each(each.saved, part, params))
        elif each.is_dict and part:
            setattr(method, each.name, {key: tensor.to(device) for key, tensor in part.items()})
        elif each.saved in state.tensors:
            setattr(method, each.name, state.tensors[each.saved].to(device))
        elif each.saved in state.values and not part:
            setattr(method, each.name, state.values[each.saved])
        elif begun and each.within_task and present is not None:
            _absent(method, each, state)


def _named(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _absent(method: Any, each: Declared, state: MethodState) -> None:
    """Reset an attribute that `begin_task` set but the state lacks: it was None when the state was saved."""
    if MIDDLE not in state.values:
        raise ValueError(
            f"the method's state holds nothing as {each.saved}: it is not of a task's middle, or is of an "
            "earlier kifuse, which wrote it in another way. Start the task again."
        )
    setattr(method, each.name, {} if each.is_dict and each.saved in state.values[MIDDLE] else None)


def _of(method: Any) -> list[Declared]:
    return list(type(method).declared.values())


def _under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def one_for_each(name: str, found: Mapping[str, Tensor], params: Parameters) -> list[Tensor]:
    """Find the tensor of each parameter by the parameter's name, and move it to the parameter's device.

    Args:
        name: The attribute's name, for messages.
        found: The tensors.
        params: The parameters.

    Raises:
        ValueError: A tensor is missing or has another shape than its parameter.
    """
    tensors: list[Tensor] = []
    for key, p in zip(params.names, params.tensors, strict=True):
        tensor = found.get(key)
        if tensor is None or tensor.shape != p.shape:
            what = "nothing" if tensor is None else f"a tensor of shape {tuple(tensor.shape)}"
            raise ValueError(
                f"the method's state holds {what} as {name}.{key}, expected shape {tuple(p.shape)}; "
                "training can continue only with the same trainable parameters."
            )
        tensors.append(tensor.to(p.device))
    return tensors
