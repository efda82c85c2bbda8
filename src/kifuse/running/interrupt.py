"""Ctrl-C while a task trains: the step is finished, its state is kept, and the user is told how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The user's Ctrl-C, and the notice that a cluster gives before it takes a machine back."""


class Patience:
    """Notes the first request to stop, and obeys it between two steps; obeys a second one at once.

    Args:
        say: Called with a line about what is going on.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.asked = False
        self.say = say

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals for as long as the block runs; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say("stopping after this step; press Ctrl-C again to stop at once without saving")

    def check(self, step: int) -> None:
        """Stop between two steps if it was asked for.

        Raises:
            KeyboardInterrupt: It was asked for.
        """
        self._stop(f"step {step}")

    def check_task(self, name: str) -> None:
        """Stop at a task's end if it was asked for after the last step.

        Raises:
            KeyboardInterrupt: It was asked for.
        """
        self._stop(f"the training on {name}")

    def _stop(self, place: str) -> None:
        if self.asked:
            self.say(f"stopped and saved after {place}; give the same command to continue from there")
            raise KeyboardInterrupt
