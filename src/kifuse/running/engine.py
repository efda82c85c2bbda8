"""The engine of a run: its model learns, is scored, saved and restored. It does not know what comes next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

import torch

from kifuse.adapters.kinds import new_adapter
from kifuse.answering.evaluator import Cell, Evaluator, place_of
from kifuse.config import RunConfig
from kifuse.driving.refusals import nothing_learned
from kifuse.driving.zero import whole_weights
from kifuse.errors import RunError
from kifuse.methods.base import Method, OldData, TaskInfo
from kifuse.models.loading import Backbone, shrink_frozen
from kifuse.processes import Processes, is_main_process, under_deepspeed
from kifuse.record.run_record import RunRecord
from kifuse.registry import build_method
from kifuse.running.environment import peak_memory_mb
from kifuse.running.importance_probe import ImportanceProbe, probe_of
from kifuse.running.interrupt import Patience
from kifuse.running.memory_source import general_inputs, sources, writes_memory
from kifuse.running.mid_task_checkpoint import Middle
from kifuse.running.one_task import TaskTraining, train_task, training_arguments
from kifuse.running.progress import Progress
from kifuse.running.prompt_form import Reading
from kifuse.running.record_of_all import changed_by_first
from kifuse.running.run_start import check_method, other_source
from kifuse.running.snapshot import Snapshots
from kifuse.running.start_from import attach, earlier_than_first, small_start, weights_as_loaded
from kifuse.running.task_texts import TaskTexts
from kifuse.running.tracking import Tracking, steps_before
from kifuse.running.trainer_listener import Watcher, matrix_row
from kifuse.running.work_ahead import empty_memory, passes
from kifuse.streams import own_steps
from kifuse.tasks.data_findings import Findings, look_through
from kifuse.tasks.encoding import Encoded
from kifuse.tasks.leaks import check_memory, check_training
from kifuse.tasks.on_disk import joined
from kifuse.tasks.overlaps import Inputs
from kifuse.tasks.task import Task
from kifuse.tasks.token_cache import TokenCache

REMEMBERED: tuple[OldData, ...] = ("mixed", "steps")
"""Ways of using old data that need a memory buffer."""


class Engine:
    """Model, method, memory and record of one run.

    Args:
        config: The run's configuration.
        record: The run's record; what is learned and scored goes into it.
        method: The method.
        backbone: The model; its adapter is put on it here.
        progress: The listener, which is told what is going on.
        tokens: Keeps token ids for other runs in this process.
        token_folder: Where they are kept for other processes; None: in the run's folder.
        writes: Whether files are written; only the first process ever writes any.
    """

    def __init__(
        self,
        config: RunConfig,
        record: RunRecord,
        method: Method,
        backbone: Backbone,
        progress: Progress,
        *,
        tokens: TokenCache | None = None,
        token_folder: Path | None = None,
        writes: bool = True,
    ) -> None:
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        self.config, self.record, self.method = config, record, method
        self.backbone, self.progress = backbone, progress
        self.folder = Path(config.output)
        self.processes = Processes.of_launcher()
        self._writable, self.writes = writes, writes and is_main_process()
        self.snapshots = Snapshots(self.folder)
        self.adapter = new_adapter(config.model.adapter, method)
        self.model = attach(self.adapter, backbone, config, record, progress.say)
        self._earlier = earlier_than_first(config)
        shrink_frozen(self.model, backbone.precision)
        check_method(config.method.name, method, self.model)
        self._sources = sources(method, config.memory)
        self.memory = empty_memory(self.config)
        self.tracking, self._untrained = self._trackers(), small_start(self.model, self.adapter.learned())
        self._cut_short, self._unsaved, self._saved = False, False, (0.0, 0.0)
        self.reading = Reading(
            config,
            record,
            backbone,
            progress.say,
            tokens=tokens,
            folder=token_folder or self.folder / "tokens",
            writes=self.writes,
        )
        self.encoder = self.reading.encoder
        self.evaluator = Evaluator(
            self.model,
            backbone,
            self.encoder,
            folder=self.folder / "predictions" if self.writes else None,
            max_new_tokens=config.evaluation.max_new_tokens or config.data.max_target,
            batch_tokens=config.evaluation.batch_tokens,
            place=partial(place_of, record),
            tells=method.data_class == "task id given",
            processes=self.processes,
        )

    def look_through(self, tasks: Sequence[Task], earlier: Mapping[str, Inputs] | None = None) -> Findings:
        """Collect the findings about tasks before they are trained on; see `look_through`."""
        limit = self.config.evaluation.max_new_tokens
        known = {**(earlier or {}), **general_inputs(self._sources)}
        return look_through(tasks, self.encoder, earlier=known, max_new_tokens=limit)

    def _trackers(self) -> Tracking | None:
        training = self.config.training
        if not training.report_to or not self.writes:
            return None
        return Tracking(
            training.report_to,
            self.folder,
            self.record,
            arguments=partial(
                training_arguments, training, self.backbone, self.folder / "checkpoint", training.seed, 1
            ),
            model=self.model,
            say=self.progress.say,
        )

    @contextlib.contextmanager
    def tracked(self) -> Iterator[None]:
        """Keep the trackers of `training.report_to` open for as long as the block runs.

        Raises:
            RunError: A tracker cannot be started.
        """
        if self.tracking is None:
            yield
            return
        self.tracking.open()
        try:
            yield
        finally:
            self.tracking.close()

    @property
    def writers(self) -> list[Method]:
        """The method, and the sources that decide with it what is trained on and kept."""
        return [self.method, *self._sources]

    @property
    def remembers(self) -> bool:
        """Whether the method is given examples of earlier tasks."""
        return self.method.old_data in REMEMBERED

    def learned(self, k: int) -> bool:
        """Whether the model as it was after k tasks is on disk."""
        return k == 0 or (self.record.tasks[k - 1].train_steps is not None and self.snapshots.has(k))

    def restore(self, k: int) -> None:
        """Put back the model, the method's state and the memory after k tasks.

        Raises:
            RunError: A file is damaged; or k is 0, most weights are trained, and the model was given as an
                object.
        """
        with whole_weights(self.model):
            self._restore(k)

    def _restore(self, k: int) -> None:
        if k:
            self.memory = self.snapshots.load(k, self.adapter, self.method, self.record.tasks[k - 1].seal)
            self._cut_short = False
            return
        untrained = self._untrained
        if untrained is None:
            untrained = weights_as_loaded(self.config, self.record, self.adapter.learned())
        self.method = build_method(self.config.method.name, self.config.method.settings)
        self.memory = empty_memory(self.config)
        self.adapter.method = self.method
        self.adapter.restart(untrained)
        self._cut_short = False

    def settle(self, k: int) -> None:
        """Restore the state after k tasks if a training in this process was cut short.

        Raises:
            RunError: As `restore`.
        """
        if self._cut_short:
            self.restore(k)

    def cut_short(self) -> None:
        """Note that weights, method and memory are no longer those on record: `settle` puts them back."""
        self._cut_short = True

    def passes(self, index: int, task: Task) -> int:
        """Count the passes that training on this task next will take; `index` is its place, from 0."""
        settings, [size] = self.config.training, self.reading.sizes([task])
        steps = own_steps(size, settings.epochs, settings.batch_size)
        info = TaskInfo(index + self._earlier, task.name, steps, batch_size=settings.batch_size)
        return passes(self.config, self.writers, [info], [size], kept=len(self.memory))

    def learn(self, k: int, task: Task, earlier: Sequence[Task], *, jointly: bool = False) -> None:
        """Train on the k-th task (1-based), then keep adapter, state, memory and record, in this order.

        Args:
            k: The task's number; the record's k-th entry is filled.
            task: The task; it goes into the memory if the method uses one.
            earlier: The tasks before it whose training examples are at hand.
            jointly: Train on all of them at once.

        Raises:
            RunError: Anything but training examples would be trained on or is in the memory.
        """
        self.settle(k - 1)
        entry = self.record.tasks[k - 1]
        as_before = entry.model_copy()
        sources = [*earlier, task] if jointly else [task]
        name = "all tasks" if jointly else task.name
        examples = joined(*(t.train for t in sources))
        at_hand = {t.name for t in earlier}
        check_training(examples, sources, earlier)
        unchecked = {n for n in self.memory.tasks if n not in at_hand or writes_memory(self.writers)}
        check_memory(self.memory, earlier, gone=unchecked)
        texts = TaskTexts.of(self, k, task)
        current = self.reading.training(texts.trained_on(self.writers, examples))
        old = self.encoder.encode_pieces(self.memory.examples()) if self.remembers else []
        kept: Sequence[Encoded] = []
        if self.remembers and "kept" in self.method.needs:
            kept = self.encoder.encode_pieces(self.memory.draw(task))
        patience = Patience(self.progress.say)
        seconds = 60.0 * self.config.training.checkpoint_minutes
        middle = Middle(self.folder / "checkpoint", seconds, patience, self.progress.say, self.processes)
        self._cut_short = True
        with whole_weights(self.model):
            self.adapter.begin_task(k - 1 + self._earlier, self.config.training.seed)
        # under DeepSpeed there is no checkpoint in the middle of a task: a signal stops at once
        with contextlib.nullcontext() if under_deepspeed() else patience.listening():
            probe = probe_of(self.config, self.backbone, self.encoder, [*earlier, task])
            done = self._train(k, name, current, old, kept, middle, probe)
        if not done.taken:
            if self.writes:
                middle.forget()
            raise RunError(nothing_learned(name, done.steps))
        with whole_weights(self.model):
            self.adapter.end_task()
        # including the passes that a method made after the last step
        self.progress.passes(done.steps + done.extra_passes)
        # the record changes when the task is learned, not before: a training cut short leaves it as it was
        for key, value in {
            "train_steps": done.steps,
            "examples_seen": done.examples_seen,
            "replayed_examples": done.replayed,
            "extra_forward_backward": done.extra_passes,
            "seconds_train": done.seconds,
            "loss": [list(pair) for pair in done.losses],
            "learning_rate": [list(pair) for pair in done.rates],
            "events": [*texts.events, *done.events],
            "per_tensor": done.per_tensor,
        }.items():
            setattr(entry, key, value)
        try:
            self.keep(k, task)
        except BaseException:
            self.record.tasks[k - 1] = as_before
            raise
        self._cut_short = False
        if self.writes:
            middle.forget()
        patience.asked = any(self.processes.gathered(patience.asked))
        patience.check_task(name)

    def _train(
        self,
        k: int,
        name: str,
        current: Sequence[Encoded],
        old: Sequence[Encoded],
        kept: Sequence[Encoded],
        middle: Middle,
        probe: ImportanceProbe | None,
    ) -> TaskTraining:
        settings, watcher = self.config.training, Watcher(self.progress, name, self.method.shown)
        mixed = old if self.method.old_data == "mixed" else []
        steps = own_steps(len(current) + len(mixed), settings.epochs, settings.batch_size)
        index = k - 1 + self._earlier
        info = TaskInfo(index, name, steps, batch_size=settings.batch_size, examples=len(current))
        extra = self.method.extra_passes(info, -(-len(old) // settings.batch_size))
        self.progress.training(name, steps + extra)
        before = steps_before(self.record, k - 1)
        return train_task(
            self.model,
            self.backbone,
            self.method,
            settings,
            index=index,
            name=name,
            current=current,
            mixed=mixed,
            memory=old if self.method.old_data == "steps" else [],
            kept=kept,
            folder=self.folder / "checkpoint",
            listener=partial(self._tell, name),
            heard=watcher.heard,
            callbacks=[watcher, *([self.tracking.callback(k, before)] if self.tracking else [])],
            middle=middle if self._writable else None,
            ends=self.encoder.stops,
            probe=probe,
        )

    def _tell(self, name: str, step: int, steps: int, loss: float | None, passes: int) -> None:
        self.progress.passes(passes)
        self.progress.step(name, step, steps, loss)

    def keep(self, k: int, task: Task) -> None:
        """Remember examples of the k-th task and write everything as it is now; the record comes last."""
        if self.remembers:
            texts = TaskTexts.of(self, k, task)
            self.memory.add(task, texts.remembered(self.writers, self.memory.quota(len(task.train))))
            self.record.tasks[k - 1].events += texts.events
        with whole_weights(self.model):
            self.record.tasks[k - 1].kept_parameters = self._kept_parameters()
            if self.writes:
                self.record.tasks[k - 1].seal = self.snapshots.save(k, self.adapter, self.method, self.memory)
        self.save()

    def _kept_parameters(self) -> int:
        """Scalars of the adapter and of the method's state, as they are kept after a task."""
        adapter = [*self.adapter.learned().values(), *self.adapter.frozen().values()]
        kept = [*adapter, *self.method.state().tensors.values()]
        return sum(t.numel() for t in kept)

    def take_over(self, k: int, adapter: Path, task: Task) -> None:
        """Make an adapter from elsewhere the outcome of the k-th task, as if it had been trained here."""
        self.adapter.load(adapter)
        self.keep(k, task)

    def score(self, after: int, index: int, task: Task) -> Cell | None:
        """Score a task (0-based index) after some tasks were learned, unless the record has it already.

        Writing scores takes at most a twentieth of the time; `tell_row` writes those that are left.
        """
        if any((s.after, s.task) == (after, index) for s in self.record.scores):
            return None
        changed = other_source(task, self.record.tasks[index])
        if changed is not None and changed not in self.record.warnings:
            self.record.warnings.append(changed)
            self.progress.say(changed)
        cell = self.evaluator.score(
            task, after, lambda done, total: self.progress.scoring(task.name, done, total)
        )
        self.record.tasks[index].cut_test_inputs = cell.cut
        self.record.scores.append(cell.on_record(after, index))
        ended, took = self._saved
        self._unsaved = monotonic() - ended < 20 * took
        if not self._unsaved:
            self._write()
        self.progress.scored(after, task.name, cell)
        return cell

    def tell_row(self, after: int, tasks: Sequence[int] | None = None) -> None:
        """Report the row of the score matrix after so many tasks, or only these tasks of it (0-based)."""
        if self._unsaved:
            self._write()
        names = None if tasks is None else {self.record.tasks[i].name for i in tasks}
        row = [s for s in matrix_row(self.record, after) if names is None or s.task in names]
        self.progress.row(after, row)
        if self.tracking is not None:
            self.tracking.scores(after, row)

    def tell_saved(self) -> None:
        """Tell the listener that the folder holds something new; if it has a problem with it, say so."""
        if self.writes:
            problem = self.progress.saved(self.folder)
            if problem:
                self.progress.say(problem)

    def save(self) -> None:
        """Write the first process's record, for all; what it has written before is there for all after it."""
        changed_by_first(self.processes, self.record, self._write)
        self._unsaved = False

    def _write(self) -> None:
        began = monotonic()
        self.record.peak_memory_mb = max(self.record.peak_memory_mb or 0.0, peak_memory_mb())
        self.record.memory = {"examples": len(self.memory), "tasks": list(self.memory.tasks)}
        if self.writes:
            self.record.save(self.folder)
        self._unsaved, self._saved = False, (monotonic(), monotonic() - began)
