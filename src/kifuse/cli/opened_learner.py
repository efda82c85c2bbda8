"""How the verbs open a learner's folder: answers go to stdout, everything else goes to stderr."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kifuse.errors import ConfigError, RunError
from kifuse.terminal.safe_console import SafeConsole

if TYPE_CHECKING:
    from kifuse.learning.learner import ContinualLearner

FOLDER = "The learner's folder."
MODEL = "The model's folder, if it has moved since."
TRUST = "Run Python code that comes with the model. The learner's folder cannot allow this."
OWN_METHOD = "module:Class of the learner's method, if it is your own. The learner's folder cannot name it."
AFTER = "Use the state after this task. Default: the present state."
JSON = "Print the result as JSON, for scripts."

GATE = 3
"""Exit code if a task was rolled back because it cost earlier tasks too much or scored too little."""


def speaks() -> bool:
    """Whether this process prints results: the only one, or the first of several."""
    from kifuse.processes import is_main_process

    return is_main_process()


def has_learner(folder: Path) -> bool:
    """Return whether the folder holds the record of a learner."""
    return os.path.isfile(os.path.join(os.path.expanduser(folder), "record.json"))


def refuse_missing(folder: Path) -> None:
    """Refuse a folder that holds no learner.

    Raises:
        RunError: The folder holds none.
    """
    if not has_learner(folder):
        raise RunError(
            f"{folder}: found no learner, expected a folder that 'kifuse learn' made. Start one: kifuse "
            f"learn {folder} DATA --model MODEL"
        )


@contextlib.contextmanager
def opened(
    folder: Path,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Iterator[ContinualLearner]:
    """Open the learner of a folder; its messages go to stderr.

    Args:
        folder: The learner's folder.
        model: The name or folder of its model, if the model has moved; None: the one on record.
        settings: Sections that the learner must have.
        trust_remote_code: Whether code that comes with the model may run.
        quiet: Whether to print no messages.
        options: Other options of `ContinualLearner.load`.

    Raises:
        KifuseError: There is no learner, or it cannot be opened.
    """
    refuse_missing(folder)

    from kifuse.learning.learner import ContinualLearner
    from kifuse.record.run_record import RunRecord

    record, expected = RunRecord.load(os.path.expanduser(folder)), settings or {}
    trusted = trust_remote_code or expected.get("model", {}).get("trust_remote_code", False)
    with _told(quiet) as progress:
        yield ContinualLearner.load(
            folder,
            None if model == record.model.get("name") else model,
            settings=settings,
            trust_remote_code=trusted,
            own_metrics=expected.get("data", {}).get("own_metrics", ()),
            progress=progress,
            **options,
        )


@contextlib.contextmanager
def begun(
    folder: Path,
    *,
    model: str | None,
    settings: Mapping[str, Any],
    trust_remote_code: bool,
    quiet: bool,
    **options: Any,
) -> Iterator[ContinualLearner]:
    """Make a learner in a new folder; its messages go to stderr, as in `opened`.

    Raises:
        ConfigError: The model is not named, or a setting is wrong.
        KifuseError: The model cannot be loaded, or the folder holds something else.
    """
    if model is None:
        raise ConfigError(
            f"--model: {folder} holds no learner yet, so its model must be named: a name of 'kifuse ls "
            "models', a hub id, or a folder."
        )
    sections = dict(settings)
    method = {"name": "recurrent-kif", **sections.pop("method", {})}
    if trust_remote_code:
        sections["model"] = {**sections.get("model", {}), "trust_remote_code": True}

    from kifuse.learning.learner import ContinualLearner

    with _told(quiet) as progress:
        yield ContinualLearner(model, method, folder, settings=sections, progress=progress, **options)


@contextlib.contextmanager
def _told(quiet: bool) -> Iterator[Any]:
    """Print a learner's messages to stderr while it is open."""
    from kifuse.cli.quiet import quieten
    from kifuse.processes import is_main_process, leave_processes
    from kifuse.terminal.progress import ConsoleProgress

    quieten(everything=quiet)
    # one of several processes speaks for all
    progress = ConsoleProgress(SafeConsole(stderr=True, quiet=quiet or not is_main_process()))
    try:
        yield progress
    finally:
        progress.finish()
    leave_processes()


def known_states(names: list[str], learned: list[str]) -> list[str | None]:
    """Return the states to ask, each once; the present one if none is named.

    Raises:
        RunError: No such task was learned.
    """
    from kifuse.record.lineage import count_up_to

    for name in names:
        count_up_to(name, learned, "--after")
    return [*dict.fromkeys(names)] or [None]
