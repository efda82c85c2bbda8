"""Functions of the user's that are called before and after a learner learns a task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from kifuse.errors import ConfigError, RunError
from kifuse.record.lineage import LearnReport
from kifuse.tasks.task import Task

Before = Callable[[Task, Any], object]
"""Given the task, with all of its data that will be taken, and the learner."""

After = Callable[[LearnReport, Any], object]
"""Given the report and the learner."""


class Hooks:
    """Calls the user's functions, and turns what they raise into an error that says what it came to.

    Args:
        before: Called before a task is learned; what it raises refuses the task, and nothing is learned.
        after: Called with each report; what it raises is an error, and what was learned stays.

    Raises:
        ConfigError: One cannot be called.
    """

    def __init__(self, before: Before | None, after: After | None) -> None:
        for name, hook in (("before", before), ("after", after)):
            if hook is not None and not callable(hook):
                raise ConfigError(f"{name}: found {hook!r}, expected a function of two arguments, or None.")
        self._before, self._after = before, after
        self._inside = ""

    def before(self, task: Task, learner: Any) -> None:
        """Call the first one.

        Raises:
            RunError: It raised something.
        """
        if self._inside:
            raise RunError(f"{self._inside}: a hook cannot have the learner learn a task.")
        if self._before is not None:
            with self._named("before", f"{task.name!r} is refused, and nothing was learned"):
                self._before(task, learner)

    def after(self, report: LearnReport, learner: Any) -> None:
        """Call the second one.

        Raises:
            RunError: It raised something.
        """
        if self._after is not None:
            outcome = "learned" if report.accepted else "rolled back"
            with self._named("after", f"{report.task!r} stays {outcome}; the same call calls it again"):
                self._after(report, learner)

    @contextlib.contextmanager
    def _named(self, hook: str, outcome: str) -> Iterator[None]:
        self._inside = hook
        try:
            yield
        except Exception as error:
            raise RunError(f"{hook}: {type(error).__name__}: {error}; {outcome}.") from error
        finally:
            self._inside = ""
