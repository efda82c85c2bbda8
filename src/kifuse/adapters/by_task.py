"""Adapters with something of its own for each task: the last task's is trained, the others are frozen."""

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
    """Tensors of which each task has its own: `x` is trained, `past_x` has one more dimension in front."""

    passing: ClassVar[tuple[str, ...]] = ()
    """What is trained and serves the present task alone, so that it is not saved: beginnings of names."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def add(self, name: str, start: Tensor) -> None:
        """Begin a tensor that each task has its own of."""
        self.names.append(name)
        self.register_parameter(name, nn.Parameter(start.clone()))
        self.register_buffer(PAST + name, start.new_empty(0, *start.shape))

    @property
    def earlier(self) -> int:
        """Number of earlier tasks whose tensors are here."""
        return len(getattr(self, PAST + self.names[0])) if self.names else 0

    def all_of(self, name: str) -> Tensor:
        """The tensors of all tasks, the present one's last: `(t, ...)`."""
        return torch.cat([getattr(self, PAST + name), getattr(self, name)[None]])

    def grow(self) -> None:
        """Freeze the present task's tensors among the earlier ones; the present ones stay as they are."""
        for name in self.names:
            setattr(self, PAST + name, self.all_of(name).detach())

    def drop(self) -> None:
        """Forget all earlier tasks."""
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
        """Number of earlier tasks whose tensors are in the model, frozen."""
        return max(part.earlier for part in self.parts.values())

    def count(self, tasks: Tensor) -> None:
        """Count in `taken`, where nothing is trained, of which task each row was read; `(rows,)` from 0."""
        if self.taken is not None and not self.model.training:
            self.taken.update(tasks.tolist())

    def renew(self, part: ByTask, draw: torch.Generator) -> None:
        """Overwrite a part's trained tensors, in place, with what a task begins with."""
        raise NotImplementedError

    @torch.no_grad()
    def begin_task(self, index: int, seed: int) -> None:
        """After the first task: freeze what it trained among the earlier ones, and begin anew beside it."""
        # of each task its own, and within what every generator takes
        draw = torch.Generator().manual_seed((seed * 1000 + index) % 2**32)
        for part in self.parts.values() if index else ():
            part.grow()
            self.renew(part, draw)

    def frozen(self) -> dict[str, Tensor]:
        """What is kept of earlier tasks, and whatever else the adapter keeps and does not train."""
        buffers = {f"{n}.{b}": t for n, part in self.parts.items() for b, t in part.named_buffers()}
        return {name: tensor for name, tensor in buffers.items() if len(tensor)}

    def kept(self) -> dict[str, Tensor]:
        """What is saved of the trained tensors, by name."""
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            found |= {
                f"{name}.{own}": p for own, p in part.named_parameters() if not own.startswith(part.passing)
            }
        return found

    def restart(self, values: Mapping[str, Tensor]) -> None:
        """Forget all tasks, and set what the first one begins with."""
        for part in self.parts.values():
            part.drop()
        super().restart(values)

    def save(self, folder: Path) -> None:
        """Write the tensors of all tasks."""
        write_own(folder, self.description(), {**self.kept(), **self.frozen()}, self.model)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Put what was saved back, of however many tasks it is.

        Raises:
            ModelError: The folder holds no adapter, or another one.
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
