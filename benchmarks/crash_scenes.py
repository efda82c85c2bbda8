"""Kill work at its file operations and let it go on: a rollback, a refusal, a callback, a comparison.

Each scene starts in a fork that kills itself (`kill -9`) just before it changes something on disk for the
n-th time. Then the scene is started again, as its user would do. The result is compared with the result of
the same scene without a kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.crashes import METHOD, Workplace, fork, wait
from tests.faults import contents, failing_at
from tests.runs import TASKS

LEFT = ("set-aside/", "checkpoint/")
"""Folders with what an interrupted training has left; they hold nothing else."""


class Scene:
    """Some work that is done in a folder.

    Attributes:
        place: The tiny model and stream.
    """

    def __init__(self, place: Workplace) -> None:
        self.place = place

    def prepare(self, folder: Path) -> None:
        """Do the work before the scene; this is never killed."""

    def do(self, folder: Path) -> None:
        """Do the scene's work; this is called again after a kill."""
        raise NotImplementedError

    def outcome(self, folder: Path) -> str:
        """Return the result without times."""
        found = hashlib.sha256()
        for name, content in contents(folder).items():
            if name.endswith((".safetensors", ".jsonl")) and not name.startswith(LEFT):
                found.update(name.encode() + content)
        return found.hexdigest()

    def learner(self, folder: Path, **options: Any) -> Any:
        """Make a learner in the folder."""
        from tests.learners import settings_of

        from kifuse import ContinualLearner

        settings = settings_of(self.place.folder / "model", self.place.folder / "stream")
        model = str(self.place.folder / "model")
        return ContinualLearner(model, METHOD, folder, settings=settings, progress=False, **options)


class Rollback(Scene):
    """A learner goes back from the second task to the first."""

    def prepare(self, folder: Path) -> None:
        """Do what comes before."""
        learner = self.learner(folder)
        for task in TASKS[:2]:
            learner.learn(self.place.folder / "stream" / task)

    def do(self, folder: Path) -> None:
        """Do it, or finish it."""
        learner = self.learner(folder)
        if len(learner.tasks) > 1:
            learner.rollback(1)


class Refused(Scene):
    """A task that costs too much: it is trained, refused, and moved aside."""

    def at_a_loss(self, folder: Path) -> Any:
        """Make a learner whose scores fall by 8 points with each task, and which allows 5."""
        from kifuse.answering.evaluator import Evaluator

        plain = Evaluator.score

        def falling(self: Any, task: Any, after: int, *args: Any, **options: Any) -> Any:
            return replace(plain(self, task, after, *args, **options), score=90.0 - 8 * after)

        Evaluator.score = falling
        return self.learner(folder, max_forgetting=5)

    def prepare(self, folder: Path) -> None:
        """Do what comes before."""
        self.at_a_loss(folder).learn(self.place.folder / "stream" / TASKS[0])

    def do(self, folder: Path) -> None:
        """Do it, or finish it."""
        report = self.at_a_loss(folder).learn(self.place.folder / "stream" / TASKS[1])
        if report.accepted:
            raise RuntimeError("the task was accepted")


class Callback(Scene):
    """The second month of a script with a callback."""

    def month(self, folder: Path, number: int, **options: Any) -> None:
        """Train one month."""
        from tests.months import script
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.place.folder / "model")
        script(tokenizer, folder, number, METHOD, **options)

    def prepare(self, folder: Path) -> None:
        """Do what comes before."""
        self.month(folder, 1)

    def do(self, folder: Path) -> None:
        """Do it, or finish it."""
        state = folder / "state" / "after-2" / "state.json"
        if not state.is_file():
            self.month(folder, 2, resume=any((folder / "month-2").glob("checkpoint-*")))

    def outcome(self, folder: Path) -> str:
        """Return the state after the month, without the Trainer's checkpoints, which hold times."""
        return super().outcome(folder / "state" / "after-2")


class Compare(Scene):
    """A comparison of two methods."""

    def do(self, folder: Path) -> None:
        """Do it, or finish it."""
        from rich.console import Console

        from kifuse.comparing.grid import load_grid
        from kifuse.comparing.grid_runs import run_grid

        config = self.place.config(folder / "out").model_dump(mode="json")
        del config["method"]
        file = folder.with_name(f"{folder.name}.json")
        file.write_text(json.dumps({**config, "compare": {"methods": ["sequential", METHOD]}}))
        outcome = run_grid(load_grid(file, {}), Console(quiet=True))
        if outcome.failed:
            raise RuntimeError(str(outcome.failed))


SCENES: dict[str, Callable[[Workplace], Scene]] = {
    "rollback": Rollback,
    "refused task": Refused,
    "callback": Callback,
    "compare": Compare,
}


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _do(scene: Scene, folder: Path, number: int, count: Path) -> Callable[[], None]:
    def work() -> None:
        with failing_at(number, _killed) as counter:
            scene.do(folder)
        count.write_text(str(counter.seen))

    return work


def spread(count: int) -> list[int]:
    """Order the numbers from 1 to `count` so that every beginning of the order is spread evenly over them."""
    bits = count.bit_length()
    order = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return [number + 1 for number in order if number < count]


def kill_everywhere(
    name: str, place: Workplace, top: Path, minutes: float, keep: Callable[[dict[str, int]], None]
) -> dict[str, int]:
    """Kill a scene at its file operations, first at evenly spread ones.

    Args:
        name: The scene's name.
        place: The tiny model and stream.
        top: Folder for all files.
        minutes: How long to try; operations that are not reached by then are left out.
        keep: Called with the counts after each kill.

    Returns:
        How many `operations` there are, at how many of them a kill was `tried`, how many times the scene was
        `killed`, and how many results were `identical`.
    """
    until = time.monotonic() + 60 * minutes
    scene, start, count = SCENES[name](place), top / name / "start", top / name / "count"
    start.mkdir(parents=True, exist_ok=True)
    if wait(fork(lambda: scene.prepare(start))):
        raise RuntimeError(f"{name}: cannot be prepared")
    whole = shutil.copytree(start, top / name / "whole" / "it")
    if wait(fork(_do(scene, whole, 0, count))):
        raise RuntimeError(f"{name}: fails undisturbed")
    operations, expected = int(count.read_text()), scene.outcome(whole)
    found = {"operations": operations, "tried": 0, "killed": 0, "identical": 0}
    for number in spread(operations):
        if time.monotonic() > until:
            break
        folder = shutil.copytree(start, top / name / str(number) / "it")
        code = wait(fork(_do(scene, folder, number, count)))
        again = wait(fork(lambda folder=folder: scene.do(folder)))
        alike = again == 0 and scene.outcome(folder) == expected
        found["tried"] += 1
        found["killed"] += code == -signal.SIGKILL
        found["identical"] += alike
        keep(found)
        if alike:
            shutil.rmtree(folder.parent)
        else:
            print(f"{name}: another outcome after a kill at operation {number}, in {folder}", flush=True)
    return found
