"""The user's functions that are called before and after a learner learns a task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from kifuse.errors import ConfigError, RunError
from kifuse.record.lineage import LearnReport
from kifuse.tasks.task import Task

Before = Callable[[Task, Any], object]
"""A function that is called with the task, holding all data that it will use, and the learner."""

After = Callable[[LearnReport, Any], object]
"""A function that is called with the report and the learner."""


class Hooks:
    """Calls the user's functions; an exception in one becomes an error that says what became of the task.

    Args:
        before: Called before a task is learned; if it raises an exception, the task is refused and nothing is
            learned.
        after: Called with each report; an exception in it is an error, but what was learned stays.

    Raises:
        ConfigError: One of them cannot be called.
    """

    def __init__(self, before: Before | None, after: After | None) -> None:
        for name, hook in (("before", before), ("after", after)):
            if hook is not None and not callable(hook):
                raise ConfigError(f"{name}: found {hook!r}, expected a function of two arguments, or None.")
        self._before, self._after = before, after
        self._inside = ""

    def before(self, task: Task, learner: Any) -> None:
        """Call the function for before.

        Raises:
            RunError: The function raised an exception, or this is called from within a hook.
        """
        if self._inside:
            raise RunError(f"{self._inside}: a hook cannot call learn() of its learner.")
        if self._before is not None:
            with self._named("before", f"{task.name!r} is refused, and nothing was learned"):
                self._before(task, learner)

    def after(self, report: LearnReport, learner: Any) -> None:
        """Call the function for after.

        Raises:
            RunError: The function raised an exception.
        """
        if self._after is not None:
            outcome = "learned" if report.accepted else "rolled back"
            with self._named("after", f"{report.task!r} stays {outcome}; the same call runs the hook again"):
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
