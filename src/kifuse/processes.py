"""The processes that a launcher (torchrun, accelerate) starts for one run share work and results."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from kifuse.errors import KifuseError, RunError

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)
"""Longest wait of a process for the others, for example while only the first one calls a slow metric."""


class ToldByFirst(RunError):
    """An error of the first process, which reports it itself."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run; all of them make the same calls in the same order.

    Attributes:
        rank: Number of this process, from 0; the first process writes and prints for all.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_launcher(cls) -> Processes:
        """Connect the processes that the launcher has started, as its environment variables say.

        Raises:
            RunError: The processes cannot reach each other.
        """
        count = process_count()
        if count == 1:
            return ALONE
        from accelerate import PartialState
        from torch import distributed

        # each process has loaded the whole model, and has scored with it, before FSDP cuts it
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        if not distributed.is_initialized():
            with _answering():
                PartialState(timeout=_PATIENCE)
        return cls(_rank(), count)

    def shared_out(self, costs: Sequence[int]) -> list[int]:
        """Return the indices of this process's pieces of work: each piece goes to the least loaded process.

        Args:
            costs: The cost of each piece of work, the same on all processes.
        """
        loads, mine = [0] * self.count, []
        for place, cost in enumerate(costs):
            least = loads.index(min(loads))
            loads[least] += cost
            if least == self.rank:
                mine.append(place)
        return mine

    def gathered(self, mine: T) -> list[T]:
        """Collect a value from every process, in the order of their ranks.

        Raises:
            RunError: Another process has ended.
        """
        if self.count == 1:
            return [mine]
        from torch import distributed

        found: list[Any] = [None] * self.count
        with _answering():
            distributed.all_gather_object(found, mine)
        return found

    def joined(self, mine: Mapping[int, T]) -> dict[int, T]:
        """Collect the results of all processes, by the index of the piece of work."""
        return {place: each for found in self.gathered(mine) for place, each in found.items()}

    def any_of(self, flags: Sequence[bool], device: Any) -> list[bool]:
        """Which of some flags are set on any process; cheap enough for every step.

        Args:
            flags: This process's own.
            device: Where training runs.

        Raises:
            RunError: Another process has ended.
        """
        if self.count == 1:
            return list(flags)
        import torch
        from torch import distributed

        found = torch.tensor(flags, dtype=torch.float32, device=device)
        with _answering():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def of_first(self, work: Callable[[], T]) -> T:
        """Let only the first process do some work, and give its result to all processes.

        Args:
            work: The function that the first process calls.

        Raises:
            Exception: The error that the work raises; the other processes raise `ToldByFirst` for it.
            RunError: The first process has ended.
        """
        if self.count == 1:
            return work()
        from torch import distributed

        told: list[Any] = [None, None]
        error: BaseException | None = None
        if self.rank == 0:
            try:
                told[0] = work()
            except Exception as raised:
                error = raised
                told[1] = str(raised) if isinstance(raised, KifuseError) else type(raised).__name__
        with _answering():
            distributed.broadcast_object_list(told, src=0)
        if error is not None:
            raise error
        if told[1] is not None:
            raise ToldByFirst(told[1])
        return told[0]


ALONE = Processes()
"""A run with a single process."""


def process_count() -> int:
    """How many processes the launcher has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the first one, which writes and prints for all."""
    return _rank() == 0


def leave_processes() -> None:
    """Leave the group of processes that worked together, so that none of its threads outlives the run."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def under_deepspeed() -> bool:
    """Whether accelerate was told to train with DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turn an error of the connection into a plain message that another process is gone.

    Raises:
        RunError: Another process has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "another process of this run has ended or does not answer. See what it printed, and give the "
            "same command again to continue from what was saved."
        ) from error
