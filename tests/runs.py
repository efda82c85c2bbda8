"""Whole runs on tiny models: their data, their configuration, and the files that they leave."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from kifuse.config import RunConfig
from kifuse.running.progress import Progress

TASKS = ("colour", "fruit", "weather")
LABELS = {"colour": ("red", "blue"), "fruit": ("apple", "plum"), "weather": ("sun", "rain")}
WORDS = ["harbour", "town", "ship", "paragraph", "topic", "question", "option", "science", "sports"]

METHODS: dict[str, dict[str, Any]] = {
    "sequential": {"name": "sequential"},
    "joint": {"name": "joint"},
    "replay": {"name": "replay"},
    "der++": {"name": "der++", "tokens": 5},
    "kif": {"name": "kif"},
    "kif, authors' reading": {"name": "kif", "reading": "after", "fusion": "adaptive", "units": "module"},
    "kiflora": {"name": "kiflora"},
    "kif, single examples": {"name": "kif", "order": "second", "fisher": "per_example"},
    "kif, running average": {"name": "kif", "fusion": "ema", "ema_decay": 0.5},
    "kif-m": {"name": "kif-m", "replay_lr": 1e-2},
    "kiflora-m": {"name": "kiflora-m", "threshold": "share", "scope": "layer"},
    "tasl": {"name": "tasl", "units": "rank", "scope": "module", "quantile": 0.5},
    "weight-ensemble": {"name": "weight-ensemble"},
    "ema": {"name": "ema", "decay": 0.5},
    "inclora": {"name": "inclora"},
    "o-lora": {"name": "o-lora"},
    "o-lora, published code": {"name": "o-lora", "penalty": "absolute", "norm": 0.1},
    "n-lora": {"name": "n-lora", "strength": 1e-3},
    "ella": {"name": "ella", "strength": 1.0, "normalise": True},
    "recurrent-kif": {"name": "recurrent-kif", "inner_steps": 2},
    "recurrent-kif, published": {
        "name": "recurrent-kif",
        "inner_steps": 2,
        "fusion": "published",
        "score": "uncertainty",
        "outer_steps": 4,
    },
    "recurrent-kif, one fusion": {
        "name": "recurrent-kif",
        "inner_steps": 2,
        "rounds": "one",
        "masks": "soft",
        "smoothing": False,
        "importance": "second",
    },
    "recurrent-kif, shares by module": {
        "name": "recurrent-kif",
        "inner_steps": 2,
        "outer_importance": "static",
        "threshold": "share",
        "scope": "module",
        "share": False,
    },
    "recurrent-kif, own optimizer": {
        "name": "recurrent-kif",
        "inner_steps": 2,
        "outer_optimizer": "own",
        "moments": "reset",
        "outer_lr": 1e-3,
    },
    "ewc": {"name": "ewc", "penalty": 10.0},
    "ewc, of some examples": {"name": "ewc", "penalty": 10.0, "examples": 5},
    "online-ewc": {"name": "online-ewc", "penalty": 10.0, "gamma": 0.5},
    "generated-replay": {"name": "generated-replay", "attempts": 2},
    "lwf": {"name": "lwf"},
    "l2p": {"name": "l2p", "pool": 4, "length": 2, "picked": 2},
    "progprompt": {"name": "progprompt", "length": 2},
    "progprompt, without task ids": {"name": "progprompt", "length": 2, "residual": 3, "task_id": False},
    "epi": {"name": "epi", "length": 2},
    "epi, with task ids": {"name": "epi", "length": 2, "start": "mean", "answers": 1, "task_id": True},
    "lfpt5": {"name": "lfpt5", "length": 3, "attempts": 1},
    "mocl": {"name": "mocl", "length": 2},
    "mocl, of lora": {"name": "mocl", "module": "lora"},
    "sapt": {"name": "sapt", "bottleneck": 4},
    "moe-lora": {"name": "moe-lora", "experts": 3, "top_k": 2},
    "sdft": {"name": "sdft", "most": 5},
    "sdft, with a teacher that follows": {"name": "sdft", "most": 5, "follow": 0.1, "direction": "jsd"},
    "on-policy-repair": {"name": "on-policy-repair", "steps": 2, "most": 5},
    "dft": {"name": "dft"},
    "eaft": {"name": "eaft"},
    "asft": {"name": "asft", "anchor": 0.5},
    "ogd": {"name": "ogd", "per_task": 5},
    "ogd, with a full basis": {"name": "ogd", "per_task": 5, "basis": 6, "project": "gradient"},
    "gpm": {"name": "gpm", "examples": 5, "threshold": 0.5},
    "gpm, of the gradient": {
        "name": "gpm",
        "examples": 5,
        "threshold": 0.8,
        "growth": 0.05,
        "project": "gradient",
    },
    "osf": {"name": "osf", "growth": 0.2},
    "osf, of the gradient": {"name": "osf", "project": "gradient"},
    "migu": {"name": "migu"},
    "migu, of the gradient": {"name": "migu", "quantile": 0.5, "mask": "gradient"},
    "slao": {"name": "slao"},
    "slao, from the merged pair": {"name": "slao", "start": "merged", "keep_function": True},
    "forever": {"name": "forever", "day_steps": 1, "anchor": 0.1},
    "aimmerging": {"name": "aimmerging", "interval": 2, "memory_steps": 2, "threshold": 0.0},
    "vr-mcl": {"name": "vr-mcl"},
    "vr-mcl, second order": {"name": "vr-mcl", "second_order": True, "inner_size": 3},
}
"""Every method, with the settings that change what it does to the training loop."""

KIND = {"osf": "osf"}
"""The kinds of adapters of methods that need their own."""


def write_stream(folder: Path, train: int = 12, test: int = 3) -> Path:
    """Write three tasks with two labels each and texts of different lengths."""
    draw = random.Random(0)
    for task in TASKS:
        (folder / task).mkdir(parents=True)
        settings = {"instruction": f"Which {task}?", "labels": list(LABELS[task]), "list_labels": True}
        (folder / task / "task.json").write_text(json.dumps(settings), encoding="utf-8")
        for split, count in (("train", train), ("dev", 2), ("test", test)):
            rows = [
                {
                    "input": f"{split} {i} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 6))),
                    "output": LABELS[task][i % 2],
                    "id": f"{task}-{split}-{i}",
                }
                for i in range(count)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / task / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def make_config(
    model: Path, stream: Path, output: Path, method: dict[str, Any], /, **sections: Any
) -> RunConfig:
    """Configure a run that takes about a second; `sections` add to or change the defaults."""
    plain: dict[str, dict[str, Any]] = {
        "model": {
            "name": str(model),
            "precision": "fp32",
            "adapter": {"rank": 2, "alpha": 8, "dropout": 0.1},
        },
        "data": {"path": stream, "max_input": 64, "max_target": 8},
        "memory": {"per_task": 3},
        "training": {"learning_rate": 1e-2, "epochs": 1, "batch_size": 4},
        "evaluation": {"max_new_tokens": 2},
    }
    merged = {name: {**plain.get(name, {}), **sections.get(name, {})} for name in plain | sections}
    own = {"kind": KIND.get(method["name"], "lora")}
    merged["model"]["adapter"] = {**own, **merged["model"]["adapter"]}
    return RunConfig.model_validate({**merged, "method": method, "output": output})


def adapter(folder: Path, after: int = len(TASKS)) -> dict[str, Tensor]:
    """Load the weights of an adapter that a run kept."""
    return load_file(folder / "adapters" / f"after-{after}" / "adapter_model.safetensors")


def learned_files(folder: Path) -> dict[str, bytes]:
    """Read every file of the adapters and states that a run left, except files that are only for people."""
    return {
        each.relative_to(folder).as_posix(): each.read_bytes()
        for part in ("adapters", "state")
        for each in (folder / part).rglob("*")
        if each.is_file() and each.name != "README.md"
    }


class Stopped(Exception):
    """Stands for the end of a process in the middle of a run."""


class StopIn(Progress):
    """Ends the run in the first training step of a task, and keeps the messages."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """A line was told."""
        self.said.append(text)

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """A step was taken."""
        if task == self.task:
            raise Stopped


class PressCtrlC(Progress):
    """Presses Ctrl-C in a step of a task, once or several times, and keeps the messages."""

    def __init__(self, task: str, at: int, times: int = 1) -> None:
        self.task, self.at, self.times = task, at, times
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """A line was told."""
        self.said.append(text)

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """A step was taken."""
        if (task, step) == (self.task, self.at) and loss is None:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
