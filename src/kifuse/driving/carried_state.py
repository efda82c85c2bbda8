"""What a stand-alone callback carries from task to task: the method's state, its memory, what was learned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kifuse.driving.base_model import base_of, refuse_other_base
from kifuse.driving.batches import MemoryBatches
from kifuse.driving.brought_adapter import ADAPTER, BroughtAdapter
from kifuse.driving.callback import MethodCallback
from kifuse.driving.context import TrainerContext
from kifuse.driving.mixed_rows import Mixing
from kifuse.driving.model_at_rest import same_numbers
from kifuse.driving.refusals import refuse_learned, refuse_twice
from kifuse.driving.row_memory import Row, RowMemory, first_row, given_rows, known_by, with_columns_of
from kifuse.driving.state_dir import for_adapter
from kifuse.driving.state_folder import (
    STATE,
    StateFolder,
    after_folder,
    copied,
    describe,
    newest_state,
    read_state,
    refuse_other_method,
    restore_weights,
    sealed_values,
    weights_of,
    write_state,
)
from kifuse.driving.trainer_checkpoint import read_checkpoint, refuse_other_task
from kifuse.errors import RunError
from kifuse.methods.base import Method, MethodState

KEPT = 2
"""How many states of a `state_dir` are kept: the newest, and the one before it."""
MEMORY, WEIGHTS = "memory.jsonl", "weights.safetensors"


class CarryingCallback(MethodCallback):
    """Finds out which task is trained, loads what the earlier tasks left, and writes what this one leaves.

    Args:
        method: The method.
        memory: See `kifuse.driving.standalone.StandaloneCallback`, also for the other arguments.
        state_dir: Folder of states.
        name: The task's name.
        share: Part of each task's rows to remember.
        per_task: Number of rows to remember instead.
        max_bad_steps: See `MethodCallback`.
        keep_weights: Whether the trained tensors are kept too.
        checkpoint: Folder to go on from.
    """

    def __init__(
        self,
        method: Method,
        *,
        memory: Any,
        state_dir: str | os.PathLike[str] | None,
        name: str | None,
        share: float,
        per_task: int | None,
        max_bad_steps: int,
        keep_weights: bool,
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        super().__init__(method, index=0, name=name or "", max_bad_steps=max_bad_steps)
        self.state_dir = None if state_dir is None else Path(state_dir).expanduser()
        self.keep_weights = keep_weights
        self.checkpoint = None if checkpoint is None else Path(checkpoint).expanduser()
        self.learned: list[dict[str, Any]] = []
        self._asked_name, self._given, self._count = name, memory, 0
        self._names: Sequence[str] = ()
        self._kept = RowMemory(share=share, per_task=per_task)
        self._rows: list[Row] = []
        self._drawn: list[Row] = []
        self._mixing: Mixing | None = None
        self._brought: BroughtAdapter | None = None
        self._middle: StateFolder | None = None
        self._under_way, self._newest = False, 0
        self._before = MethodState()
        self._base: dict[str, str] | None = None
        """The base model of the earlier tasks, from `base_of`."""
        self._data: str | None = None
        """The hash of the task's own rows, from `known_by`."""

    @property
    def _draws(self) -> bool:
        """Whether rows of the task are kept at its end."""
        return self.method.old_data in ("mixed", "steps") and self._given is None

    def _take_up_task(self, dataset: Any, step: int, device: torch.device) -> None:
        """Find out which task this is, what the earlier ones left, and the rows that are remembered.

        Args:
            dataset: The task's own rows.
            step: Step that training goes on from; 0 where it starts.
            device: Device of the trained tensors.
        """
        place = self._checkpoint(step)
        self._middle = read_checkpoint(place, step, self.method) if step else None
        self._take_up(device)
        self.name = self._asked_name or f"task-{self.index + 1}"
        refuse_learned(self.name, self.index, self.learned)
        with same_numbers(device):
            self._data = known_by(dataset)
        self._refuse_other_data(place)
        self._rows = self._memory_rows(dataset)

    def _refuse_other_data(self, place: Path) -> None:
        """Refuse to go on with a checkpoint of another task, or to learn the last task again by accident.

        Args:
            place: The state beside the checkpoint that training goes on from.

        Raises:
            RunError: One of the two is the case.
        """
        finished = self._finished_tasks()
        if self._middle is not None:
            kept = self._middle.values.get("data")
            refuse_other_task(
                place, self.index, self._data, kept, finished, named=self._asked_name is not None
            )
        elif self._asked_name is None and self.state_dir is not None:
            refuse_twice(self.state_dir, self._data, finished)

    def _finished_tasks(self) -> list[dict[str, Any]]:
        """All tasks that were learned when the newest state was written."""
        if self.state_dir is None or not self._newest:
            return self.learned
        return list(sealed_values(after_folder(self.state_dir, self._newest) / STATE)["learned"])

    def _take_base(self, model: Any) -> None:
        """Make sure that the base model is that of the earlier tasks.

        Raises:
            RunError: It is another base model.
        """
        now = base_of(model) if self._brought is None else self._brought.base
        before = self._base if self._middle is None else self._middle.values.get("base", self._base)
        refuse_other_base(now, before, self.state_dir)
        self._base = before if now is None else now

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
        self.learned, self._base = list(found.values["learned"]), found.values.get("base")
        if MEMORY in found.texts:
            self._kept.read(found.texts[MEMORY], folder / MEMORY)
        self.method.load_state(method_state(found, device))

    def _memory_rows(self, dataset: Any) -> list[Row]:
        if self.method.old_data not in ("mixed", "steps"):
            return []
        sample = first_row(dataset)
        if self._given is not None and self._mixing is not None and sample is None:
            raise RunError(
                "the training data is a stream, and rows of earlier tasks cannot be mixed into a stream. "
                "Use a data set with a length, or a method with memory steps, such as recurrent-kif."
            )
        if self._given is not None:
            rows = given_rows(self._given, self.trainer, sample)
        else:
            if sample is None:
                raise RunError(
                    "the training data is a stream, and rows for the memory cannot be drawn from a stream. "
                    "Use a data set with a length, or give the rows of earlier tasks as memory=."
                )
            # drawn now, so that a row which cannot be kept is refused before the training, not after it
            self._drawn = self._kept.draw(self.name, dataset, self.trainer.args.seed)
            rows = self._kept.rows()
            if self._mixing is not None:
                rows = with_columns_of(sample, rows)
        if self.index and not rows:
            raise RunError(
                f"memory: this is task {self.index + 1}, and the method reads old data, but there are no "
                "rows of earlier tasks. Give some, or leave memory= out so that the callback keeps them."
            )
        return rows

    def _batches(self, args: Any) -> MemoryBatches:
        processes, trainer = args.world_size, self.trainer
        batches = MemoryBatches(self._rows, self._batch_size(args), args.seed)  # type: ignore[arg-type]
        batches.tasks = self._kept.tasks()
        counted = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
        if not (counted and args.average_tokens_across_devices):
            # if each process divides the loss by its own rows, all processes must have equally many
            batches.batch_size = max(1, batches.batch_size // processes) * processes
        return batches

    def _checkpoint(self, step: int) -> Path:
        resumed = self._mixing.checkpoint if self._mixing is not None else None
        folder = self.checkpoint or resumed or Path(self.trainer.args.output_dir) / f"checkpoint-{step}"
        return folder / "kifuse"

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
            "base": self._base,
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
            RunError: There is no state, it was written without weights or with those of another model, or the
                method brings an adapter of its own.
        """
        if self._brought is not None:
            raise RunError(
                "give the Trainer the base model; the callback puts the last learned adapter on it."
            )
        restore_weights(self.state_dir, model)


def method_state(found: StateFolder, device: torch.device) -> MethodState:
    """The state to give back to a method, on the device of the model."""
    tensors = {name: tensor.to(device) for name, tensor in found.tensors.get("method", {}).items()}
    return MethodState(tensors, found.values["state"])
