"""A whole run: every task of a stream in turn, scored as the protocol asks, resumable, on record."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from kifuse.config import RunConfig, to_yaml
from kifuse.evaluation.metrics import needed_cells
from kifuse.methods.base import Method, OldData
from kifuse.models.adapters import add_adapter, load_adapter_weights, save_adapter
from kifuse.models.loading import Backbone, load_backbone, shrink_frozen
from kifuse.registry import build_method
from kifuse.reporting.record import RunRecord, ScoreRecord
from kifuse.storage import write_text
from kifuse.streams import open_stream, own_steps
from kifuse.tasks.encoding import Encoded, Encoder
from kifuse.tasks.memory import MemoryBuffer
from kifuse.tasks.task import TaskStream
from kifuse.training.environment import (
    is_main_process,
    peak_memory_mb,
    process_count,
)
from kifuse.training.evaluator import Evaluator
from kifuse.training.one_task import TaskTraining, train_task
from kifuse.training.opening import check_data, config_json, differences, new_record, now, open_run
from kifuse.training.progress import Plan, Progress
from kifuse.training.state import load_state, save_state


def run(config: RunConfig, *, progress: Progress | None = None, reuse: Path | None = None) -> RunRecord:
    """Run a configuration, or go on with it where it stopped.

    Args:
        config: What to run.
        progress: Told what is going on.
        reuse: Folder of another run that differs in its method at most. Where both methods train the first
            task plainly its outcome is the same, and is taken over instead of being computed again.

    Returns:
        The finished record, which is also in the run's folder.

    Raises:
        KifuseError: The configuration, the data, the model or the output folder is not as it must be.
    """
    progress = progress or Progress()
    folder = Path(config.output)
    record = open_run(folder, config)
    if record is not None and record.status == "finished":
        progress.say(f"{folder} holds this run already, finished; nothing to do")
        return record
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    stream = open_stream(config.data, config.training.seed)
    if record is not None:
        check_data(folder, record, stream)
    method = build_method(config.method.name, config.method.settings)
    backbone = load_backbone(
        config.model.name,
        precision=config.model.precision,
        trust_remote_code=config.model.trust_remote_code,
        say=progress.say,
    )
    if record is None:
        record = new_record(config, stream, method, backbone)
    return _Run(config, folder, record, stream, method, backbone, progress).go(reuse)


REMEMBERED: tuple[OldData, ...] = ("mixed", "steps")
"""Ways of meeting old data that need a memory buffer."""


class _Run:
    """One run in progress."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        record: RunRecord,
        stream: TaskStream,
        method: Method,
        backbone: Backbone,
        progress: Progress,
    ) -> None:
        self.config, self.folder, self.record = config, folder, record
        self.tasks, self.method, self.backbone, self.progress = stream.tasks, method, backbone, progress
        self.writes = is_main_process()
        self.joint = method.old_data == "all"
        self.encoder = Encoder(
            backbone.tokenizer,
            encoder_decoder=backbone.encoder_decoder,
            max_input=config.data.max_input,
            max_target=config.data.max_target,
            chat_template=config.data.chat_template,
        )
        seed = config.training.seed
        self.model = add_adapter(
            backbone.model, config.model.adapter, encoder_decoder=backbone.encoder_decoder, seed=seed
        )
        shrink_frozen(self.model, backbone.precision)
        self.memory = MemoryBuffer(
            share=config.memory.share,
            per_task=config.memory.per_task,
            selection=config.memory.selection,
            seed=seed,
        )
        limit = config.evaluation.max_new_tokens or config.data.max_target
        self.evaluator = Evaluator(
            self.model,
            backbone,
            self.encoder,
            folder=folder / "predictions" if self.writes else None,
            max_new_tokens=limit,
            batch_tokens=config.evaluation.batch_tokens,
        )
        self.cells = self._cells()

    def _cells(self) -> list[tuple[int, int]]:
        """The cells to score: for joint training there is no moment but the end."""
        count = len(self.tasks)
        if self.joint:
            return [(count, i) for i in range(count)]
        return needed_cells(count, full=self.config.evaluation.full_matrix)

    def go(self, reuse: Path | None) -> RunRecord:
        """Do what is not done yet."""
        if self.writes:
            write_text(self.folder / "config.yaml", to_yaml(self.config))
        self._save()
        if reuse is not None:
            self._take_over_first_task(reuse)
        self._announce()
        start = self._restore()
        for k in range(start, len(self.tasks) + 1):
            if k > start or not self._learned(k):
                self._learn(k)
            self._score(k)
        self.record.status = "finished"
        self.record.finished = now()
        self._save()
        if self.writes:
            shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        self.progress.finish()
        return self.record

    def _announce(self) -> None:
        """Say what is odd in the data, and how much there is to do."""
        for warning in self.record.warnings:
            self.progress.say(f"note: {warning}")
        if self.record.overlaps:
            shared = sum(overlap["count"] for overlap in self.record.overlaps)
            self.progress.say(
                f"note: {shared} inputs stand in two splits or tasks; record.json lists them under overlaps"
            )
        training = self.config.training
        sizes = [len(t.train) for t in self.tasks]
        trainings = [sum(sizes)] if self.joint else sizes
        steps = [own_steps(size, training.epochs, training.batch_size) for size in trainings]
        tests = [len(self.tasks[i].test) for _, i in self.cells]
        done_steps = sum(t.train_steps or 0 for t in self.record.tasks)
        self.progress.begin(
            self.config.method.name,
            Plan(sum(steps), sum(tests)),
            Plan(done_steps, sum(s.n for s in self.record.scores)),
        )

    def _learned(self, k: int) -> bool:
        """Whether the model as it was after k tasks is on disk."""
        if k == 0:
            return True
        if self.joint and k < len(self.tasks):
            return True
        return (
            self.record.tasks[k - 1].train_steps is not None
            and (self._adapter(k) / "adapter_config.json").is_file()
        )

    def _restore(self) -> int:
        """Load the last task that was learned, and say how many were."""
        if self.joint:
            k = len(self.tasks) if self._learned(len(self.tasks)) else 0
        else:
            k = max(i for i in range(len(self.tasks) + 1) if all(self._learned(j) for j in range(i + 1)))
        if k:
            load_adapter_weights(self.model, self._adapter(k))
            self.memory = load_state(self._state(k), self.method)
            self.progress.say(f"going on after task {k} of {len(self.tasks)}")
        return k

    def _learn(self, k: int) -> None:
        """Train on the k-th task (1-based), then keep adapter, state, memory and record, in this order."""
        if k == 0 or (self.joint and k < len(self.tasks)):
            return
        task, entry = self.tasks[k - 1], self.record.tasks[k - 1]
        examples = [e for t in self.tasks for e in t.train] if self.joint else list(task.train)
        current = self.encoder.encode_many(examples)
        old = self.encoder.encode_many(self.memory.examples()) if self.method.old_data in REMEMBERED else []
        entry.cut_inputs = sum(e.cut for e in current)
        if entry.cut_inputs:
            self.progress.say(
                f"{task.name}: {entry.cut_inputs} of {len(current)} training inputs lost their middle to fit "
                f"{self.config.data.max_input} tokens"
            )
        done = self._train(k, current, old)
        for key, value in {
            "train_steps": done.steps,
            "examples_seen": done.examples_seen,
            "replayed_examples": done.replayed,
            "extra_forward_backward": done.extra_passes,
            "seconds_train": done.seconds,
            "loss": [list(pair) for pair in done.losses],
            "events": done.events,
            "per_tensor": done.per_tensor,
        }.items():
            setattr(entry, key, value)
        if self.method.old_data in REMEMBERED:
            self.memory.add(task)
        if self.writes:
            save_adapter(self.model, self._adapter(k))
            save_state(self._state(k), self.method, self.memory)
        self._save()

    def _train(self, k: int, current: list[Encoded], old: list[Encoded]) -> TaskTraining:
        name = "all tasks" if self.joint else self.tasks[k - 1].name
        return train_task(
            self.model,
            self.backbone,
            self.method,
            self.config.training,
            index=k - 1,
            name=name,
            current=current,
            mixed=old if self.method.old_data == "mixed" else [],
            memory=old if self.method.old_data == "steps" else [],
            folder=self.folder / "checkpoint",
            listener=lambda step, steps, loss: self.progress.step(name, step, steps, loss),
        )

    def _score(self, k: int) -> None:
        """Score the cells of row k that are not known yet."""
        known = {(s.after, s.task) for s in self.record.scores}
        for after, i in self.cells:
            if after != k or (after, i) in known:
                continue
            task = self.tasks[i]
            cell = self.evaluator.score(
                task, after, lambda done, total, name=task.name: self.progress.scoring(name, done, total)
            )
            self.record.tasks[i].cut_test_inputs = cell.cut
            self.record.scores.append(
                ScoreRecord(
                    after=after, task=i, score=cell.score, valid=cell.valid, n=cell.n, seconds=cell.seconds
                )
            )
            self._save()
            self.progress.scored(after, task.name, cell)

    def _take_over_first_task(self, other: Path) -> None:
        """Use another run's first task where it must come out the same."""
        if self.record.tasks[0].train_steps is not None or not self.method.plain_first_task or self.joint:
            return
        if process_count() > 1:
            return  # the other processes would look for the adapter before it is there
        theirs = RunRecord.load(other)
        other_keys = [
            d for d in differences(theirs.config, config_json(self.config)) if not d.startswith("method.")
        ]
        source = other / "adapters" / "after-1"
        their_method = build_method(
            theirs.method.name, {k: v for k, v in theirs.config["method"].items() if k != "name"}
        )
        plain = their_method.plain_first_task and their_method.old_data != "all"
        if other_keys or not plain or not source.is_dir() or theirs.tasks[0].train_steps is None:
            return
        first = theirs.tasks[0].model_copy(deep=True)
        self.record.tasks[0] = first
        self.record.scores = [
            s.model_copy() for s in theirs.scores if s.after <= 1 and (s.after, s.task) in self.cells
        ]
        self.record.notes.append(
            f"the first task's training was taken over from the run of {theirs.method.name}"
        )
        if self.method.old_data in REMEMBERED:
            self.memory.add(self.tasks[0])
        if self.writes:
            for part in ("adapters/after-1", "predictions/after-0", "predictions/after-1"):
                if (other / part).is_dir():
                    shutil.copytree(other / part, self.folder / part, dirs_exist_ok=True)
            save_state(self._state(1), self.method, self.memory)
        self._save()

    def _adapter(self, k: int) -> Path:
        return self.folder / "adapters" / f"after-{k}"

    def _state(self, k: int) -> Path:
        return self.folder / "state" / f"after-{k}"

    def _save(self) -> None:
        self.record.peak_memory_mb = max(self.record.peak_memory_mb or 0.0, peak_memory_mb())
        self.record.memory = {"examples": len(self.memory), "tasks": list(self.memory.tasks)}
        if self.writes:
            self.record.save(self.folder)
