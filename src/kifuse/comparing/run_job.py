"""One run of a grid as a job, with everything that another process or another machine needs to do it."""

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

_PASSED_ON = ("KIFUSE_", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
"""A job gets the command's environment variables whose names begin with these: where models are kept."""

_STOPPED = 130
"""The exit code of a job that was told to stop, as after Ctrl-C."""

_LOOK = 2.0
"""Seconds between two looks at a folder that another process holds."""


@dataclass(frozen=True)
class RunJob:
    """A run as plain values.

    Attributes:
        title: The run's title, for people.
        config: The run's configuration, as JSON.
        reuse: Folders of runs that may have learned the same first task.
        trained: Folder of the run whose states are only scored; None if this run is trained.
        grid: Folder of the comparison.
        here: The working directory of the command, which relative paths start from.
        environment: The environment variables that the job gets.
    """

    title: str
    config: str
    reuse: list[str]
    trained: str | None
    grid: str
    here: str
    environment: dict[str, str]

    @classmethod
    def of(cls, planned: PlannedRun, grid: Grid, trained: PlannedRun | None) -> RunJob:
        """Make the job of a run of a grid."""
        return cls(
            planned.title,
            planned.config.model_dump_json(),
            [str(each) for each in reusable(planned, grid)],
            None if trained is None else str(trained.folder),
            str(grid.folder),
            os.getcwd(),
            {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)},
        )

    def as_text(self) -> str:
        """Write the job as one line of JSON."""
        return json.dumps(asdict(self))


def reusable(planned: PlannedRun, grid: Grid) -> list[Path]:
    """List the folders of the runs with the same seed: one of them may have learned the same first task."""
    return [other.folder for other in grid.runs if other is not planned and other.seed == planned.seed]


def run_job(text: str) -> str | None:
    """Do the run of a job, or continue it. Read the tokens that all runs of the grid share from its folder.

    If another process holds the run's folder, such as a job of an earlier command, this waits for it.

    Args:
        text: The result of `RunJob.as_text`.

    Returns:
        None, or the reason for a failure in one line.

    Raises:
        SystemExit: The job was told to stop; its work is saved.
    """
    job = RunJob(**json.loads(text))
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
            sys.exit(_STOPPED)  # without a result, so that the command sends the job again
        except Exception as error:
            return failure_line(error, job.title, Path(config.output), Path(job.grid))
        else:
            return None


def failure_line(error: Exception, title: str, run: Path, grid: Path) -> str:
    """Describe a failure in one line that names a log, and write the traceback into the comparison's log.

    Args:
        error: The exception.
        title: Title of the run.
        run: Folder of the run.
        grid: Folder of the comparison.
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
    """Do the job that stdin describes, and print the outcome as the last line of stdout."""
    failure = run_job(sys.stdin.read())
    print(json.dumps({"failed": failure}), flush=True)


if __name__ == "__main__":
    main()
