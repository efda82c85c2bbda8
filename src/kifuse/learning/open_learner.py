"""How a learner is opened: its folder (new or existing), its model, and the state from which it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from kifuse.config import RunConfig, to_yaml
from kifuse.errors import KifuseError, RunError
from kifuse.io.lock import exclusive
from kifuse.io.storage import write_text
from kifuse.learning.folder import LearnerFolder
from kifuse.learning.settings import (
    moved_model,
    open_model,
    refuse_all_at_once,
    refuse_settings_of_a_stream,
    refuse_stream,
)
from kifuse.models.precision import cast_by_itself
from kifuse.page_refresh import page_is_older
from kifuse.record.lineage import count_up_to, learned_count
from kifuse.record.run_record import RunRecord
from kifuse.running.engine import Engine
from kifuse.running.lm_eval_tasks import LmEvalTask
from kifuse.running.log_file import RunLog
from kifuse.running.run_start import RENDERING, new_record, open_method, open_run, opening_lines
from kifuse.running.sealed_files import SEALED_NOW, check_base, seal_if_unsealed
from kifuse.running.start_from import keep_start


@dataclass(frozen=True)
class OpenLearner:
    """An open learner: what its operations work on.

    Attributes:
        place: The learner's folder.
        engine: The engine, which holds the model, the method and the record.
        log: The log, which is told what is going on.
        lm_eval: Tasks of lm-evaluation-harness that are watched and were loaded in this process, by name.
    """

    place: LearnerFolder
    engine: Engine
    log: RunLog
    lm_eval: dict[str, LmEvalTask] = field(default_factory=dict)

    @property
    def record(self) -> RunRecord:
        """Everything on record."""
        return self.engine.record

    @property
    def learned(self) -> int:
        """Number of tasks learned."""
        return learned_count(self.record)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks learned, in their order."""
        return [entry.name for entry in self.record.tasks[: self.learned]]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, after making sure that it is as this learner last saw it.

        Raises:
            RunError: The folder is in use, or has been changed by another process.
        """
        with self.place.alone(self.record, broken=self.engine.cut_short), self.log.writing():
            yield


def open_engine(
    config: RunConfig,
    place: LearnerFolder,
    log: RunLog,
    *,
    model: Any,
    tokenizer: Any,
    max_forgetting: float | None,
    min_score: float | None,
    repair: bool,
    elsewhere: bool,
    at: int | str | None,
) -> Engine:
    """Open a learner's folder.

    Args:
        config: The learner's configuration.
        place: The learner's folder.
        log: The log, which is told what is going on.
        model: The model as an object; None to load it by the configuration's name.
        tokenizer: The tokenizer of a model that is given as an object.
        max_forgetting: Most points that a task may cost an earlier one.
        min_score: Least score that a task must reach itself.
        repair: Whether weights are pulled back before a task is taken back.
        elsewhere: Whether the model may have another name than on record.
        at: Number of tasks, or the name of the last one, to go back to; None for the newest state.

    Returns:
        The engine, with the model as it was after the last task.

    Raises:
        KifuseError: A setting is wrong, the model cannot be loaded, or the folder holds something else, or
            something damaged.
    """
    folder, of_first = place.path, place.processes.of_first
    first = place.processes.rank == 0
    with contextlib.ExitStack() as stack:
        writes = of_first(lambda: _hold(stack, folder))
        but = (RENDERING, "model.name ") if elsewhere else (RENDERING,)
        record = of_first(lambda: open_run(folder, config, but=but))
        refuse_stream(record, folder)
        if record is None:
            refuse_settings_of_a_stream(config)
        log.writes = log.writes and writes
        stack.enter_context(log.writing(*opening_lines(config, record)))
        there = record
        if there is not None and writes:
            of_first(lambda: place.tidy(there))
        built = open_method(config)
        refuse_all_at_once(built, config.method.name)
        backbone = open_model(config, config.model.name if model is None else model, tokenizer, log.say)
        before = record and record.model_copy(deep=True)
        if record is None:
            record = new_record(config, None, built, backbone)
            record.model["given"] = model is not None
            of_first(lambda: write_text(folder / "config.yaml", to_yaml(config)))
        elif elsewhere:
            moved_model(record, config.model.name, backbone)
        unsealed = before is not None and writes and first and seal_if_unsealed(folder, record)
        if unsealed:
            log.say(f"{folder} was {SEALED_NOW}")
        check_base(record, backbone)
        record.max_forgetting, record.min_score, record.repair = max_forgetting, min_score, repair
        engine = Engine(config, record, built, backbone, log, writes=writes)
        if of_first(lambda: writes and (unsealed or record != before)):
            engine.save()
        if writes:
            of_first(lambda: keep_start(config))
        cast_by_itself(backbone)
        _restore(engine, place, at, writes)
        if not writes:
            log.say(f"{folder} cannot be written to, so this learner can answer and score but not learn")
        elif before is not None and page_is_older(folder):
            engine.tell_saved()
    return engine


def _hold(stack: contextlib.ExitStack, folder: Path) -> bool:
    """Hold the folder; False where it holds a learner, but cannot be written to."""
    try:
        stack.enter_context(exclusive(folder))
    except RunError as error:
        cause = error.__cause__
        # a Timeout is an OSError, too: another process holds the folder
        unwritable = isinstance(cause, OSError) and not isinstance(cause, Timeout)
        if unwritable and (folder / "record.json").is_file():
            return False
        raise
    return True


def _restore(engine: Engine, place: LearnerFolder, at: int | str | None, writes: bool) -> None:
    """Put the newest state back, or go back to an earlier one."""
    record = engine.record
    learned = learned_count(record)
    names = [task.name for task in record.tasks[:learned]]
    if at is not None:
        if not writes:
            raise RunError(f"{place.path}: cannot be written to, so it cannot be rolled back to {at!r}.")
        place.back_to(engine, count_up_to(at, names, "rollback"), "rolled back")
    elif learned:
        try:
            engine.restore(learned)
        except KifuseError as error:
            raise type(error)(f"{error}{_way_back(engine, record, learned)}") from error


def _way_back(engine: Engine, record: RunRecord, learned: int) -> str:
    for k in range(learned - 1, 0, -1):
        with contextlib.suppress(KifuseError):
            engine.snapshots.check(k, record.tasks[k - 1].seal)
            return (
                f" Or continue from the newest complete state, after {record.tasks[k - 1].name!r}: "
                f"ContinualLearner.load(folder, at={record.tasks[k - 1].name!r}). Later tasks are then "
                "moved out of the way, as in a rollback."
            )
    return ""
