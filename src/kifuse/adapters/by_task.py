"""Adapters with separate tensors for each task: the current task's are trained, earlier ones are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kifuse.adapters.asked import ReadsAsked
from kifuse.adapters.folder import refuse_other_tensors, write_own

PAST = "past_"


class ByTask(nn.Module):
    """A module with separate tensors for each task.

    The current task's tensor `x` is trained. `past_x` holds the earlier tasks' tensors, along one more
    dimension in front.
    """

    passing: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of trained tensors that serve the current task alone and are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def add(self, name: str, start: Tensor) -> None:
        """Add a tensor that each task has its own copy of."""
        self.names.append(name)
        self.register_parameter(name, nn.Parameter(start.clone()))
        self.register_buffer(PAST + name, start.new_empty(0, *start.shape))

    @property
    def earlier(self) -> int:
        """Number of earlier tasks whose tensors are held here."""
        return len(getattr(self, PAST + self.names[0])) if self.names else 0

    def all_of(self, name: str) -> Tensor:
        """The tensors of all tasks, with the current task's last: `(t, ...)`."""
        return torch.cat([getattr(self, PAST + name), getattr(self, name)[None]])

    def grow(self) -> None:
        """Append a frozen copy of the current task's tensors to those of the earlier tasks."""
        for name in self.names:
            setattr(self, PAST + name, self.all_of(name).detach())

    def drop(self) -> None:
        """Remove the tensors of all earlier tasks."""
        for name in self.names:
            setattr(self, PAST + name, getattr(self, PAST + name)[:0])


class GrowsByTask(ReadsAsked):
    """Base of adapters whose modules on the model are `ByTask`."""

    @property
    def parts(self) -> dict[str, ByTask]:
        """The adapter's modules by name."""
        return {name: m for name, m in self.model.named_modules() if isinstance(m, ByTask)}

    @property
    def earlier(self) -> int:
        """Number of earlier tasks whose frozen tensors are in the model."""
        return max(part.earlier for part in self.parts.values())

    def count(self, tasks: Tensor) -> None:
        """Count in `taken` which task each row was assigned to, outside of training; `(rows,)`, from 0."""
        if self.taken is not None and not self.model.training:
            self.taken.update(tasks.tolist())

    def renew(self, part: ByTask, draw: torch.Generator) -> None:
        """Overwrite a part's trained tensors, in place, with the values that a task starts from."""
        raise NotImplementedError

    @torch.no_grad()
    def begin_task(self, index: int, seed: int) -> None:
        """Freeze the tensors of the task before and start new ones; the first task needs neither."""
        # each task has its own seed, within the range that every generator accepts
        draw = torch.Generator().manual_seed((seed * 1000 + index) % 2**32)
        for part in self.parts.values() if index else ():
            part.grow()
            self.renew(part, draw)

    def frozen(self) -> dict[str, Tensor]:
        """The earlier tasks' tensors, and any other buffers that the adapter keeps and does not train."""
        buffers = {f"{n}.{b}": t for n, part in self.parts.items() for b, t in part.named_buffers()}
        return {name: tensor for name, tensor in buffers.items() if len(tensor)}

    def kept(self) -> dict[str, Tensor]:
        """The trained tensors that are saved, by name."""
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            found |= {
                f"{name}.{own}": p for own, p in part.named_parameters() if not own.startswith(part.passing)
            }
        return found

    def restart(self, values: Mapping[str, Tensor]) -> None:
        """Remove all tasks, and set the values that the first task starts from."""
        for part in self.parts.values():
            part.drop()
        super().restart(values)

    def save(self, folder: Path) -> None:
        """Write the tensors of all tasks."""
        write_own(folder, self.description(), {**self.kept(), **self.frozen()}, self.model)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Load what `save` wrote, for any number of tasks.

        Raises:
            ModelError: The folder holds no adapter, or a different one.
        """
        found, own = self.read_own(folder), self.kept()
        buffers = {f"{n}.{b}": (part, b) for n, part in self.parts.items() for b, _ in part.named_buffers()}
        shapes = {name: tuple(p.shape) for name, p in own.items()}
        for name, (part, buffer) in buffers.items():
            if name in found.tensors:
                first = found.tensors[name].shape[:1]
                shapes[name] = (*first, *getattr(part, buffer).shape[1:])
        refuse_other_tensors(found.weights, {n: tuple(t.shape) for n, t in found.tensors.items()}, shapes)
        for name, p in own.items():
            p.copy_(found.tensors[name])
        for name, (part, buffer) in buffers.items():
            present: Any = getattr(part, buffer)
            value = found.tensors[name].to(present) if name in found.tensors else present[:0]
            setattr(part, buffer, value)
