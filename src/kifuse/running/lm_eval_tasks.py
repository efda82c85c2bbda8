"""Tasks of lm-evaluation-harness that are watched: found by their names, and loaded before training."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kifuse.config import LmEvalConfig, require_packages
from kifuse.config.installed import installed
from kifuse.errors import ConfigError, DataError
from kifuse.io.file_names import name_fault
from kifuse.io.storage import sha256_text
from kifuse.record.parts import LmEvalRecord, WatchedRecord

PREFIX = "lm_eval."
"""Prefix of the names of these tasks, so that a learned task may have the same name."""

SEEDS = (0, 1234, 1234)
"""The seeds of lm_eval's own command for Python, NumPy and torch; examples are drawn with the last one."""

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
_OF_A_HUNDRED = ("bleu", "chrf", "chrf++")


@dataclass(frozen=True)
class LmEvalTask:
    """A task, or a group of tasks with one score.

    Attributes:
        name: The name on record.
        of: How the task is run.
        loaded: What lm_eval's `TaskManager.load` gave.
        n: Number of documents that are scored.
        hash: SHA-256 of the documents and of everything else, beside the model, that decides the score.
    """

    name: str
    of: LmEvalRecord
    loaded: Any
    n: int
    hash: str

    def entry(self) -> WatchedRecord:
        """The entry of the task for the record."""
        return WatchedRecord(name=self.name, metric=self.of.metric, n=self.n, hash=self.hash, lm_eval=self.of)


@contextlib.contextmanager
def seeded_apart() -> Iterator[None]:
    """Seed all generators as lm_eval does while the block runs, then restore them."""
    ours = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(SEEDS[0])
        np.random.seed(SEEDS[1])
        torch.manual_seed(SEEDS[2])
        try:
            yield
        finally:
            random.setstate(ours[0])
            np.random.set_state(ours[1])


def open_lm_eval(config: LmEvalConfig) -> list[LmEvalTask]:
    """Load the tasks that a configuration names; a tag stands for several tasks.

    Raises:
        ConfigError: lm_eval is not installed, has no task of a name, or a task does not have the metric, or
            no score can be made of the metric.
        DataError: A task's data cannot be loaded.
    """
    if not config.tasks:
        return []
    require_packages(lm_eval=config.tasks)
    found: list[LmEvalTask] = []
    asked_by: dict[str, str] = {}
    with seeded_apart(), heard(), without_bars():
        for asked in config.tasks:
            name, metric, manager = _named(asked, config)
            for loaded in _load(name, manager):
                task = _opened(name, metric, loaded, config)
                if task.name in asked_by:
                    raise ConfigError(
                        f"watch.lm_eval: {task.of.task!r} is asked for by {asked_by[task.name]!r} and by "
                        f"{asked!r}. Ask for it once; the record has all its metrics."
                    )
                asked_by[task.name] = asked
                found.append(task)
    return found


def recorded_config(of: LmEvalRecord) -> LmEvalConfig:
    """Make the configuration that loads a task on record again."""
    asked = of.model_dump(include={"limit", "num_fewshot", "batch_size", "include_path"})
    return LmEvalConfig.model_validate({"tasks": [f"{of.task}:{of.metric},{of.filter}"], **asked})


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Collect lm_eval's warnings instead of printing them; its own progress is not shown."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(" ".join(record.getMessage().split()))

    logger, listener = logging.getLogger("lm_eval"), Listener(logging.WARNING)
    before = logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(listener)
        logger.propagate = before


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep the progress bars of lm_eval and datasets out of the terminal, where kifuse shows its own."""
    before = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = before


@cache
def _all_tasks(include_path: tuple[Path, ...] = ()) -> Any:
    """Every task that lm_eval knows; reading its 15,000 files takes some seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(include_path))


def _manager(name: str, config: LmEvalConfig) -> Any:
    """Choose the manager that knows a task: the one of the user's own files if it does, else lm_eval's."""
    from lm_eval.tasks import TaskManager

    if config.include_path:
        own = TaskManager(include_path=list(config.include_path), include_defaults=False)
        if name in own.all_subtasks:
            return own
        if name in own.all_tasks:  # a group or a tag, which may name tasks of lm_eval
            return _all_tasks(tuple(config.include_path))
    return _all_tasks()


def _names(config: LmEvalConfig) -> list[str]:
    """All names that can be asked for."""
    from lm_eval.tasks import TaskManager

    paths: list[str | Path] = [*config.include_path]
    own = TaskManager(include_path=paths, include_defaults=False).all_tasks if paths else []
    return [*own, *_all_tasks().all_tasks]


def _named(asked: str, config: LmEvalConfig) -> tuple[str, str, Any]:
    """Split `hellaswag:acc_norm` into name and metric, which may be empty; with the manager that knows it."""
    for folder in config.include_path:
        if not folder.is_dir():
            raise ConfigError(
                f"watch.lm_eval.include_path: found '{folder}', which is no folder, expected one with task "
                "files (*.yaml) of lm_eval."
            )
    name, _, metric = asked.partition(":")
    manager = _manager(name, config)
    if name not in manager.all_tasks:
        nearest = get_close_matches(name, _names(config), n=3)
        hint = f" The nearest are {', '.join(nearest)}." if nearest else ""
        raise ConfigError(
            f"watch.lm_eval: found {name!r}, expected a task that lm_eval {installed('lm_eval')} has.{hint} "
            "See 'lm-eval ls tasks'. Your own task files are looked for in watch.lm_eval.include_path."
        )
    return name, metric, manager


def _load(name: str, manager: Any) -> list[Any]:
    """Load what a name stands for: a task or a group gives one entry, a tag one for each of its tasks."""
    try:
        loaded = manager.load([name])
        groups = loaded.get("groups", {})
        if name in groups and groups[name].has_aggregation:
            return [loaded]
        return [
            {"tasks": {own: task}, "groups": {}, "group_map": {}} for own, task in loaded["tasks"].items()
        ]
    except Exception as error:  # a task file, its code or the hub may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"watch.lm_eval: {name!r} cannot be loaded: {reason[:300]}. A task of lm_eval downloads its "
            "data from the hub once. Your own task file may name local files."
        ) from error


def _opened(asked: str, metric: str, loaded: Any, config: LmEvalConfig) -> LmEvalTask:
    """Decide which metric is the score of a loaded task or group."""
    group, leaves = loaded["groups"].get(asked), loaded["tasks"]
    name, first = (asked, next(iter(leaves.values()))) if group else next(iter(leaves.items()))
    fault = name_fault(PREFIX + name)
    if fault is not None:
        raise ConfigError(f"watch.lm_eval: the name {fault}.")
    filters = [each["name"] for each in first.config.filter_list or [{"name": "none"}]]
    metrics = list(first.aggregation())
    if group:
        metrics = list(dict.fromkeys(each.metric for each in group.aggregate_metric_list))
    wanted, _, filtered = metric.partition(",")
    chosen, filtered = wanted or metrics[0], filtered or filters[0]
    if chosen not in metrics or filtered not in filters:
        expected = ", ".join(
            f"{name}:{m}" + (f",{f}" if filters[1:] else "") for m in metrics for f in filters
        )
        raise ConfigError(f"watch.lm_eval: found {name}:{metric}, expected one of {expected}.")
    better = {each: first.higher_is_better().get(each, True) for each in metrics}
    if better[chosen] is False and chosen not in PERPLEXITIES:
        others = [f"{name}:{each}" for each in metrics if better[each] is not False or each in PERPLEXITIES]
        raise ConfigError(
            f"watch.lm_eval: found {name} with {chosen}, for which lower is better, expected a metric for "
            f"which higher is better: {', '.join(others) or 'it has none'}."
        )
    of = LmEvalRecord(
        task=name,
        version=str(group.version if group else first.VERSION),
        harness=installed("lm_eval"),
        metric=chosen,
        filter=filtered,
        limit=config.limit,
        num_fewshot=config.num_fewshot,
        batch_size=config.batch_size,
        include_path=[str(folder) for folder in config.include_path],
    )
    documents = [list(task.eval_docs)[: config.limit] for task in leaves.values()]
    return LmEvalTask(PREFIX + name, of, loaded, sum(map(len, documents)), _hash(of, leaves, documents))


def _hash(of: LmEvalRecord, leaves: Any, documents: Sequence[Sequence[Any]]) -> str:
    """SHA-256 of the documents and of their prompts, which another version of a task may change."""
    how = of.model_dump(exclude={"include_path", "batch_size", "harness"})
    prompts = [
        str(task.doc_to_text(each))
        for task, own in zip(leaves.values(), documents, strict=True)
        for each in own
    ]
    return sha256_text(json.dumps([how, documents, prompts], default=str, sort_keys=True))


def points(name: str, of: LmEvalRecord, value: Any, stderr: Any) -> tuple[float, float | None]:
    """Turn a metric's value into a score from 0 to 100 (below 0 for a correlation), with its standard error.

    A share is multiplied by 100; BLEU and chrF are points already; for a perplexity the score is 100 divided
    by it, as for kifuse's own.

    Raises:
        DataError: The value is on an unknown scale.
    """
    error = float(stderr) if isinstance(stderr, (int, float, np.floating)) else None
    if of.metric in PERPLEXITIES:
        return 100.0 / value, None if error is None else 100.0 * error / value**2
    if of.metric in _OF_A_HUNDRED:
        return float(value), error
    if not isinstance(value, (int, float, np.floating)) or not -1.0 <= value <= 1.0:
        raise DataError(
            f"watch.lm_eval: {name}: found {value!r} as its {of.metric}, expected a number from -1 to 1, as "
            "a score is made of it. Name another of its metrics, as in hellaswag:acc_norm."
        )
    return 100.0 * float(value), None if error is None else 100.0 * error
