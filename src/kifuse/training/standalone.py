"""One callback for anybody's own `Trainer` or `SFTTrainer` script, month after month.

    method = RecurrentKIF()
    Trainer(..., callbacks=[method.callback(state_dir="memory")]).train()

Files under `state_dir`, the newest two of which are kept:

    after-<k>/state.json            what was learned, the method and its settings, hashes of the files
    after-<k>/method.safetensors    the method's state after k tasks
    after-<k>/memory.jsonl          rows kept of the k tasks, for a method that reads old data
    after-<k>/weights.safetensors   the trained tensors after k tasks
    after-<k>/adapter               instead of them: the adapter, for a method that brings one of its own

and beside each checkpoint of the Trainer: `checkpoint-<step>/kifuse/`, for going on in the middle of a task.
"""

from __future__ import annotations

import datetime
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from kifuse.errors import RunError
from kifuse.methods.base import Method, MethodState
from kifuse.training.batches import MemoryBatches
from kifuse.training.brought_adapter import ADAPTER, BroughtAdapter
from kifuse.training.callback import MethodCallback
from kifuse.training.context import TrainerContext
from kifuse.training.finding import calling_trainer
from kifuse.training.guard import MAX_BAD_STEPS, Guard
from kifuse.training.mixing import Mixing
from kifuse.training.probes import examples_of
from kifuse.training.refusals import refuse_frozen, refuse_learned, refuse_method, refuse_training
from kifuse.training.rows import (
    Row,
    RowMemory,
    fingerprint_of,
    first_row,
    given_rows,
    live,
    with_columns_of,
)
from kifuse.training.shards import Shards
from kifuse.training.state_dir import for_adapter, hold, let_go, refuse_lost
from kifuse.training.state_folder import (
    STATE,
    StateFolder,
    after_folder,
    copied,
    describe,
    fingerprint,
    newest_state,
    put_weights,
    read_state,
    refuse_other_method,
    refuse_other_weights,
    refuse_other_writer,
    refuse_unwritable,
    restore_weights,
    weights_of,
    write_state,
)
from kifuse.training.trainer_checkpoint import Resuming, check_place, read_checkpoint
from kifuse.training.trial import try_out

KEPT = 2
"""How many states of a `state_dir` are kept: the newest, and the one before it."""
MEMORY, WEIGHTS = "memory.jsonl", "weights.safetensors"

_log = logging.getLogger(__name__)


class StandaloneCallback(MethodCallback):
    """Drives a method inside a Trainer that kifuse did not make; see `Method.callback`.

    The Trainer is found by itself; `attach(trainer)` says it explicitly. Several Trainers in a row may be
    given the same callback: each is one task.

    Args:
        method: The method.
        memory: Rows of earlier tasks for a method that reads old data: a `MemoryBuffer`, or rows like
            those of the Trainer's processed `train_dataset` (for `SFTTrainer` unprocessed ones too). None
            lets the callback draw rows of each task at its end, and keep them in `state_dir`.
        state_dir: Folder that carries everything but the model from one script run to the next.
        name: The task's name; `task-<k>` if it is not given.
        share: Part of each task's rows to remember.
        per_task: Number of rows to remember instead of a share.
        max_bad_steps: Training stops at this many steps in a row whose loss or gradient is not finite.
        keep_weights: Whether `state_dir` holds the trained tensors too, for `restore`.
        checkpoint: Checkpoint folder that training goes on from, if it is not in the Trainer's `output_dir`.
        first: Whether this is the first task even where the adapter was trained before.
        adapter: For a method that brings an adapter of its own, which the callback puts on the base model
            that the Trainer is given: settings as in the section `model.adapter` of a configuration.

    Raises:
        RunError: The method cannot work as a callback, or is given what it does not take.
        ConfigError: A setting of the adapter is wrong.
    """

    by_engine = False

    def __init__(
        self,
        method: Method,
        *,
        memory: Any = None,
        state_dir: str | os.PathLike[str] | None = None,
        name: str | None = None,
        share: float = 0.02,
        per_task: int | None = None,
        max_bad_steps: int = MAX_BAD_STEPS,
        keep_weights: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        first: bool = False,
        adapter: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(method, index=0, name=name or "", max_bad_steps=max_bad_steps)
        refuse_method(method, memory, adapter, keep_weights=keep_weights)
        self.state_dir = None if state_dir is None else Path(state_dir)
        self.keep_weights = keep_weights
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.learned: list[dict[str, Any]] = []
        self._first, self._names, self._resuming = first, [], Resuming()
        self._count, self._given = 0, memory
        self._kept = RowMemory(share=share, per_task=per_task)
        self._asked_name = name
        self._rows: list[Row] = []
        self._drawn: list[Row] = []
        self._mixing = Mixing(self._rows_to_mix) if method.old_data == "mixed" else None
        brings = method.adapter is not None
        self._brought = BroughtAdapter(method, adapter, self.state_dir, self._place) if brings else None
        self._middle: StateFolder | None = None
        self._loader: Any = None
        self._finished: Any = None
        self._taken_up_for: Any = None
        self._under_way, self._newest = False, 0
        self._before = MethodState()

    @property
    def _draws(self) -> bool:
        """Whether rows of the task are kept at its end."""
        return self.method.old_data in ("mixed", "steps") and self._given is None

    def attach(self, trainer: Any) -> None:
        """Give the callback its Trainer; see `MethodCallback.attach`."""
        super().attach(trainer)
        if self._brought is not None:
            self._brought.watch(trainer)  # first, so that the others have found the checkpoint before it
        if self._mixing is not None:
            self._mixing.watch(trainer)
        if self.checkpoint is None:
            self._resuming.watch(trainer)

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Find the Trainer that is being made, and refuse what cannot work."""
        trainer = calling_trainer(self)
        if trainer is not None:
            self.attach(trainer)
        refuse_frozen(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take up what was learned before, then begin the task or go on in its middle."""
        trainer = calling_trainer(self)
        if trainer is not None and trainer is not self.trainer:
            self.attach(trainer)
        refuse_training(self.trainer, state, finished=self._finished)
        if self._brought is not None:
            self._brought.check(model)
        if self.state_dir is not None and args.should_save:
            refuse_unwritable(self.state_dir)
            hold(self.state_dir)
        self._loader = kwargs.get("train_dataloader")
        params = Shards(model.named_parameters()).params
        self._names = params.names
        dataset = getattr(self._loader, "dataset", None)
        if self._taken_up_for is not self.trainer:
            self._take_up_task(dataset, state.global_step, params.tensors[0].device)
        self._taken_up_for = None
        if (middle := self._middle) is not None:
            place, memory = self._checkpoint(middle.values["step"]), fingerprint_of(self._rows)
            if self._brought is not None:
                put_weights(middle.tensors["weights"], params)
            check_place(place, middle.values, fingerprint(params), memory, self.name)
            training = MethodState(middle.tensors["training"], middle.values["training"])
            self.resume = (_method_state(middle, params.tensors[0].device), training)
        elif self.learned and self._brought is None:  # which was taken from the state itself
            refuse_other_weights(fingerprint(params), self.learned, self.state_dir, kept=self.keep_weights)
        elif self.state_dir is not None and not self._first and self._given is None and not self._newest:
            refuse_lost(self.state_dir, model, params)
        if self._mixing is not None:
            self._mixing.check(dataset, self._rows)
        else:
            self.memory = self._batches(args) if self._rows else None
        _log.info("task %d, %r: %d rows remembered", self.index + 1, self.name, len(self._rows))
        self.guard, self.losses, self.rates = Guard(self.guard.limit), [], []
        self._under_way = True
        super().on_train_begin(args, state, control, model=model, **kwargs)
        try_out(self.running(), dataset)

    def _examples(self) -> dict[str, Any]:
        return {
            "collate": getattr(self._loader, "collate_fn", None),
            "examples": examples_of(self._loader) if "examples" in self.method.needs else None,
            "kept": [live(row) for row in self._drawn],
        }

    def _rows_to_mix(self, trainer: Any, own: Any, step: int) -> list[Row]:
        """The rows of earlier tasks that a Trainer which is about to make its loader trains on too."""
        self.attach(trainer)
        trained = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
        self._names, device = [name for name, _ in trained], trained[0][1].device
        self._take_up_task(own, step, device)
        self._taken_up_for = trainer
        return self._rows

    def _take_up_task(self, dataset: Any, step: int, device: torch.device) -> None:
        """Find out which task this is, what the earlier ones left, and the rows that are remembered.

        Args:
            dataset: The task's own rows.
            step: Step that training goes on from; 0 where it starts.
            device: Of the trained tensors.
        """
        self._middle = read_checkpoint(self._checkpoint(step), step, self.method) if step else None
        self._take_up(device)
        self.name = self._asked_name or f"task-{self.index + 1}"
        refuse_learned(self.name, self.index, self.learned)
        self._rows = self._memory_rows(dataset)

    def _take_up(self, device: torch.device) -> None:
        """Find out which task this is, and load what the earlier ones left."""
        newest = self._newest = newest_state(self.state_dir) if self.state_dir is not None else 0
        if self._middle is not None:
            self.index = int(self._middle.values["index"])
            if self.state_dir is not None and self.index:
                self._load(after_folder(self.state_dir, self.index), device)
            return
        # in a later Trainer of the same process everything is here already, unless a training was cut short
        if self.state_dir is not None and newest and (self._under_way or not self.learned):
            self._load(after_folder(self.state_dir, newest), device)
            self._count = newest
        elif self._under_way:
            self.method.load_state(copied(self._before, device))
        if not newest:
            self._before = copied(self.method.state(), torch.device("cpu"))
        self.index = self._count
        if not self.learned and self._given is not None and len(self._given):
            self.index = 1  # rows of an earlier task mean that this is not the first

    def _load(self, folder: Path, device: torch.device) -> None:
        found = for_adapter(read_state(folder, without=frozenset({WEIGHTS})), self._names)
        refuse_other_method(folder / STATE, found.values, self.method)
        self.learned = list(found.values["learned"])
        if MEMORY in found.texts:
            self._kept.read(found.texts[MEMORY], folder / MEMORY)
        self.method.load_state(_method_state(found, device))

    def _memory_rows(self, dataset: Any) -> list[Row]:
        if self.method.old_data not in ("mixed", "steps"):
            return []
        sample = first_row(dataset)
        if self._given is not None:
            rows = given_rows(self._given, self.trainer, sample)
        else:
            if sample is None:
                raise RunError(
                    "the training data is a stream, of which no rows can be drawn for the memory; use a data "
                    "set with a length, or give the rows of earlier tasks as memory=."
                )
            # drawn now, so that a row which cannot be kept is refused before the training, not after it
            self._drawn = self._kept.draw(self.name, dataset, self.trainer.args.seed)
            rows = self._kept.rows()
            if self._mixing is not None:
                rows = with_columns_of(sample, rows)
        if self.index and not rows:
            raise RunError(
                f"memory: this is task {self.index + 1}, and the method reads old data, but there are no "
                "rows of earlier tasks; give some, or leave memory= out, so that the callback keeps them."
            )
        return rows

    def _batches(self, args: Any) -> MemoryBatches:
        processes = args.world_size
        batches = MemoryBatches(self._rows, self._batch_size(args), args.seed)  # type: ignore[arg-type]
        # all processes have as many rows of a batch
        batches.batch_size = max(1, batches.batch_size // processes) * processes
        return batches

    def _place(self, trainer: Any, resume_from: Any) -> Path | None:
        """The state beside the checkpoint that a Trainer is asked to resume from; None: it begins."""
        found = get_last_checkpoint(trainer.args.output_dir) if resume_from is True else resume_from
        return Path(self.checkpoint or found) / "kifuse" if found else None

    def _checkpoint(self, step: int) -> Path:
        resumed = self._mixing.checkpoint if self._mixing is not None else None
        folder = self.checkpoint or resumed or Path(self.trainer.args.output_dir) / f"checkpoint-{step}"
        return folder / "kifuse"

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the method's state beside the Trainer's checkpoint."""
        context, method = self.running(), self.method.state()
        training = context.state()  # on every process, since some of it may have to be put together
        if not args.should_save:
            return
        values = {
            **describe(self.method),
            "index": self.index,
            "name": self.name,
            "step": state.global_step,
            "weights": fingerprint(context.params),
            "memory": fingerprint_of(self._rows),
            "state": method.values,
            "training": training.values,
        }
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "kifuse"
        tensors = {"method": method.tensors, "training": training.tensors}
        if self._brought is not None:
            tensors["weights"] = weights_of(context.params)
        write_state(folder, StateFolder(values, tensors))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the task, keep rows of it, and write what it left."""
        context = self.running()
        device = context.params.tensors[0].device
        # the Trainer's integrations have ended by now; some would begin another run for one more line
        context.logs_reach_integrations = False
        # drawn anew, so that a task ended from its last checkpoint ends alike: no batch brings the state back
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(args.seed)
            super().on_train_end(args, state, control, **kwargs)
        if self._brought is not None:
            self._brought.end_task()
        self._resuming.release(self.trainer)  # it was put around what the mixing had put around
        if self._mixing is not None:
            self._mixing.release(self.trainer)
        if self._draws:
            self._kept.keep(self.name, self._drawn)
        done = {
            "number": self.index + 1,
            "name": self.name,
            "steps": state.global_step,
            "weights": fingerprint(context.params),
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        self.learned = [*(task for task in self.learned if task["number"] <= self.index), done]
        self._count = self.index + 1
        self._finished, self._under_way = self.trainer, False
        if self.state_dir is not None and args.should_save:
            refuse_other_writer(self.state_dir, self._newest)
            self._write(self.state_dir, context)
            let_go(self.state_dir)
        if self._brought is not None:
            self.trainer.accelerator.wait_for_everyone()  # each process reads it for the next task

    def _write(self, state_dir: Path, context: TrainerContext) -> None:
        method = self.method.state()
        tensors, folders = {"method": method.tensors}, {}
        if self._brought is not None:
            folders[ADAPTER] = self._brought.save
        elif self.keep_weights:
            tensors["weights"] = weights_of(context.params)
        texts = {MEMORY: self._kept.text()} if self._draws else {}
        values = {
            **describe(self.method),
            "state": method.values,
            "learned": self.learned,
            "events": context.events,
        }
        if self._brought is not None:
            values[ADAPTER] = self._brought.described()
        write_state(after_folder(state_dir, self._count), StateFolder(values, tensors, texts, folders))
        for k in range(1, self._count - KEPT + 1):
            shutil.rmtree(after_folder(state_dir, k), ignore_errors=True)

    def restore(self, model: Any) -> None:
        """Put the weights after the last finished task into a model, from `state_dir`.

        Args:
            model: A model with the same trainable parameters.

        Raises:
            RunError: There is no state, it was written without weights, or they are of another model; or the
                method brings an adapter of its own.
        """
        if self._brought is not None:
            raise RunError("give the Trainer the base model: the callback puts on it what was learned last.")
        restore_weights(self.state_dir, model)


def _method_state(found: StateFolder, device: torch.device) -> MethodState:
    """What a method is given back, where the model is."""
    tensors = {name: tensor.to(device) for name, tensor in found.tensors.get("method", {}).items()}
    return MethodState(tensors, found.values["state"])
