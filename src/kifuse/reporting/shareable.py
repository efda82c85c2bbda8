"""A run as it can be shown to others: nothing of its examples' texts, and no path of the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from kifuse.reporting.run_groups import Run


def without_paths(run: Run) -> Run:
    """A copy of a run whose paths are cut to their last part, and whose folder is its name alone.

    What is cut is the place of the data and the model where the configuration names a folder; a hub id stays.

    Args:
        run: The run; it is left as it is.

    Returns:
        The copy. Its folder leads nowhere any more, so nothing can be read of it or linked from it.
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
    """The last part of a path of any system, or the path where it has none."""
    return PureWindowsPath(path).name or path


def model_name(name: str) -> str:
    """A model's name: a bundled name or a hub id (`owner/name`) as it is, of a folder the last part."""
    parts = PurePosixPath(name).parts
    is_path = "\\" in name or len(parts) > 2 or name.startswith(("/", ".", "~"))
    return last_part(name) if is_path else name
