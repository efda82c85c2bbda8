"""Runs the jobs of a grid: as processes of this machine, on SLURM through submitit, or on Ray."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from kifuse.comparing.compare_section import JOBS
from kifuse.comparing.placing import LOCAL, SLURM, Placing
from kifuse.comparing.run_job import run_job
from kifuse.errors import ConfigError, RunError
from kifuse.io.file_names import name_key

_MINUTES = 240
"""Default time limit of a job on SLURM; submitit's own default is five."""


class NoResultError(Exception):
    """A job ended without a result: it was killed or preempted, or its machine failed."""


class JobRunner(Protocol):
    """Runs jobs, each in its own process."""

    def run(self, text: str) -> str | None:
        """Run a job and wait for it. May be called from several threads.

        Args:
            text: The result of `RunJob.as_text`.

        Returns:
            The result of `run_job`.

        Raises:
            NoResultError: The job ended without a result.
        """
        ...

    def cancel(self) -> None:
        """Stop all running jobs."""
        ...


@contextlib.contextmanager
def job_runner(placing: Placing, folder: Path) -> Iterator[JobRunner]:
    """Open the runner of a grid's jobs.

    Args:
        placing: Where the jobs run.
        folder: Folder of the comparison; the jobs' output is written into its folder `jobs`.

    Raises:
        ConfigError: An option of the jobs is not known there.
        RunError: A package is not installed, or there is no cluster.
    """
    if placing.on == LOCAL:
        yield _Local(folder / JOBS)
        return
    if placing.on == SLURM:
        yield _Slurm(folder / JOBS, placing.job)
        return
    runner = _Ray(placing.job)
    try:
        yield runner
    finally:
        runner.close()


def _needed(on: str, package: str) -> Any:
    """Import a package that an extra installs.

    Raises:
        RunError: It is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise RunError(
            f"--on {on}: needs the package {package}, which is not installed here ({error}). Install it: pip "
            f"install 'kifuse[{on}]'"
        ) from error


class _Local:
    """Processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._running = folder, set[subprocess.Popen[str]]()
        self._lock, self._stopped = threading.Lock(), False

    def run(self, text: str) -> str | None:
        """See `JobRunner.run`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        title = json.loads(text)["title"]
        errors = self._folder / f"{''.join(c if c.isalnum() else '-' for c in name_key(title))[:100]}.err"
        with errors.open("ab") as said:
            with self._lock:
                if self._stopped:
                    raise NoResultError("stopped before it started")
                process = subprocess.Popen(  # noqa: S603 - a module of kifuse
                    [sys.executable, "-m", run_job.__module__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                    start_new_session=True,  # so that Ctrl-C reaches it only once, through `cancel`
                )
                self._running.add(process)
            printed, _ = process.communicate(text)
        self._running.discard(process)
        lines = printed.splitlines()
        if process.returncode or not lines:
            raise NoResultError(f"ended with exit code {process.returncode}; see {errors}")
        return json.loads(lines[-1])["failed"]

    def cancel(self) -> None:
        """See `JobRunner.cancel`; each job saves its work and ends."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


class ResumedJob:
    """The function that submitit pickles. If SLURM preempts the job, it is queued again and continues."""

    def __call__(self, text: str) -> str | None:
        """See `run_job`."""
        return run_job(text)

    def checkpoint(self, text: str) -> Any:
        """Return the call that is queued again."""
        return _needed(SLURM, "submitit").helpers.DelayedSubmission(self, text)


class _Slurm:
    """SLURM, or submitit's replacements for it: `cluster=local` and `cluster=debug`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        submitit = _needed(SLURM, "submitit")
        asked = {"name": "kifuse", "timeout_min": _MINUTES, "stderr_to_stdout": True, **options}
        cluster = asked.pop("cluster", SLURM)
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"--on slurm: {error}. Run the command where sbatch is installed, or try the grid on this "
                "machine: --on local, or --job cluster=local."
            ) from error
        try:
            self._executor.update_parameters(**asked)
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise ConfigError(
                f"--job: submitit refuses an option: {error}\nExpected options of its AutoExecutor, such "
                "as slurm_partition=gpu, timeout_min=240, gpus_per_node=1."
            ) from error
        self._lock, self._stopped, self._jobs = threading.Lock(), False, []

    def run(self, text: str) -> str | None:
        """See `JobRunner.run`."""
        try:
            with self._lock:
                if self._stopped:
                    raise NoResultError("stopped before it started")
                job = self._executor.submit(ResumedJob(), text)
                self._jobs.append(job)
            return job.result()
        except RuntimeError as error:
            raise NoResultError(_last_line(error)) from error

    def cancel(self) -> None:
        """See `JobRunner.cancel`."""
        with self._lock:
            self._stopped = True
            for job in self._jobs:
                if not job.done():
                    job.cancel()


class _Ray:
    """Ray: the cluster that the environment or `address` names, or this machine."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._ray = _needed("ray", "ray")
        asked = dict(options)
        address = asked.pop("address", None)
        self._began = not self._ray.is_initialized()
        try:
            if self._began:
                self._ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError) as error:
            raise RunError(f"--on ray: no cluster answers at {address!r}: {_last_line(error)}") from error
        try:
            # no retries by Ray, as `run_placed` sends a lost job again and counts the tries
            self._job = self._ray.remote(max_retries=0)(run_job).options(**asked)
        except (TypeError, ValueError) as error:
            self.close()
            raise ConfigError(
                f"--job: Ray refuses an option: {_last_line(error)}\nExpected options of a task, such "
                "as num_cpus=4, num_gpus=1, or address=HOST:PORT."
            ) from error
        self._running, self._stopped = set[Any](), False

    def run(self, text: str) -> str | None:
        """See `JobRunner.run`."""
        if self._stopped:
            raise NoResultError("stopped before it started")
        job = self._job.remote(text)
        self._running.add(job)
        try:
            return self._ray.get(job)
        except self._ray.exceptions.RayError as error:
            raise NoResultError(_last_line(error)) from error
        finally:
            self._running.discard(job)

    def cancel(self) -> None:
        """See `JobRunner.cancel`."""
        self._stopped = True
        for job in list(self._running):
            self._ray.cancel(job)

    def close(self) -> None:
        """Disconnect from the cluster, if this object connected to it."""
        if self._began:
            self._ray.shutdown()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
