"""A run in a form that can be shown to others: no texts of its examples, and no path of the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from kifuse.reporting.run_groups import Run


def without_paths(run: Run) -> Run:
    """Copy a run, cut its paths to their last parts, and keep only the name of its folder.

    This cuts the paths of the data and the model if the configuration names a folder; a hub id stays.

    Args:
        run: The run; it is not changed.

    Returns:
        The copy. Its folder leads nowhere any more, so nothing can be read from it or linked to it.
    """
    record = run.record.model_copy(deep=True)
    model = record.config.get("model")
    for section, key in ((record.config.get("data"), "path"), (model, "name"), (record.model, "name")):
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = last_part(section[key]) if key == "path" else model_name(section[key])
    watch = record.config.get("watch")
    if isinstance(watch, dict) and isinstance(watch.get("tasks"), list):
        watch["tasks"] = [last_part(str(path)) for path in watch["tasks"]]
    of_lm_eval = watch.get("lm_eval") if isinstance(watch, dict) else None
    if isinstance(of_lm_eval, dict) and isinstance(of_lm_eval.get("include_path"), list):
        of_lm_eval["include_path"] = [last_part(str(path)) for path in of_lm_eval["include_path"]]
    for own in (entry.lm_eval for entry in record.watched if entry.lm_eval is not None):
        own.include_path = [last_part(path) for path in own.include_path]
    record.config.pop("output", None)
    return replace(run, record=record, folder=None)


def last_part(path: str) -> str:
    """Return the last part of a path of any operating system, or the path itself if it has no parts."""
    return PureWindowsPath(path).name or path


def model_name(name: str) -> str:
    """Return a model's name: a bundled name or a hub id (`owner/name`) as it is, or a folder's last part."""
    parts = PurePosixPath(name).parts
    is_path = "\\" in name or len(parts) > 2 or name.startswith(("/", ".", "~"))
    return last_part(name) if is_path else name
