"""Checkpoints in the middle of a task: all that training needs to go on, written without pickle.

    <run>/checkpoint/middle/   state.json; weights, optimizer, method, training, random (safetensors)

It is written before a step, when the step before is complete to its last log line. A run that goes on from it
takes the very same steps, bit for bit, on the same machine. If FSDP2 cuts the model into pieces, they hold
whole tensors, and each process takes its own pieces from them.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from kifuse.driving.callback import MethodCallback
from kifuse.driving.optimizer_moments import load_moments, moments
from kifuse.driving.shards import joined, put_whole
from kifuse.driving.state_folder import StateFolder, describe, read_state, write_state
from kifuse.errors import KifuseError, RunError
from kifuse.methods.base import MethodState
from kifuse.processes import ALONE, Processes
from kifuse.running.interrupt import Patience
from kifuse.tasks.encoding import Encoded


def refuse_file_for_middle(folder: Path) -> None:
    """Refuse a run's folder in which a file has the name of the folder for the middle of a task.

    Raises:
        RunError: There is such a file.
    """
    if (folder / "checkpoint").is_file():
        raise RunError(
            f"{folder / 'checkpoint'}: is a file, expected a folder with the checkpoint of a task, or "
            "nothing. Move the file elsewhere."
        )


@dataclass(frozen=True)
class Middle:
    """Where and how often a checkpoint is written in the middle of a task.

    Attributes:
        folder: Folder of the run's checkpoint.
        seconds: Least time between two checkpoints; with 0 one is written before every step.
        patience: Whether the user wants to stop.
        say: Called with a line if a checkpoint cannot be read, or training goes on from one.
        processes: Those that train together; the first one writes.
    """

    folder: Path
    seconds: float
    patience: Patience
    say: Callable[[str], None] = lambda _: None
    processes: Processes = ALONE

    @property
    def place(self) -> Path:
        """Folder of the files."""
        return self.folder / "middle"

    def read(self, identity: dict[str, Any]) -> StateFolder | None:
        """Read the checkpoint of this very training; None if there is none, or it is another's or damaged.

        Training again from the task's start gives the same result, so only time is lost.

        Raises:
            RunError: The first process has found what this one does not see.
        """
        if not self.processes.of_first(lambda: self._read(identity) is not None):
            return None
        found = self._read(identity)
        if found is None:
            raise RunError(
                f"{self.place}: the first process continues from this checkpoint, but this process does not "
                "find it. Use a folder that all machines share."
            )
        return found

    def _read(self, identity: dict[str, Any]) -> StateFolder | None:
        if not (self.place / "state.json").is_file():
            return None
        try:
            found = read_state(self.place)
        except KifuseError as error:
            self.say(f"{error} The task starts again.")
            return None
        return found if found.values.get("identity") == identity else None

    def forget(self) -> None:
        """Remove the checkpoint: the task is over."""
        shutil.rmtree(self.place, ignore_errors=True)


def identity_of(
    driver: MethodCallback, examples: Sequence[Encoded], steps: int, seed: int, processes: int = 1
) -> dict[str, Any]:
    """What must be the same for training to go on: task, data, memory, method, length, seed, processes."""
    memory = driver.memory.encoded if driver.memory else ()
    digest = hashlib.sha256()
    for part in (examples, memory):
        for example in part:
            for ids in (example.input_ids, example.target_ids):
                digest.update(f"{len(ids)}:".encode() + array("q", ids).tobytes())
        digest.update(b"|")
    name: dict[str, Any] = {"index": driver.index, "task": driver.name, "steps": steps, "seed": seed}
    if processes > 1:
        name["processes"] = processes
    return {**name, "data": digest.hexdigest(), **describe(driver.method)}


class MiddleKeeper(TrainerCallback):
    """Writes checkpoints in the middle of a task, and restores one when training begins.

    Args:
        driver: The method's callback; it restores what was kept of the method.
        middle: Where and how often to write.
        identity: What `identity_of` gave.
        found: The checkpoint to go on from, or None.
    """

    def __init__(
        self, driver: MethodCallback, middle: Middle, identity: dict[str, Any], found: StateFolder | None
    ) -> None:
        self.driver, self.middle, self.identity, self.found = driver, middle, identity, found
        self.trainer: Any = None
        self.started = self.kept = time.monotonic()
        self.seconds = 0.0
        self._random: dict[str, Any] | None = None
        if found is not None:
            driver.resume = (_state(found, "method"), _state(found, "training"))

    @property
    def done(self) -> int:
        """Steps taken before; 0 for a fresh start."""
        return 0 if self.found is None else int(self.found.values["step"])

    @property
    def _scaler(self) -> Any:
        return getattr(self.trainer.accelerator, "scaler", None)

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Restore weights, moments, schedule and counts; this callback comes before the method's own."""
        self.started = self.kept = time.monotonic()
        if self.found is None:
            return
        values, tensors = self.found.values, self.found.tensors
        state.global_step = values["step"]
        # the Trainer's sum of the loss since its last log line
        self.trainer._globalstep_last_logged = values["last_logged"]
        own = self._own_part(values)
        self.trainer._tr_loss.fill_(own["loss_sum"])
        named = {n: p for n, p in kwargs["model"].named_parameters() if p.requires_grad}
        for name, p in named.items():
            put_whole(p, tensors["weights"][name])
        load_moments(optimizer, named.items(), tensors["optimizer"])
        lr_scheduler.load_state_dict({**lr_scheduler.state_dict(), **values["schedule"]})
        for group, rate in zip(optimizer.param_groups, values["schedule"]["_last_lr"], strict=True):
            group["lr"] = rate
        self.driver.losses = [(int(step), float(loss)) for step, loss in values["losses"]]
        self.driver.rates = [(int(step), float(rate)) for step, rate in values["rates"]]
        self.seconds = values["seconds"]
        if self._scaler is not None and values.get("scaler") is not None:
            self._scaler.load_state_dict(values["scaler"])
        self._random = {**own["random"], **tensors[_random_of(self.middle.processes.rank)]}
        self.found = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the random numbers before the first step; afterwards write a checkpoint when it is time."""
        if self._random is not None:
            _set_random(self._random)
            self._random = None
            return
        processes, patience = self.middle.processes, self.middle.patience
        # the first process's clock counts, and anybody's wish to stop
        due = processes.rank == 0 and time.monotonic() - self.kept >= self.middle.seconds
        due, patience.asked = processes.any_of((due, patience.asked), args.device)
        if state.global_step and (due or patience.asked):
            self._keep(state, **kwargs)
            self.kept = time.monotonic()
        patience.check(state.global_step)

    def _own_part(self, values: dict[str, Any]) -> dict[str, Any]:
        """What each process has of its own: random numbers, and its sum of losses since the last log line."""
        rank = self.middle.processes.rank
        return values["others"][rank - 1] if rank else values

    def _keep(self, state: Any, model: Any, optimizer: Any, lr_scheduler: Any, **kwargs: Any) -> None:
        method, training = self.driver.method.state(), self.driver.running().state()
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        schedule = lr_scheduler.state_dict()
        numbers, states = _get_random()
        loss_sum = float(self.trainer._tr_loss)
        parts = self.middle.processes.gathered(({"random": numbers, "loss_sum": loss_sum}, states))
        values = {
            "identity": self.identity,
            "step": state.global_step,
            "last_logged": self.trainer._globalstep_last_logged,
            "loss_sum": loss_sum,
            "schedule": {k: schedule[k] for k in ("last_epoch", "_step_count", "_last_lr") if k in schedule},
            "losses": self.driver.losses,
            "rates": self.driver.rates,
            "seconds": self.total_seconds(),
            "random": numbers,
            # for fp16: the scale, and for how many steps it has held
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            "method": method.values,
            "training": training.values,
        }
        tensors = {
            "weights": {n: joined(p.detach()) for n, p in named},
            "optimizer": moments(optimizer, named),
            "method": method.tensors,
            "training": training.tensors,
            **{_random_of(rank): part for rank, (_, part) in enumerate(parts)},
        }
        if len(parts) > 1:
            values["others"] = [part for part, _ in parts[1:]]
        self.middle.processes.of_first(lambda: write_state(self.middle.place, StateFolder(values, tensors)))

    def total_seconds(self) -> float:
        """Time spent on the task, in earlier starts too."""
        return self.seconds + time.monotonic() - self.started


def _random_of(rank: int) -> str:
    """The name of the file with a process's states of random numbers."""
    return f"random-{rank}" if rank else "random"


def _state(found: StateFolder, name: str) -> MethodState:
    return MethodState(found.tensors.get(name, {}), found.values[name])


def _get_random() -> tuple[dict[str, Any], dict[str, Tensor]]:
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    numbers = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), place, has_gauss, gauss],
    }
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return numbers, states


def _set_random(kept: dict[str, Any]) -> None:
    version, internal, gauss = kept["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, place, has_gauss, cached = kept["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, cached))
    torch.set_rng_state(kept["torch"])
    if "cuda" in kept and torch.cuda.is_available():
        torch.cuda.set_rng_state(kept["cuda"])
