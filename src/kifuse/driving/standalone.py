"""One callback for anybody's own `Trainer` or `SFTTrainer` script, month after month.

    method = RecurrentKIF()
    Trainer(..., callbacks=[method.callback(state_dir="memory")]).train()

Files under `state_dir`; only the newest two states are kept:

    after-<k>/state.json            what was learned, the method and its settings, hashes of the files
    after-<k>/method.safetensors    the method's state after k tasks
    after-<k>/memory.jsonl          rows kept of the k tasks, for a method that reads old data
    after-<k>/weights.safetensors   the trained tensors after k tasks
    after-<k>/adapter               instead of these tensors, for a method that brings its own adapter

Beside each checkpoint of the Trainer, `checkpoint-<step>/kifuse/` serves to go on in the middle of a task.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from kifuse.driving.brought_adapter import BroughtAdapter
from kifuse.driving.carried_state import CarryingCallback, method_state
from kifuse.driving.example_gradients import examples_of
from kifuse.driving.find_trainer import calling_trainer
from kifuse.driving.finite_guard import MAX_BAD_STEPS, Guard
from kifuse.driving.mixed_rows import Mixing
from kifuse.driving.refusals import refuse_frozen, refuse_method, refuse_second, refuse_training
from kifuse.driving.row_memory import Row, fingerprint_of, live
from kifuse.driving.state_dir import hold, let_go, refuse_lost
from kifuse.driving.state_folder import (
    StateFolder,
    describe,
    fingerprint,
    put_weights,
    refuse_other_weights,
    refuse_other_writer,
    refuse_unwritable,
    weights_of,
    write_state,
)
from kifuse.driving.trainer_checkpoint import Resuming, check_place
from kifuse.driving.trial_batch import try_out
from kifuse.driving.zero import shards_of
from kifuse.methods.base import Method, MethodState
from kifuse.models.names import for_state

_log = logging.getLogger(__name__)


class StandaloneCallback(CarryingCallback):
    """Drives a method inside a Trainer that kifuse did not make; see `Method.callback`.

    The callback finds its Trainer by itself; `attach(trainer)` names it explicitly. Several Trainers in a row
    may be given the same callback: each is one task.

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
        adapter: Settings as in the section `model.adapter` of a configuration, for a method that brings an
            adapter of its own. The callback puts it on the base model that the Trainer is given.

    Raises:
        RunError: The method cannot work as a callback, or is given an argument that it does not take.
        ConfigError: A setting of the adapter is wrong.
    """

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
        refuse_method(method, memory, adapter, keep_weights=keep_weights)
        super().__init__(
            method,
            memory=memory,
            state_dir=state_dir,
            name=name,
            share=share,
            per_task=per_task,
            max_bad_steps=max_bad_steps,
            keep_weights=keep_weights,
            checkpoint=checkpoint,
        )
        self._first, self._resuming = first, Resuming()
        self._mixing = Mixing(self._rows_to_mix) if method.old_data == "mixed" else None
        if method.adapter is not None:
            self._brought = BroughtAdapter(method, adapter, self.state_dir, self._place)
        self._loader: Any = None
        self._finished: Any = None
        self._taken_up_for: Any = None

    def attach(self, trainer: Any) -> None:
        """Give the callback its Trainer; see `MethodCallback.attach`."""
        super().attach(trainer)
        if self._brought is not None:
            self._brought.watch(trainer)  # first: the others wrap it and find the checkpoint
        if self._mixing is not None:
            self._mixing.watch(trainer)
        if self.checkpoint is None:
            self._resuming.watch(trainer)

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Find the Trainer that is being made, and refuse what cannot work."""
        trainer = calling_trainer(self)
        if trainer is not None:
            self.attach(trainer)
            refuse_second(trainer, self)
        refuse_frozen(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Load what was learned before, then begin the task or go on in its middle."""
        trainer = calling_trainer(self)
        if trainer is not None and trainer is not self.trainer:
            self.attach(trainer)
        refuse_second(self.trainer, self)
        refuse_training(self.trainer, state, finished=self._finished)
        if self._brought is not None:
            self._brought.check(model)
        if self.state_dir is not None and args.should_save:
            refuse_unwritable(self.state_dir)
            hold(self.state_dir)
        self._loader = kwargs.get("train_dataloader")
        shards = shards_of(self.trainer, for_state(model))
        params = shards.params
        self._names = params.names
        dataset = getattr(self._loader, "dataset", None)
        if self._taken_up_for is not self.trainer:
            self._take_up_task(dataset, state.global_step, params.tensors[0].device)
        self._taken_up_for = None
        self._take_base(model)
        if (middle := self._middle) is not None:
            place, memory = self._checkpoint(middle.values["step"]), fingerprint_of(self._rows)
            if self._brought is not None:
                with shards.whole():
                    put_weights(middle.tensors["weights"], params)
            check_place(place, middle.values, fingerprint(params), memory, self.name)
            training = MethodState(middle.tensors["training"], middle.values["training"])
            self.resume = (method_state(middle, params.tensors[0].device), training)
        elif self.learned and self._brought is None:  # a brought adapter was loaded from the state
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
        """The rows of earlier tasks to mix in, for a Trainer that is about to make its loader."""
        self.attach(trainer)
        trained = [(name, p) for name, p in for_state(trainer.model) if p.requires_grad]
        self._names, device = [name for name, _ in trained], trained[0][1].device
        self._take_up_task(own, step, device)
        self._taken_up_for = trainer
        return self._rows

    def _place(self, trainer: Any, resume_from: Any) -> Path | None:
        """The state beside the checkpoint that a Trainer is asked to resume from; None if it begins."""
        found = get_last_checkpoint(trainer.args.output_dir) if resume_from is True else resume_from
        return Path(self.checkpoint or found) / "kifuse" if found else None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the method's state beside the Trainer's checkpoint."""
        context, method = self.running(), self.method.state()
        training = context.state()  # on every process, because pieces of it may have to be put together
        if not args.should_save:
            return
        values = {
            **describe(self.method),
            "index": self.index,
            "name": self.name,
            "step": state.global_step,
            "weights": fingerprint(context.params),
            "memory": fingerprint_of(self._rows),
            "data": self._data,
            "base": self._base,
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
        context.step_log.reaches_integrations = False
        # seeded again, so that a task ended from its last checkpoint ends alike: no batch restores the state
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(args.seed)
            super().on_train_end(args, state, control, **kwargs)
        if self._brought is not None:
            self._brought.end_task()
        self._resuming.release(self.trainer)  # first: it wraps what the mixing has wrapped
        if self._mixing is not None:
            self._mixing.release(self.trainer)
        if self._draws:
            self._kept.keep(self.name, self._drawn)
        done = {
            "number": self.index + 1,
            "name": self.name,
            "steps": state.global_step,
            "data": self._data,
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
            self.trainer.accelerator.wait_for_everyone()  # each process reads the adapter for the next task
