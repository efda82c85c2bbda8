"""The processes that a launcher (torchrun, accelerate) starts for one run: shares of work, and agreement."""

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
"""How long a process waits for the others, as where the first one alone calls a slow metric."""


class ToldByFirst(RunError):
    """What went wrong on the first process, which says it itself."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run; all of them make the same calls in the same order.

    Attributes:
        rank: Which one this is, from 0 on; the first one writes and speaks for all.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_launcher(cls) -> Processes:
        """Those that the launcher has started, as its environment variables say; they know each other then.

        Raises:
            RunError: They cannot reach each other.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return ALONE
        from accelerate import PartialState
        from torch import distributed

        if not distributed.is_initialized():
            with _answering():
                PartialState(timeout=_PATIENCE)
        return cls(int(os.environ.get("RANK", "0")), count)

    def shared_out(self, costs: Sequence[int]) -> list[int]:
        """The places of the work that is this process's: each goes to whoever has the least so far.

        Args:
            costs: How much work each piece is, the same on all processes.
        """
        loads, mine = [0] * self.count, []
        for place, cost in enumerate(costs):
            least = loads.index(min(loads))
            loads[least] += cost
            if least == self.rank:
                mine.append(place)
        return mine

    def gathered(self, mine: T) -> list[T]:
        """What all processes have, in the order of their ranks.

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
        """What all processes have found, by its place."""
        return {place: each for found in self.gathered(mine) for place, each in found.items()}

    def of_first(self, work: Callable[[], T]) -> T:
        """Let the first process do something, and hand its outcome to all.

        Args:
            work: Is called on the first process alone.

        Raises:
            Exception: What the work raises; the other processes raise `ToldByFirst` for it.
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
"""One process, which nobody else has a share with."""


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Say in plain words that another process is gone.

    Raises:
        RunError: It is.
    """
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "another process of this run has ended or does not answer; see what it printed, and give the "
            "same command again: what was saved is gone on with."
        ) from error
