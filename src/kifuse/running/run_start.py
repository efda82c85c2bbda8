"""The start of a run: an empty folder gets a new record; in the folder of the same run, that run goes on."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kifuse import __version__
from kifuse.adapters.kinds import refuse_pairing
from kifuse.config import RunConfig
from kifuse.errors import KifuseError, ModelError, RunError
from kifuse.method_catalog import class_with
from kifuse.methods.base import Method
from kifuse.methods.parameters import Parameters
from kifuse.models.loading import Backbone, load_backbone
from kifuse.record.run_record import MethodRecord, RunRecord, TaskRecord
from kifuse.registry import build_method
from kifuse.running.environment import machine, versions
from kifuse.running.memory_source import refuse_source
from kifuse.running.start_from import refuse_another_start
from kifuse.tasks.rendering import CHAT, ONE_TURN, PLAIN, Form, Rendering, decide_rendering
from kifuse.tasks.task import Task, TaskStream

OPEN_STREAM = "tasks as they come"
"""Name of a stream whose tasks are not known beforehand."""

HARMLESS = frozenset({"log.txt", "config.yaml", ".lock", ".lock.owner", "wandb", "tensorboard"})
"""Files that may be in a folder that holds no run yet."""


WITHOUT_EFFECT = (
    "training.checkpoint_minutes ",
    "training.max_bad_steps ",
    "training.report_to ",
    "model.trust_remote_code ",
    "data.own_metrics ",
)
"""Settings that change no result, and so may change when a run goes on."""

RENDERING = "data.chat_template "
"""The setting that may change as long as prompts stay what they were."""


def open_run(folder: Path, config: RunConfig, *, but: tuple[str, ...] = ()) -> RunRecord | None:
    """The record of an earlier start of the same run, or None for an empty folder.

    Args:
        folder: The run's folder.
        config: The run's configuration.
        but: Keys, each with a space after it, that may differ too.

    Raises:
        RunError: The folder holds something else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise RunError(f"output: {folder} is a file; name a folder.")
    if not (folder / "record.json").is_file():
        if any(p for p in folder.iterdir() if p.name not in HARMLESS and p.suffix != ".tmp"):
            raise RunError(f"output: {folder} is not empty and holds no run; name a new or empty folder.")
        return None
    record = RunRecord.load(folder)
    setting = config.data.chat_template
    if setting == "auto" or setting == (begun_form(record) != PLAIN):
        but = (*but, RENDERING)  # prompts stay as they were
    if refuse_another_start(config, record):
        but = (*but, "model.adapter.from ")  # it may lie elsewhere now
    harmless = (*WITHOUT_EFFECT, *but)
    changed = [d for d in differences(record.config, config_json(config)) if not d.startswith(harmless)]
    if changed:
        raise RunError(
            f"output: {folder} holds another run, which differs in {', '.join(changed)}; "
            "name another folder, or remove that one."
        )
    return record


def begun_form(record: RunRecord) -> Form:
    """The form in which the model read the examples of a run or a learner when that began."""
    if record.rendering:
        found = record.rendering["form"]
        return CHAT if found == CHAT else ONE_TURN if found == ONE_TURN else PLAIN
    # an older kifuse used the template only if it was told to
    return ONE_TURN if record.config.get("data", {}).get("chat_template") is True else PLAIN


def settle_rendering(
    record: RunRecord, config: RunConfig, tokenizer: Any, say: Callable[[str], None]
) -> Rendering:
    """Decide in which form the model reads examples, put it on record, and say if it changes.

    Args:
        record: The run's record; the form it began with stays, unless the configuration says otherwise.
        config: The run's configuration.
        tokenizer: The model's tokenizer.
        say: Called with a line if the form is not the default, or is another one than before.

    Raises:
        ModelError: The template is asked for, but there is none.
    """
    data, begun = config.data, begun_form(record)
    found = decide_rendering(data.chat_template, tokenizer, benchmark=data.benchmark, begun=begun)
    if found.form != begun:
        say(f"from now on examples are given to the model in another form: {found.form}, as {found.why}")
        record.config["data"]["chat_template"] = data.chat_template
    elif not record.rendering:
        fresh = decide_rendering("auto", tokenizer, benchmark=data.benchmark)
        if fresh.form != begun:
            say(
                "this was begun with an earlier kifuse, so examples keep the form of that version: "
                f"{found.form} ({found.why})"
            )
    if found.form != begun or not record.rendering:
        record.rendering = found.state()
    return found


def check_data(folder: Path, record: RunRecord, stream: TaskStream) -> None:
    """Make sure that a run goes on with the data it began with.

    Raises:
        RunError: There are other tasks, or a task's examples, labels or metric are not those of the start.
    """
    remedy = "put the data back as it was, or name a new output folder."
    names, begun = [task.name for task in stream.tasks], [entry.name for entry in record.tasks]
    if names != begun:
        raise RunError(
            f"{folder}: the tasks are {', '.join(names)}; when this run began they were {', '.join(begun)}; "
            f"{remedy}"
        )
    for task, entry in zip(stream.tasks, record.tasks, strict=True):
        now_there = task_record(task)
        changed = [
            f"{split} examples" for split, old in entry.hashes.items() if now_there.hashes[split] != old
        ]
        changed += [key for key in ("labels", "metric") if getattr(now_there, key) != getattr(entry, key)]
        if now_there.metric == entry.metric and now_there.metric_source != entry.metric_source:
            changed.append(f"source of the metric {task.metric}")
        if changed:
            raise RunError(
                f"{folder}: the {' and '.join(changed)} of task {task.name!r} have changed since this run "
                f"began; {remedy}"
            )


def other_source(task: Task, entry: TaskRecord) -> str | None:
    """Say that the user's own function that scores a task has changed since the task was learned.

    Args:
        task: The task as it is scored now.
        entry: The task's entry on record.

    Returns:
        The sentence; None if the function is the same, or the record does not know.
    """
    if entry.metric_source is None or task.metric_source == entry.metric_source:
        return None
    return (
        f"Task '{task.name}': the source of its metric {task.metric} has changed since it was learned, so "
        "scores from before and after the change cannot be compared."
    )


def open_method(config: RunConfig) -> Method:
    """Make the method that a configuration names.

    Raises:
        ConfigError: Its settings are wrong.
        ModelError: The method and the kind of adapter do not go together.
    """
    method = build_method(config.method.name, config.method.settings)
    refuse_pairing(config.model.adapter, method, config.method.name)
    refuse_source(config.memory, method, config.method.name)
    return method


def check_method(name: str, method: Method, model: Any) -> None:
    """Refuse a method that cannot work with the trained parameters.

    Args:
        name: The method's name.
        method: The method.
        model: The model with its adapter.

    Raises:
        ModelError: It cannot.
    """
    try:
        method.check(Parameters(model.named_parameters()))
    except ValueError as error:
        raise ModelError(f"method {name!r}: {error}") from error


def open_backbone(config: RunConfig, say: Callable[[str], None]) -> Backbone:
    """Load the model that a configuration names.

    Raises:
        ModelError: It cannot be loaded.
    """
    return load_backbone(
        config.model.name,
        precision=config.model.precision,
        quantization=config.model.quantization,
        trust_remote_code=config.model.trust_remote_code,
        say=say,
    )


def config_json(config: RunConfig) -> dict[str, Any]:
    """The whole configuration as JSON values, without the output folder, which changes no result."""
    resolved = config.model_dump(mode="json")
    del resolved["output"]
    return resolved


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List the keys in which two configurations differ, with both values; a missing key has its default.

    An older kifuse did not know every key of today, and did what is the default today.
    """
    old, new = _completed(old), _completed(new)
    names = [config.get("method", {}).get("name") for config in (old, new)]
    if names[0] is not None and names[0] == names[1]:
        old, new = _with_method_defaults(old), _with_method_defaults(new)
    return _differing(old, new, "")


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    try:
        return config_json(RunConfig.model_validate({**config, "output": "."}))
    except ValidationError:
        return config  # written by a kifuse that knew other keys


def _with_method_defaults(config: dict[str, Any]) -> dict[str, Any]:
    name, settings = config["method"]["name"], {k: v for k, v in config["method"].items() if k != "name"}
    try:
        found = build_method(name, settings).settings()
    except KifuseError:
        return config
    return {**config, "method": {"name": name, **json.loads(json.dumps(found))}}


def _differing(old: dict[str, Any], new: dict[str, Any], prefix: str) -> list[str]:
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differing(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} ({a!r} there, {b!r} here)")
    return found


def opening_lines(config: RunConfig, record: RunRecord | None) -> list[str]:
    """The first lines of a log: what runs, and on what."""
    learned = sum(t.train_steps is not None for t in record.tasks) if record else 0
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        f"{'going on after task ' + str(learned) if record else 'beginning'}: {config.method.name} on "
        f"{config.model.name}, seed {config.training.seed}",
        software,
    ]


def now() -> str:
    """The time in UTC, for the record only; no decision depends on it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def new_record(config: RunConfig, stream: TaskStream | None, method: Method, backbone: Backbone) -> RunRecord:
    """The record of a run that has not learned anything yet; without a stream its tasks come later."""
    return RunRecord(
        kifuse_version=__version__,
        status="running",
        created=now(),
        rendering=decide_rendering(
            config.data.chat_template, backbone.tokenizer, benchmark=config.data.benchmark
        ).state(),
        config=config_json(config),
        model=model_facts(config.model.name, backbone),
        method=MethodRecord(
            name=config.method.name,
            # in the form in which it will be read back
            settings=json.loads(json.dumps(method.settings())),
            data_class=class_with(method.data_class, config.memory.source),
            shown=method.shown,
            own_adapter=isinstance(method.adapter, type),
        ),
        stream=stream.name if stream else OPEN_STREAM,
        tasks=[task_record(task) for task in stream.tasks] if stream else [],
        warnings=list(stream.passed_over) if stream else [],
        seeds={"training": config.training.seed},
        versions=versions(),
        machine=machine(backbone, config.training.threads),
    )


def model_facts(name: str, backbone: Backbone) -> dict[str, Any]:
    """The facts about a base model that go on record."""
    return {
        "name": name,
        "family": backbone.model.config.model_type,
        "parameters": sum(p.numel() for p in backbone.model.parameters()),
        "encoder_decoder": backbone.encoder_decoder,
    }


def task_record(task: Task) -> TaskRecord:
    """The entry of a task that has not been learned yet."""
    return TaskRecord(
        name=task.name,
        metric=task.metric,
        labels=list(task.labels) if task.labels else None,
        sizes={split: len(task.split(split)) for split in ("train", "dev", "test")},
        hashes={split: task.split_hash(split) for split in ("train", "dev", "test")},
        format=task.format or None,
        metric_why=task.metric_why or None,
        metric_source=task.metric_source,
        comparison=task.comparison_why or None,
        passed_over=list(task.passed_over),
    )
