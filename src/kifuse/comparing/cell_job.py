"""One cell of a grid as a job: everything that another process, or another machine, needs to run it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from kifuse.comparing.compare_section import LOG, TOKENS
from kifuse.comparing.grid import Grid, PlannedRun
from kifuse.config import RunConfig
from kifuse.errors import KifuseError
from kifuse.io.lock import FolderInUseError
from kifuse.reporting.wording import shorten
from kifuse.running.run_start import now

_HANDED_ON = ("KIFUSE_", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
"""Beginnings of the environment variables that a job gets from the command: where models are kept."""

_STOPPED = 130
"""The exit code of a job that was told to stop, as after Ctrl-C."""

_LOOK = 2.0
"""Seconds between two looks at a folder that another process holds."""


@dataclass(frozen=True)
class CellJob:
    """A cell, as plain values.

    Attributes:
        title: Of the run, for people.
        config: The run's configuration, as JSON.
        reuse: Folders of the runs whose first task may be its own.
        trained: Folder of the run whose states are scored; None: it is trained.
        grid: Folder of the comparison.
        here: The folder that the command runs in, which the paths start from.
        environment: Variables that are handed on.
    """

    title: str
    config: str
    reuse: list[str]
    trained: str | None
    grid: str
    here: str
    environment: dict[str, str]

    @classmethod
    def of(cls, planned: PlannedRun, grid: Grid, trained: PlannedRun | None) -> CellJob:
        """The job of a run of a grid."""
        return cls(
            planned.title,
            planned.config.model_dump_json(),
            [str(each) for each in reusable(planned, grid)],
            None if trained is None else str(trained.folder),
            str(grid.folder),
            os.getcwd(),
            {name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON)},
        )

    def as_text(self) -> str:
        """It as one line of JSON."""
        return json.dumps(asdict(self))


def reusable(planned: PlannedRun, grid: Grid) -> list[Path]:
    """Folders of the runs of the same seed: one of them may have learned the same first task."""
    return [other.folder for other in grid.runs if other is not planned and other.seed == planned.seed]


def run_cell(text: str) -> str | None:
    """Run a cell, or go on with it; what the grid shares is taken from its folder.

    A cell that another job is at work on, as one that an earlier command has left behind, is waited for.

    Args:
        text: Of `CellJob.as_text`.

    Returns:
        None, or in one line why it failed.

    Raises:
        SystemExit: The job was told to stop; what it has done is saved.
    """
    job = CellJob(**json.loads(text))
    os.environ.update(job.environment)
    os.chdir(job.here)

    from kifuse.page_refresh import run
    from kifuse.running.shared_by_runs import Shared

    config = RunConfig.model_validate_json(job.config)
    shared = Shared(keeps=False, token_folder=Path(job.grid, TOKENS))
    trained = None if job.trained is None else Path(job.trained)
    while True:
        try:
            run(config, reuse=[Path(each) for each in job.reuse], shared=shared, trained=trained)
        except FolderInUseError:
            time.sleep(_LOOK)
        except KeyboardInterrupt:
            sys.exit(_STOPPED)  # no result: whoever waits for one sends the job again
        except Exception as error:
            return told(error, job.title, Path(config.output), Path(job.grid))
        else:
            return None


def told(error: Exception, title: str, run: Path, grid: Path) -> str:
    """A failure in one line, with the file that says more.

    Args:
        error: What was raised.
        title: Of the run.
        run: Its folder.
        grid: That of the comparison, whose log gets the traceback.
    """
    reason = shorten(" ".join(str(error).split()) or "no reason given", 300)
    if not isinstance(error, KifuseError):
        reason = f"{type(error).__name__}: {reason}"
    log = run / LOG
    if not log.is_file():
        log = grid / LOG
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError), (grid / LOG).open("ab") as stream:
        stream.write(f"{now()}  {title}: failed\n{text}\n".encode("utf-8", "backslashreplace"))
    return f"{reason} (log: {log})"


def main() -> None:
    """Run the cell that stdin describes, and print the outcome as the last line of stdout."""
    failure = run_cell(sys.stdin.read())
    print(json.dumps({"failed": failure}), flush=True)


if __name__ == "__main__":
    main()
