"""Where the runs of a grid are made: `compare.on`, `compare.jobs` and `compare.job`, or their options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kifuse.config.reading import read_setting
from kifuse.errors import ConfigError, did_you_mean
from kifuse.problems import show_value

LOCAL, SLURM, RAY = "local", "slurm", "ray"
PLACES = (LOCAL, SLURM, RAY)
AT_ONCE = 8
"""Default number of jobs at the same time on a cluster."""


@dataclass(frozen=True)
class Placing:
    """Where runs are made.

    Attributes:
        on: One of `PLACES`.
        jobs: How many jobs run at the same time; None: one on this machine, `AT_ONCE` elsewhere.
        job: Options of each job, as submitit's `update_parameters` or Ray's `options` take them.
    """

    on: str = LOCAL
    jobs: int | None = None
    job: Mapping[str, Any] = field(default_factory=dict)

    @property
    def at_once(self) -> int:
        """How many jobs run at the same time."""
        return self.jobs or (1 if self.on == LOCAL else AT_ONCE)

    @property
    def here(self) -> bool:
        """Whether the runs are made one after another in this process."""
        return self.on == LOCAL and self.at_once == 1

    def given(self, on: str | None, jobs: int | None, job: Iterable[str]) -> Placing:
        """Return this placing with the options of the command line.

        Raises:
            ConfigError: One of the options is wrong.
        """
        found = self
        for name, value in (("on", on), ("jobs", jobs)):
            if value is None:
                continue
            if wrong := placing_fault(name, value):
                advice = did_you_mean(value, PLACES) if isinstance(value, str) else ""
                raise ConfigError(f"--{name}: found {show_value(value)}, expected {wrong}.{advice}")
            found = replace(found, **{name: value})
        more = dict(map(_setting, job))
        found = replace(found, job={**(found.job if found.on == self.on else {}), **more})
        if found.on == LOCAL and found.job:
            raise ConfigError(
                f"--job: found {', '.join(found.job)} for runs on this machine, expected options of a "
                "job on slurm or ray. Leave them out, or name the cluster: --on slurm."
            )
        return found


def placing_fault(name: str, value: Any) -> str | None:
    """Return what the value must be; None if it is right."""
    if name == "on":
        return None if value in PLACES else f"one of {', '.join(PLACES)}"
    if name == "jobs":
        return None if type(value) is int and value > 0 else "a whole number of at least 1"
    plain = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return None if plain else "options of a job by name, such as {slurm_partition: gpu, timeout_min: 240}"


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"--job: found {text!r}, expected KEY=VALUE, such as slurm_partition=gpu.")
    try:
        return name, read_setting(value)
    except ConfigError as error:
        raise ConfigError(f"--job {name}: found {value!r}: {error}") from error
