"""Where the cells of a grid run: `compare.on`, `compare.jobs` and `compare.job`, or their options."""

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
"""Jobs at once on a cluster, where nothing else is said."""


@dataclass(frozen=True)
class Placing:
    """Where cells run.

    Attributes:
        on: One of `PLACES`.
        jobs: How many at once; None: one on this machine, `AT_ONCE` elsewhere.
        job: What each job asks for, as submitit's `update_parameters` or Ray's `options` take it.
    """

    on: str = LOCAL
    jobs: int | None = None
    job: Mapping[str, Any] = field(default_factory=dict)

    @property
    def at_once(self) -> int:
        """How many jobs run at once."""
        return self.jobs or (1 if self.on == LOCAL else AT_ONCE)

    @property
    def here(self) -> bool:
        """Whether the cells run one after another in this process."""
        return self.on == LOCAL and self.at_once == 1

    def given(self, on: str | None, jobs: int | None, job: Iterable[str]) -> Placing:
        """It with what the command line says in addition.

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
                f"--job: found {', '.join(found.job)} for cells on this machine, expected what a job on "
                "slurm or ray asks for. Leave it out, or name the cluster: --on slurm."
            )
        return found


def placing_fault(name: str, value: Any) -> str | None:
    """What a value must be, if this one is not."""
    if name == "on":
        return None if value in PLACES else f"one of {', '.join(PLACES)}"
    if name == "jobs":
        return None if type(value) is int and value > 0 else "a whole number of at least 1"
    plain = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return None if plain else "what a job asks for by name, such as {slurm_partition: gpu, timeout_min: 240}"


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"--job: found {text!r}, expected KEY=VALUE, such as slurm_partition=gpu.")
    try:
        return name, read_setting(value)
    except ConfigError as error:
        raise ConfigError(f"--job {name}: found {value!r}: {error}") from error
