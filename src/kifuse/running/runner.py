"""A whole run: it trains on every task of a stream in turn, scores as the protocol asks, and can resume."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kifuse.config import RunConfig, require_packages, to_yaml
from kifuse.config.start_from import with_start
from kifuse.errors import DataError
from kifuse.io.lock import exclusive
from kifuse.io.storage import write_text
from kifuse.io.whole_folders import remove_temporaries
from kifuse.own_method import name_method
from kifuse.processes import Processes, is_main_process, process_count
from kifuse.record.run_record import RunRecord
from kifuse.running.data_on_record import is_looked_through, put_on_record, tell
from kifuse.running.engine import Engine
from kifuse.running.environment import reset_peak_memory
from kifuse.running.importance_probe import refuse_probes
from kifuse.running.log_file import RunLog
from kifuse.running.mid_task_checkpoint import refuse_file_for_middle
from kifuse.running.progress import Plan, Progress
from kifuse.running.record_of_all import changed_by_first
from kifuse.running.run_start import (
    check_data,
    new_record,
    now,
    open_method,
    open_run,
    opening_lines,
)
from kifuse.running.sealed_files import SEALED_NOW, check_base, seal_if_unsealed
from kifuse.running.shared_by_runs import Shared
from kifuse.running.shared_first_task import early_scores, may_share_first_task, same_first_task
from kifuse.running.snapshot import Snapshots
from kifuse.running.start_from import keep_start
from kifuse.running.trained_elsewhere import take_over_training
from kifuse.running.watched_tasks import (
    Watched,
    answers_of,
    open_watched,
    put_on_watch,
    score_watched,
    tell_trained,
)
from kifuse.running.work_ahead import cells_to_score, plan_of, watch_moments
from kifuse.tasks.task import TaskStream


def run(
    config: RunConfig,
    *,
    progress: Progress | None = None,
    reuse: Path | Sequence[Path] | None = None,
    shared: Shared | None = None,
    trained: Path | None = None,
) -> RunRecord:
    """Run a configuration, or go on with it where it stopped.

    Args:
        config: What to run.
        progress: The listener, which is told what is going on.
        reuse: Folders of other runs. If one differs at most in its method and in the order of later tasks,
            and both methods train the first task plainly, the first task has the same outcome. It is then
            taken over instead of being computed again.
        shared: What runs in this process share: the base model, the tasks and their tokens.
        trained: Folder of a finished run that differs at most in what it is scored on. Its training is taken
            over, and its states are scored.

    Returns:
        The finished record, which is also in the run's folder.

    Raises:
        KifuseError: The configuration, the data, the model or the output folder is wrong, or another process
            is writing to the folder.
    """
    progress, shared = progress or Progress(), shared or Shared(keeps=False)
    name_method(config.method.name)
    config = with_start(config)
    folder = Path(config.output)
    processes = Processes.of_launcher()
    # the first process reads for all: what it writes later changes what the others would find
    record = processes.of_first(lambda: open_run(folder, config))
    if record is not None and record.status == "finished":
        _check_finished(config, record, shared, progress)
        return record
    require_packages(config.training.report_to, config.watch.lm_eval.tasks)
    with contextlib.ExitStack() as held:
        processes.of_first(lambda: held.enter_context(exclusive(folder)))
        # again, now that nobody else can change it
        record = processes.of_first(lambda: _opened(folder, config))
        others = [reuse] if isinstance(reuse, Path) else reuse or ()
        log = RunLog(folder, progress, writes=is_main_process())
        with log.writing(*opening_lines(config, record)):
            return _run(config, record, log, others, shared, trained)


def _opened(folder: Path, config: RunConfig) -> RunRecord | None:
    record = open_run(folder, config)
    remove_temporaries(folder, ("adapters", "state", "predictions"))
    refuse_file_for_middle(folder)
    return record


def _check_finished(config: RunConfig, record: RunRecord, shared: Shared, progress: Progress) -> None:
    """Say that there is nothing to do, after checking that the data is still the same."""
    try:
        stream = shared.stream(config.data, config.training.seed)
    except DataError as error:  # the data may be gone: the run is done
        progress.say(f"note: the data cannot be compared with that of the run: {error}")
    else:
        check_data(Path(config.output), record, stream)
    kept, last = Snapshots(Path(config.output)), len(record.tasks)
    if not kept.has(last):
        progress.say(
            f"note: {kept.adapter(last)}, the last adapter of this finished run, or the list of its files, "
            "is missing; to make it again, name another output"
        )
    progress.say(f"{config.output} already holds this finished run; nothing to do")


def _run(
    config: RunConfig,
    record: RunRecord | None,
    progress: Progress,
    reuse: Sequence[Path],
    shared: Shared,
    trained: Path | None,
) -> RunRecord:
    reset_peak_memory()
    stream = shared.stream(config.data, config.training.seed)
    if record is not None:
        check_data(Path(config.output), record, stream)
    method = open_method(config)
    watched = open_watched(config)
    backbone = shared.backbone(config, progress.say)
    if record is None:
        record = new_record(config, stream, method, backbone)
    elif seal_if_unsealed(Path(config.output), record):
        progress.say(f"{config.output} was {SEALED_NOW}")
    check_base(record, backbone)
    engine = Engine(
        config,
        record,
        method,
        backbone,
        progress,
        tokens=shared.tokens,
        token_folder=shared.token_folder,
    )
    with engine.tracked():
        record = _StreamRun(engine, stream, watched).go(reuse, trained)
    shared.give_back(backbone, engine.model)
    return record


class _StreamRun:
    """Takes an engine through a stream."""

    def __init__(self, engine: Engine, stream: TaskStream, watched: Sequence[Watched]) -> None:
        self.engine, self.tasks = engine, stream.tasks
        self.config, self.record, self.progress = engine.config, engine.record, engine.progress
        self.joint = engine.method.old_data == "all"
        self.cells = cells_to_score(engine.config, engine.method, self.tasks)
        self.watched = watched
        refuse_probes(engine.config, [task.name for task in self.tasks], jointly=self.joint)
        self.moments = watch_moments(engine.config, engine.method, len(self.tasks))

    def go(self, reuse: Sequence[Path], trained: Path | None) -> RunRecord:
        """Do what is not done yet."""
        engine = self.engine
        # looked through before anything is written, so that data which cannot be used leaves nothing behind
        findings = None if is_looked_through(self.record) else engine.look_through(self.tasks)
        put_on_watch(self.record, self.watched)
        if engine.writes:
            write_text(engine.folder / "config.yaml", to_yaml(self.config))
        engine.save()
        if engine.writes:
            keep_start(self.config)
        if trained is None:
            self._take_over_first_task(reuse)
        elif not self.engine.learned(len(self.tasks)):
            self._take_over_training(trained)
        if findings is not None:
            put_on_record(self.record, findings, engine.folder if engine.writes else None)
            engine.save()
        tell_trained(self.record, self.watched, self.tasks, self.progress.say)
        self._announce()
        if trained is not None:
            self._score_states()
        start = self._restore()
        for k in range(start, len(self.tasks) + 1):
            if k > start:
                self._learn(k)
            self._score(k)
            if k:
                engine.tell_saved()
        self.record.status = "finished"
        self.record.finished = now()
        engine.save()
        engine.tell_saved()
        if engine.writes:
            shutil.rmtree(engine.folder / "checkpoint", ignore_errors=True)
        self.progress.finish()
        return self.record

    def _score(self, k: int) -> None:
        """Score what the protocol asks for after k tasks and is not on record yet."""
        scored = [self.engine.score(k, i, self.tasks[i]) for after, i in self.cells if after == k]
        if any(cell is not None for cell in scored):
            self.engine.tell_row(k)
        if k in self.moments:
            score_watched(self.engine, k, self.watched)

    def _score_states(self) -> None:
        """Score the states before the last one, if the whole training was taken over."""
        known = {(score.after, score.task) for score in self.record.scores}
        moments = {after for after, i in self.cells if (after, i) not in known}
        if self.watched:
            moments |= self.moments - {score.after for score in self.record.watch_scores}
        for k in sorted(moments - {len(self.tasks)}):
            if k:  # before any task, the model is as it was loaded
                self.engine.restore(k)
            self._score(k)

    def _announce(self) -> None:
        """Say what is odd in the data, and how much there is to do."""
        tell(self.record.warnings, self.record.tasks, self.progress.say)
        learned = sum(t.train_steps is not None for t in self.record.tasks)
        self.progress.stream([task.name for task in self.tasks], learned)
        done = sum((t.train_steps or 0) + (t.extra_forward_backward or 0) for t in self.record.tasks)
        sizes = self.engine.reading.sizes(self.tasks)
        self.progress.begin(
            self.config.method.name,
            plan_of(self.config, self.engine.writers, self.tasks, sizes, list(map(answers_of, self.watched))),
            Plan(done, sum(s.n for s in (*self.record.scores, *self.record.watch_scores))),
        )

    def _restore(self) -> int:
        """Load the last task that was learned, and say how many were."""
        last = len(self.tasks)
        if self.joint:
            k = last if self.engine.learned(last) else 0
        else:
            k = max(i for i in range(last + 1) if all(self.engine.learned(j) for j in range(i + 1)))
        if k:
            self.engine.restore(k)
            self.progress.say(f"going on after task {k} of {last}")
        return k

    def _learn(self, k: int) -> None:
        """Train on the k-th task; joint training is done once, on all of them, at the last."""
        if not self.joint or k == len(self.tasks):
            self.engine.learn(k, self.tasks[k - 1], self.tasks[: k - 1], jointly=self.joint)

    def _take_over_training(self, trained: Path) -> None:
        """Let the first process copy another run's training, and give all processes the record of it."""
        taken = partial(take_over_training, self.engine.folder, trained, self.config, self.record)
        changed_by_first(self.engine.processes, self.record, taken)

    def _take_over_first_task(self, others: Sequence[Path]) -> None:
        """Take over another run's first task if it must have the same outcome."""
        engine, record = self.engine, self.record
        plainly = may_share_first_task(engine.method, self.config)
        if record.tasks[0].train_steps is not None or not plainly:
            return
        if process_count() > 1:
            return  # the other processes would look for the adapter before it is there
        found = same_first_task(others, self.config, record)
        if found is None:
            return
        other, theirs = found
        record.tasks[0] = theirs.tasks[0].model_copy(deep=True)
        record.scores = early_scores(theirs, record, self.cells)
        record.watch_scores = [score for score in theirs.watch_scores if score.after <= 1]
        record.notes.append(f"the first task's training was taken over from the run of {theirs.method.name}")
        told = [(score.after, record.tasks[score.task].name) for score in record.scores]
        told += [(score.after, record.watched[score.task].name) for score in record.watch_scores]
        for after, task in told:
            name = Path("predictions", f"after-{after}", f"{task}.jsonl")
            if (other / name).is_file():
                (engine.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(other / name, engine.folder / name)
        engine.take_over(1, other / "adapters" / "after-1", self.tasks[0])
