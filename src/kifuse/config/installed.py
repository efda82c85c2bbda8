"""Checks that the optional packages which a configuration needs are installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from kifuse.errors import ConfigError
from kifuse.problems import Problem


def installed(package: str) -> str:
    """The version of a package; empty if it is not installed."""
    try:
        # a search for a module would not do: wandb leaves a folder of this name, which would count as one
        return version(package)
    except PackageNotFoundError:
        return ""


def missing_packages(trackers: Iterable[str] = (), lm_eval: Iterable[str] = ()) -> list[Problem]:
    """Find the packages that are asked for and not installed.

    Args:
        trackers: The names in `training.report_to`; each package is named like its tracker.
        lm_eval: The names in `watch.lm_eval.tasks`.
    """
    problems = []
    if missing := [name for name in trackers if not installed(name)]:
        found = f"{', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed"
        advice = f"Run: pip install {' '.join(missing)}, or take {'it' if len(missing) == 1 else 'them'} out."
        problems.append(Problem(("training", "report_to"), found, "installed trackers", advice))
    if any(lm_eval) and not installed("lm_eval"):
        found = "tasks of lm-evaluation-harness, which is not installed"
        advice = "Run: pip install 'lm-eval>=0.4.13', or leave the tasks out."
        problems.append(Problem(("watch", "lm_eval"), found, "the extra lm-eval", advice))
    return problems


def require_packages(trackers: Iterable[str] = (), lm_eval: Iterable[str] = ()) -> None:
    """Refuse packages that are not installed; see `missing_packages`.

    Raises:
        ConfigError: One is missing.
    """
    if problems := missing_packages(trackers, lm_eval):
        raise ConfigError("\n".join(problem.render() for problem in problems))
