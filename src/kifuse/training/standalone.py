"""One callback for anybody's own `Trainer` or `SFTTrainer` script, month after month.

    method = RecurrentKIF()
    Trainer(..., callbacks=[method.callback(state_dir="memory")]).train()

Files under `state_dir`, the newest two of which are kept:

    after-<k>/state.json            what was learned, the method and its settings, hashes of the files
    after-<k>/method.safetensors    the method's state after k tasks
    after-<k>/memory.jsonl          rows kept of the k tasks, for a method that reads old data
    after-<k>/weights.safetensors   the trained tensors after k tasks

and beside each checkpoint of the Trainer: `checkpoint-<step>/kifuse/`, for going on in the middle of a task.
"""

from __future__ import annotations

import datetime
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from kifuse.errors import RunError
from kifuse.methods.base import Method, MethodState, Parameters, TaskInfo
from kifuse.training.batches import MemoryBatches
from kifuse.training.callback import MethodCallback
from kifuse.training.context import TrainerContext
from kifuse.training.finding import calling_trainer
from kifuse.training.guard import MAX_BAD_STEPS, Guard
from kifuse.training.probes import examples_of
from kifuse.training.refusals import refuse_method
from kifuse.training.rows import Row, RowMemory, fingerprint_of, first_row, given_rows, live
from kifuse.training.shards import Shards
from kifuse.training.state_folder import (
    STATE,
    StateFolder,
    after_folder,
    copied,
    describe,
    fingerprint,
    newest_state,
    read_state,
    refuse_other_method,
    refuse_unwritable,
    weights_of,
    write_state,
)

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
        memory: Rows of earlier tasks for a method that takes memory steps: a `MemoryBuffer`, or rows like
            those of the Trainer's processed `train_dataset` (for `SFTTrainer` unprocessed ones too). None
            lets the callback draw rows of each task at its end, and keep them in `state_dir`.
        state_dir: Folder that carries everything but the model from one script run to the next.
        name: The task's name; `task-<k>` if it is not given.
        share: Part of each task's rows to remember.
        per_task: Number of rows to remember instead of a share.
        max_bad_steps: Training stops at this many steps in a row whose loss or gradient is not finite.
        keep_weights: Whether `state_dir` holds the trained tensors too, for `restore`.
        checkpoint: Checkpoint folder that training goes on from, if it is not in the Trainer's `output_dir`.

    Raises:
        RunError: The method cannot work as a callback, or `memory` is given to one that reads no old data.
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
    ) -> None:
        super().__init__(method, index=0, name=name or "", max_bad_steps=max_bad_steps)
        refuse_method(method, memory)
        self.state_dir = None if state_dir is None else Path(state_dir)
        self.keep_weights = keep_weights
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.learned: list[dict[str, Any]] = []
        self._count = 0
        self._given = memory
        self._kept = RowMemory(share=share, per_task=per_task)
        self._asked_name = name
        self._rows: list[Row] = []
        self._drawn: list[Row] = []
        self._loader: Any = None
        self._finished: Any = None
        self._under_way = False
        self._before = MethodState()
        self._newest = 0

    @property
    def _draws(self) -> bool:
        """Whether rows of the task are kept at its end."""
        return self.method.old_data == "steps" and self._given is None

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Find the Trainer that is being made, and refuse what cannot work."""
        trainer = calling_trainer(self)
        if trainer is not None:
            self.attach(trainer)
        if model is not None and not any(p.requires_grad for p in model.parameters()):
            raise RunError(
                "the model has no trainable parameter; load an adapter that is to learn on with "
                "PeftModel.from_pretrained(model, folder, is_trainable=True)."
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take up what was learned before, then begin the task or go on in its middle."""
        trainer = calling_trainer(self)
        if trainer is not None and trainer is not self.trainer:
            self.attach(trainer)
        if self.trainer is None:
            raise RunError("the Trainer was not found: call callback.attach(trainer) before trainer.train().")
        if self.trainer is self._finished:
            raise RunError(
                "this Trainer has finished a task, and a second train() would carry its optimizer's moments "
                "into the next one; make a new Trainer for each task."
            )
        if state.is_hyper_param_search:
            raise RunError(
                "hyperparameter search would learn the task once a trial; search without a method."
            )
        if self.state_dir is not None and args.should_save:
            refuse_unwritable(self.state_dir)
        self._loader = kwargs.get("train_dataloader")
        params = Shards(model.named_parameters()).params
        middle = self._read_checkpoint(state) if state.global_step else None
        self._take_up(params, middle)
        self.name = self._asked_name or f"task-{self.index + 1}"
        self._refuse_name()
        self._rows = self._memory_rows()
        self.memory = self._batches(args) if self._rows else None
        if middle is not None:
            self._check_place(params, middle.values)
            training = MethodState(middle.tensors["training"], middle.values["training"])
            self.resume = (_method_state(middle, params.tensors[0].device), training)
        _log.info("task %d, %r: %d rows remembered", self.index + 1, self.name, len(self._rows))
        self.guard, self.losses, self.rates = Guard(self.guard.limit), [], []
        self._under_way = True
        super().on_train_begin(args, state, control, model=model, **kwargs)

    def _new_context(self, shards: Shards, task: TaskInfo) -> TrainerContext:
        collate = getattr(self._loader, "collate_fn", None)
        examples = examples_of(self._loader) if "examples" in self.method.needs else None
        return TrainerContext(
            self.trainer,
            shards,
            self.memory,
            task=task,
            method=self.method,
            guard=self.guard,
            collate=collate,
            examples=examples,
            kept=[live(row) for row in self._drawn],
        )

    def _take_up(self, params: Parameters, middle: StateFolder | None) -> None:
        """Find out which task this is, and load what the earlier ones left."""
        device = params.tensors[0].device
        newest = self._newest = newest_state(self.state_dir) if self.state_dir is not None else 0
        if middle is not None:
            self.index = int(middle.values["index"])
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
        if self.learned:
            self._check_weights(params)
        elif self._given is not None and len(self._given):
            self.index = 1  # rows of an earlier task mean that this is not the first

    def _load(self, folder: Path, device: torch.device) -> None:
        found = read_state(folder, without=frozenset({WEIGHTS}))
        refuse_other_method(folder / STATE, found.values, self.method)
        self.learned = list(found.values["learned"])
        if MEMORY in found.texts:
            self._kept.read(found.texts[MEMORY], folder / MEMORY)
        self.method.load_state(_method_state(found, device))

    def _check_weights(self, params: Parameters) -> None:
        last = self.learned[-1]
        found = fingerprint(params)
        if found == last["weights"]:
            return
        place = f"{self.state_dir}: " if self.state_dir is not None else ""
        known = next((task["name"] for task in self.learned if task["weights"] == found), None)
        what = f"those after task {known!r}" if known else "others"
        remedy = ""
        if self.state_dir is not None and self.keep_weights:
            remedy = " callback.restore(model) puts them back, out of that folder."
        raise RunError(
            f"{place}the state is that after task {last['name']!r} (weights {last['weights'][:12]}…), but "
            f"the model's trainable weights are {what} ({found[:12]}…). Load the adapter that "
            "trainer.save_model() wrote after that task; a checkpoint of the Trainer is older, from before "
            f"the method's last word.{remedy} To learn something else from here, name a new state_dir."
        )

    def _refuse_name(self) -> None:
        for task in self.learned:
            if task["name"] == self.name and task["number"] <= self.index:
                raise RunError(
                    f"task {self.name!r} was learned already, as number {task['number']} of {self.index}; "
                    "give this task another name, or none."
                )

    def _memory_rows(self) -> list[Row]:
        if self.method.old_data != "steps":
            return []
        sample = first_row(self._loader)
        if self._given is not None:
            rows = given_rows(self._given, self.trainer, sample)
        else:
            if sample is None:
                raise RunError(
                    "the training data is a stream, of which no rows can be drawn for the memory; use a data "
                    "set with a length, or give the rows of earlier tasks as memory=."
                )
            # drawn now, so that a row which cannot be kept is refused before the training, not after it
            self._drawn = self._kept.draw(self.name, self._loader.dataset, self.trainer.args.seed)
            rows = self._kept.rows()
        if self.index and not rows:
            raise RunError(
                f"memory: this is task {self.index + 1}, and the method takes memory steps, but there are no "
                "rows of earlier tasks; give some, or leave memory= out, so that the callback keeps them."
            )
        return rows

    def _batches(self, args: Any) -> MemoryBatches:
        processes = args.world_size
        size = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
        batches = MemoryBatches(self._rows, size, args.seed)  # type: ignore[arg-type]
        # all processes have as many rows of a batch
        batches.batch_size = max(1, batches.batch_size // processes) * processes
        return batches

    def _check_place(self, params: Parameters, values: dict[str, Any]) -> None:
        """Make sure that a checkpoint's weights and memory are those its state was written with."""
        wrong = "weights" if values["weights"] != fingerprint(params) else ""
        if values["memory"] != fingerprint_of(self._rows):
            wrong = "rows of earlier tasks (memory)"
        if values["name"] != self.name:
            wrong = f"task name ({values['name']!r} there, {self.name!r} here)"
        if wrong:
            folder = self._checkpoint(values["step"])
            raise RunError(
                f"{folder}: was written with other {wrong} than training would go on with; leave everything "
                "as it was, or begin the task anew, without resume_from_checkpoint."
            )

    def _checkpoint(self, step: int) -> Path:
        folder = self.checkpoint or Path(self.trainer.args.output_dir) / f"checkpoint-{step}"
        return folder / "kifuse"

    def _read_checkpoint(self, state: Any) -> StateFolder:
        folder = self._checkpoint(state.global_step)
        if not (folder / STATE).is_file():
            parent = folder.parent.parent
            others = [p.parent.parent.name for p in parent.glob(f"checkpoint-*/kifuse/{STATE}")]
            whole = max(others, key=lambda name: int(name.rpartition("-")[2]), default="")
            remedy = f"resume from {parent / whole}" if whole else "start without resume_from_checkpoint"
            raise RunError(
                f"{folder / STATE}: no such file. The Trainer goes on from step {state.global_step}, but the "
                "method's state of that step is not there: the checkpoint was made without this callback, or "
                f"the process ended while it was being written; {remedy}. If the checkpoint is not in the "
                "Trainer's output_dir, name it: callback(checkpoint=...)."
            )
        found = read_state(folder)
        refuse_other_method(folder / STATE, found.values, self.method)
        return found

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
        write_state(folder, StateFolder(values, {"method": method.tensors, "training": training.tensors}))

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
            self._refuse_other_writer(self.state_dir)
            self._write(self.state_dir, context)

    def _refuse_other_writer(self, state_dir: Path) -> None:
        newest = newest_state(state_dir)
        if newest != self._newest:
            raise RunError(
                f"{state_dir}: another script has written {after_folder(state_dir, newest).name} since this "
                "task began; its state is kept, and that of this task is not written. Train one task after "
                "another, or give each script its own state_dir."
            )

    def _write(self, state_dir: Path, context: TrainerContext) -> None:
        method = self.method.state()
        tensors = {"method": method.tensors}
        if self.keep_weights:
            tensors["weights"] = weights_of(context.params)
        texts = {MEMORY: self._kept.text()} if self._draws else {}
        values = {
            **describe(self.method),
            "state": method.values,
            "learned": self.learned,
            "events": context.events,
        }
        write_state(after_folder(state_dir, self._count), StateFolder(values, tensors, texts))
        for k in range(1, self._count - KEPT + 1):
            shutil.rmtree(after_folder(state_dir, k), ignore_errors=True)

    @torch.no_grad()
    def restore(self, model: Any) -> None:
        """Put the weights after the last finished task into a model, from `state_dir`.

        Args:
            model: A model with the same trainable parameters.

        Raises:
            RunError: There is no state, it was written without weights, or they are of another model.
        """
        newest = newest_state(self.state_dir) if self.state_dir is not None else 0
        if self.state_dir is None or not newest:
            raise RunError(f"state_dir: {self.state_dir} holds no finished task to restore.")
        folder = after_folder(self.state_dir, newest)
        kept = read_state(folder).tensors.get("weights")
        own = weights_of(Parameters(model.named_parameters()))
        if kept is None or {n: t.shape for n, t in kept.items()} != {n: t.shape for n, t in own.items()}:
            found = "no weights" if kept is None else f"weights of another model ({len(kept)} tensors)"
            raise RunError(f"{folder}: holds {found}, expected those of the {len(own)} trainable tensors.")
        for name, tensor in own.items():
            tensor.copy_(kept[name])


def _method_state(found: StateFolder, device: torch.device) -> MethodState:
    """What a method is given back, where the model is."""
    tensors = {name: tensor.to(device) for name, tensor in found.tensors.get("method", {}).items()}
    return MethodState(tensors, found.values["state"])
