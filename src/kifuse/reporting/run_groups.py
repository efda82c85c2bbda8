"""Open runs, and put runs with the same settings into one group, with mean and spread over seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import ValidationError

from kifuse.errors import KifuseError, RunError
from kifuse.io.sealed_json import read_sealed
from kifuse.record.run_record import FILE, SCHEMA_VERSION, RunRecord
from kifuse.reporting.plots import Mean
from kifuse.reporting.wording import clean, count, listed, plain

COMPARISON_FILE = "compare.yaml"
"""A folder that holds this file is a comparison's, with its runs in `<label>/<run>`, and not a run's."""

_VARIED = {"training": {"seed", "threads"}, "data": {"order", "path"}}
"""The keys of the configuration, by section, in which runs of one group may differ."""


@dataclass(frozen=True)
class Run:
    """A record, and where it came from.

    Attributes:
        record: The record.
        folder: The run's folder; None for a record that was kept as a file.
        name: The name of the folder or of the file.
        label: The label that a comparison gives the method; empty outside of comparisons.
    """

    record: RunRecord
    folder: Path | None = None
    name: str = ""
    label: str = ""

    @property
    def seed(self) -> int | None:
        """The seed of the training."""
        return self.record.seeds.get("training")


@dataclass
class Group:
    """Runs that differ at most in seed and task order.

    Attributes:
        label: The method, and the settings in which it differs from the other groups.
        runs: One or more.
    """

    label: str
    runs: list[Run] = field(default_factory=list)

    def mean(self, measure: Callable[[RunRecord], float | None]) -> Mean | None:
        """Average a quantity over the finished runs that have it.

        Args:
            measure: Finds the quantity in the record of one run.

        Returns:
            The mean; with two runs or more also the sample standard deviation (n - 1).
        """
        finished = [run.record for run in self.runs if run.record.status == "finished"]
        found = [value for record in finished if (value := measure(record)) is not None]
        if not found:
            return None
        return Mean(fmean(found), stdev(found) if len(found) > 1 else None, found)

    def made_of(self) -> str:
        """Say how many runs, seeds and orders the group has: `3 runs, seeds 0, 1 and 2`."""
        seeds = sorted(
            {str(run.seed) for run in self.runs if run.seed is not None}, key=lambda s: (len(s), s)
        )
        streams = list(dict.fromkeys(clean(run.record.stream) for run in self.runs))
        said = count(len(self.runs), "run")
        if seeds:
            said += f", seed{'s' if len(seeds) > 1 else ''} {listed(seeds)}"
        return said + (f", {count(len(streams), 'order')}" if len(streams) > 1 else "")


def open_run(path: Path | str) -> Run:
    """Read a run.

    Args:
        path: The run's folder, or a record that was kept as a file.

    Returns:
        The run.

    Raises:
        RunError: There is no run, or its record cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return Run(RunRecord.load(path), path, path.resolve().name)
    if not path.is_file():
        raise RunError(f"{path}: no such run. Name the folder of a run, or a file like its {FILE}.")
    if path.name == FILE:
        return Run(RunRecord.load(path.parent), path.parent, path.resolve().parent.name)
    found = read_sealed(path)[0]
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{path}: found schema_version {version!r}, expected {SCHEMA_VERSION}: this is not the record "
            "of a run, or it is of another version of kifuse. Name the folder of a run, or a file like its "
            f"{FILE}."
        )
    try:
        return Run(RunRecord.model_validate(found), None, path.stem)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RunError(f"{path}: {key}: {first['msg']}. The record is damaged.") from error


def open_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Read several runs. A run that is named twice is read once.

    Args:
        paths: Folders of runs, folders of comparisons, or records kept as files.

    Raises:
        RunError: No run is named, or one cannot be read.
    """
    if not paths:
        raise RunError("there is nothing to report. Name at least one run.")
    unique: dict[Path, Path | str] = {}
    for path in paths:
        unique.setdefault(Path(path).resolve(), path)
    runs: list[Run] = []
    for path in unique.values():
        runs += comparison_runs(path) if (Path(path) / COMPARISON_FILE).is_file() else [open_run(path)]
    if not runs:
        raise RunError(f"{paths[0]}: no run in it has begun, so there is nothing to report.")
    return runs


def comparison_runs(
    folder: Path | str, labels: Sequence[str] = (), left_out: list[str] | None = None
) -> list[Run]:
    """Read the runs of a comparison.

    Args:
        folder: The folder of the comparison.
        labels: The labels that come first, in this order. The others come after them.
        left_out: Collects what is wrong with records that cannot be read. None: such a record is refused.

    Raises:
        RunError: A record cannot be read.
    """
    found = {file.parent for file in Path(folder).glob(f"*/*/{FILE}")}
    rows = [*labels, *sorted({each.parent.name for each in found} - set(labels))]
    runs = []
    for each in sorted(found, key=lambda each: (rows.index(each.parent.name), _natural(each.name))):
        label = each.parent.name
        try:
            runs.append(Run(RunRecord.load(each), each, f"{label}/{each.name}", label))
        except KifuseError as error:
            if left_out is None:
                raise
            left_out.append(str(error))
    return runs


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sorting key that puts `seed10` behind `seed9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs of the same method and settings together.

    Args:
        runs: The runs.

    Returns:
        Groups in the order in which they occur. If a method has several groups, their labels name the
        settings in which they differ.
    """
    settings = {_key(run): _settings(run) for run in runs}
    labels = _labels(settings)
    groups: dict[str, Group] = {}
    for run in runs:
        key = _key(run)
        groups.setdefault(key, Group(labels[key])).runs.append(run)
    return list(groups.values())


def fusions(record: RunRecord) -> int:
    """Count the fusions of old and new weights in the record."""
    rounds = [event.get("rounds", 1) for _, event, _ in record.fusions()]
    return sum(r for r in rounds if isinstance(r, int))


def _key(run: Run) -> str:
    return json.dumps(_settings(run), sort_keys=True, default=str)


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings that runs of one group share: all but seed, order and places on the machine."""
    record = run.record
    flat: dict[str, Any] = {"method": record.method.name, "label": run.label}
    flat.update({f"method.{key}": value for key, value in record.method.settings.items()})
    for section, values in record.config.items():
        if section == "method":
            continue
        if not isinstance(values, dict):
            flat[section] = values
            continue
        for key, value in values.items():
            if key not in _VARIED.get(section, set()):
                flat[f"{section}.{key}"] = value
    return flat


def _labels(settings: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the method's name; if several groups have it, with the settings in which they differ."""
    labels = {}
    for key, own in settings.items():
        alike = "label" if own["label"] else "method"
        rivals = [other for other in settings.values() if other[alike] == own[alike]]
        differing = [
            name
            for name in own
            if name not in ("method", "label") and any(other.get(name) != own[name] for other in rivals)
        ]
        shown = [f"{name.rpartition('.')[2]}={plain(own[name])}" for name in differing[:3]]
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        labels[key] = clean(own[alike]) + (f" ({', '.join(shown)}{more})" if shown else "")
    seen: dict[str, int] = {}
    for key, label in labels.items():
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            labels[key] = f"{label} [{seen[label]}]"
    return labels


def folder_for(runs: Sequence[Run]) -> Path:
    """Return the folder for a page about these runs: the deepest one that holds them all.

    Raises:
        RunError: There is no such folder, since no run has a folder.
    """
    folders = [run.folder for run in runs if run.folder is not None]
    if not folders:
        raise RunError(
            "a record that was kept as a file has no folder for its page. Name the page with --output."
        )
    if len(folders) == 1 and len(runs) == 1:
        return folders[0]
    first, *others = [folder.resolve() for folder in folders]
    while others and not all(first == other or first in other.parents for other in others):
        first = first.parent
    if first == folders[0].resolve():
        first = first.parent
    try:
        return first.relative_to(Path.cwd())
    except ValueError:
        return first
