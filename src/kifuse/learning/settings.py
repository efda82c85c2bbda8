"""A learner's settings as the configuration of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kifuse.config import DataConfig, LmEvalConfig, RunConfig, WatchConfig
from kifuse.config.start_from import own_copy, with_start
from kifuse.errors import ConfigError, RunError
from kifuse.methods.base import Method
from kifuse.models.given import given_backbone
from kifuse.models.loading import Backbone
from kifuse.own_method import name_method
from kifuse.problems import from_pydantic, show_value
from kifuse.processes import under_deepspeed
from kifuse.record.run_record import FILE, RunRecord
from kifuse.registry import name_of
from kifuse.running.run_start import OPEN_STREAM, model_facts, open_backbone
from kifuse.running.start_from import KEY as START


def learner_config(name: str, method: Any, settings: Mapping[str, Any], folder: str | Path) -> RunConfig:
    """Build the learner's configuration; one message names every problem with it.

    Raises:
        ConfigError: There is a problem.
        RunError: The processes were started with DeepSpeed.
    """
    if under_deepspeed():
        raise RunError(
            "a learner does not work under DeepSpeed: start it with torchrun, or, if the model must be cut "
            "into pieces, with 'accelerate launch --use_fsdp --fsdp_version 2', or use 'kifuse run'."
        )
    if not str(folder):
        raise ConfigError("output_dir: found nothing, expected the folder that keeps what is learned.")
    for section, values in settings.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"settings: {section}: found {values!r}, expected keys and values.")
    if "method" in settings:
        raise ConfigError(
            f"settings: method: found {dict(settings['method'])!r}; give the method with its settings as "
            'method={"name": "ewc", "penalty": 50}.'
        )
    if isinstance(method, Method):
        chosen = {"name": name_of(method), **method.settings()}
    else:
        chosen = {"name": method} if isinstance(method, str) else method
        name_method(chosen.get("name") if isinstance(chosen, Mapping) else None)
    data = {**settings, "model": {**settings.get("model", {}), "name": name}, "method": chosen}
    data["output"] = folder
    try:
        return with_start(RunConfig.model_validate(data))
    except ValidationError as error:
        problems = from_pydantic(error.errors(include_url=False), RunConfig.model_fields, data)
        raise ConfigError("\n".join(problem.render("settings") for problem in problems)) from error


def lm_eval_config(given: Any) -> LmEvalConfig:
    """Tasks of lm-evaluation-harness as a section: from names, or from a mapping with the section's keys.

    Raises:
        ConfigError: A key or a value is wrong.
    """
    if isinstance(given, str):
        given = [given]
    section = {"lm_eval": list(given) if isinstance(given, (tuple, set)) else given}
    try:
        return WatchConfig.model_validate(section).lm_eval
    except ValidationError as error:
        problems = from_pydantic(error.errors(include_url=False), WatchConfig.model_fields, section)
        raise ConfigError("\n".join(problem.render("watch") for problem in problems)) from error


def with_adapter(settings: Mapping[str, Any], folder: str | Path | None) -> Mapping[str, Any]:
    """Add the folder of an adapter to begin from to the sections, as `model.adapter.from`.

    Raises:
        ConfigError: The sections name another adapter.
    """
    if folder is None:
        return settings
    model = dict(settings.get("model", {}))
    own = dict(model.get("adapter") or {})
    if own.get("from") not in (None, folder, str(folder)):
        raise ConfigError(
            f"adapter: found {str(folder)!r}, and model.adapter.from {own['from']!r}; give one."
        )
    return {**settings, "model": {**model, "adapter": {**own, "from": folder}}}


def expected_sections(
    record: RunRecord,
    folder: str | Path,
    settings: Mapping[str, Any] | None,
    trust_remote_code: bool,
    own_metrics: Sequence[Any],
) -> dict[str, Any]:
    """Take a learner's configuration from its record, except for what only the caller may decide.

    Args:
        record: The learner's record.
        folder: The learner's folder.
        settings: Sections with the values that the caller expects. They replace those on record, so that
            opening the folder refuses a value that differs.
        trust_remote_code: Whether the caller allows code that comes with the model.
        own_metrics: Names of the caller's metrics.

    Raises:
        ConfigError: A section is no mapping.
        RunError: The record names no model or no method, or one of its sections is no mapping.
    """
    for name in record.config.keys() & {"model", "data", "method", "memory", "training", "evaluation"}:
        if not isinstance(record.config[name], Mapping):
            raise RunError(f"{FILE}: config.{name}: expected keys and values. The record is damaged.")
    for name in ("model", "method"):
        if not isinstance(record.config.get(name, {}).get("name"), str):
            raise RunError(f"{FILE}: config.{name}.name: found none, expected one. The record is damaged.")
    sections = dict(record.config)
    for name, values in (settings or {}).items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"settings: {name}: found {values!r}, expected keys and values.")
        sections[name] = _over(sections.get(name, {}), values)
    sections["model"] = {**sections["model"], "trust_remote_code": trust_remote_code}
    copy = own_copy(Path(folder).expanduser())
    if (
        START in record.model
        and copy.is_dir()
        and "from" not in (settings or {}).get("model", {}).get("adapter", {})
    ):
        # the adapter that the learner began from may be gone by now, or be another one
        sections["model"]["adapter"] = {**sections["model"]["adapter"], "from": str(copy)}
    sections["data"] = {**sections.get("data", {}), "own_metrics": list(own_metrics)}
    return sections


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings at every level; the values of the second one win."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def checked_points(name: str, limit: Any) -> float | None:
    """Check a limit: points from 0 to 100, or None for no limit.

    Raises:
        ConfigError: It is something else.
    """
    if limit is None or (
        isinstance(limit, int | float) and not isinstance(limit, bool) and 0 <= limit <= 100
    ):
        return limit
    raise ConfigError(f"{name}: found {limit!r}, expected points from 0 to 100, or None.")


def checked_repair(repair: Any, max_forgetting: float | None) -> bool:
    """Check `repair`: whether weights are pulled back before a task is taken back.

    Raises:
        ConfigError: It is not True or False, or there is no limit that a task could break.
    """
    if not isinstance(repair, bool):
        raise ConfigError(f"repair: found {repair!r}, expected True or False.")
    if repair and max_forgetting is None:
        raise ConfigError(
            "repair: found True without max_forgetting, expected both, as a task is repaired if it costs "
            "earlier tasks more than max_forgetting. Give max_forgetting, in points."
        )
    return repair


def moved_model(record: RunRecord, name: str, backbone: Backbone) -> None:
    """Put on record that a learner's model is in another place now.

    Raises:
        RunError: The model is of another kind or size.
    """
    found, expected = model_facts(name, backbone), record.model
    if any(found[key] != expected[key] for key in ("family", "parameters")):
        raise RunError(
            f"model: {name} is a {found['family']} model of {found['parameters']:,} parameters, expected "
            f"the {expected['family']} model of {expected['parameters']:,} that this learner began with."
        )
    record.model["name"] = record.config["model"]["name"] = name


def open_model(config: RunConfig, model: Any, tokenizer: Any, say: Callable[[str], None]) -> Backbone:
    """Take a model that was given as an object, or load it by its name.

    Raises:
        ModelError: The model cannot be used or cannot be loaded.
    """
    if isinstance(model, (str, Path)):
        return open_backbone(config, say)
    return given_backbone(model, tokenizer, config.model.precision)


def named_model(record: RunRecord, folder: str | Path) -> str:
    """The name by which a learner's model is loaded.

    Raises:
        RunError: The model was given as an object.
    """
    if record.model.get("given"):
        raise RunError(
            f"{folder}: this learner was made from a model object ({record.model.get('name')}). Give it "
            "again: ContinualLearner.load(folder, model=..., tokenizer=...)."
        )
    return record.config["model"]["name"]


def refuse_stream(record: RunRecord | None, folder: Path) -> None:
    """Refuse the folder of a run on a stream that was known beforehand.

    Raises:
        RunError: The folder holds such a run.
    """
    if record is not None and record.stream != OPEN_STREAM:
        raise RunError(f"{folder}: holds a run on {record.stream}, not a learner; name another folder.")


_OF_A_STREAM = {
    "metric": "learner.learn(task, metric='rouge_l'), or metric in the task's own task.json",
    "superni_metric": "learner.learn(task, metric='superni_rouge_l')",
    "format": "learner.learn(task, format='alpaca'), or format in the task's own task.json",
    "columns": "learner.learn(task, columns={'input': 'question'}), or columns in the task's own task.json",
    "benchmark": "kifuse run, or learner.learn(task) with each task in turn",
    "order": "learner.learn(task) with each task in turn",
    "path": "learner.learn('path/to/a/task')",
    "scored_on": "learner.learn(task, test=...) with the examples to score",
    "hold_out": "kifuse compare --vary, which chooses settings on dev",
    "layout": "kifuse run, or learner.learn(task) with each task as kifuse.read_task gives it",
}
"""Settings of `data` that say how a whole stream is read, and what does the same for single tasks."""


def refuse_settings_of_a_stream(config: RunConfig) -> None:
    """Refuse settings that a learner would never read, because it gets its tasks one by one.

    Raises:
        ConfigError: There are such settings; the message names what does the same.
    """
    if config.watch != WatchConfig():
        raise ConfigError(
            "settings: watch: found a section, expected nothing, as a learner keeps the tasks that it "
            "watches itself. Use learner.watch('general/', lm_eval=['hellaswag']), or kifuse learn --watch "
            "general/ --watch-lm-eval hellaswag."
        )
    if config.record.probe_importance:
        raise ConfigError(
            "settings: record.probe_importance: found tasks, expected none, as a learner has no training "
            "examples of earlier tasks. Use kifuse run."
        )
    plain = DataConfig()
    given = [name for name in _OF_A_STREAM if getattr(config.data, name) != getattr(plain, name)]
    if given:
        raise ConfigError(
            "\n".join(
                f"settings: data.{name}: found {show_value(getattr(config.data, name))}, expected nothing, "
                f"as a learner gets its tasks one by one. Use {_OF_A_STREAM[name]}."
                for name in given
            )
        )


def refuse_all_at_once(method: Method, name: str) -> None:
    """Refuse a method that cannot learn tasks one by one.

    Raises:
        ConfigError: The method needs all tasks at once.
    """
    if method.old_data == "all":
        raise ConfigError(
            f"method: {name!r} trains on all tasks at once; a learner gets tasks one by one and needs "
            "another method. See 'kifuse ls methods'."
        )
