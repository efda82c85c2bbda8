"""Kill runs without warning, start them again, and collect the results.

Each start is a fork of one process that has imported everything and computed nothing. So it starts at once,
and `kill -9` ends it like any other process.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from tests.quick import compile_once

METHOD = {"name": "recurrent-kif", "inner_steps": 2, "outer_steps": 2, "outer_optimizer": "own"}

POINTS: dict[str, tuple[str, int]] = {
    "in the first step": ("transformers:Trainer.training_step", 1),
    "in a later step": ("transformers:Trainer.training_step", 5),
    "in a memory step": ("kifuse.driving.context:TrainerContext.memory_step", 3),
    "in a fusion": ("kifuse.methods.rounds:masked_sum", 2),
    "while the middle of a task is written": ("kifuse.driving.state_folder:write_tensors", 9),
    "as the middle of a task takes its place": ("pathlib:Path.rename", 3),
    "before the adapter is written": ("kifuse.adapters.lora:Peft.save", 2),
    "between adapter and state": ("kifuse.running.snapshot:save_state", 2),
    "before the list of files": ("kifuse.running.snapshot:write_manifest", 2),
    "while the record is written": ("os:replace", 14),
    "in an evaluation": ("kifuse.answering.evaluator:greedy_generate", 4),
    "before the last word": ("kifuse.running.runner:now", 1),
}
"""The points at which a run is killed: when this function is called for the n-th time."""


@dataclass(frozen=True)
class Workplace:
    """A tiny model and stream on disk, and the configuration of a run of a second."""

    folder: Path

    def config(self, output: Path, seed: int = 0) -> Any:
        """Make the configuration of a run with dropout that saves at every step of a task."""
        from tests.runs import make_config

        return make_config(
            self.folder / "model",
            self.folder / "stream",
            output,
            METHOD,
            training={"checkpoint_minutes": 0, "threads": 1, "seed": seed},
            evaluation={"max_new_tokens": 2, "full_matrix": True},
        )

    @classmethod
    def build(cls, folder: Path) -> Workplace:
        """Write model and stream in a process of its own, so that this process computes nothing."""

        def write() -> None:
            from tests.runs import write_stream
            from tests.tiny import build_llama, build_tokenizer

            tokenizer = build_tokenizer("bytes")
            build_llama(len(tokenizer)).save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
            write_stream(folder / "stream")

        place = cls(folder)
        if not (folder / "stream").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            assert wait(fork(write)) == 0
        return place


def fork(work: Callable[[], None]) -> int:
    """Start a child process that does some work and ends; return its process number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    # kill -9 loses no written data, and waiting for the disk takes longer than the runs
    os.fsync = lambda descriptor: None
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def do_run(config: Any, point: tuple[str, int] | None = None) -> Callable[[], None]:
    """Return the work of a run, which kills itself at a point if one is given."""

    def work() -> None:
        from kifuse.running.runner import run

        if point is not None:
            _arm(*point)
        run(config)

    return work


def _arm(target: str, number: int) -> None:
    """Kill this process when a function is called for the n-th time."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original, calls = getattr(owner, name), [0]

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def outcome(folder: Path) -> dict[str, Any]:
    """Return the results of a run: its scores, its losses, and the bytes of all adapters and predictions."""
    record = json.loads((folder / "record.json").read_text("utf-8"))
    files = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for part in ("adapters", "predictions")
        for p in sorted((folder / part).rglob("*"))
        if p.suffix in {".safetensors", ".jsonl"}
    }
    counts = ("train_steps", "examples_seen", "replayed_examples", "extra_forward_backward", "loss", "events")
    return {
        "status": record["status"],
        "scores": [[s["after"], s["task"], s["score"], s["valid"]] for s in record["scores"]],
        "tasks": [{key: task[key] for key in counts} for task in record["tasks"]],
        "files": files,
    }


def kill_at_random(place: Workplace, output: Path, draw: random.Random, seconds: float) -> list[float]:
    """Run and kill at random moments, until a start reaches the end; return the moments."""
    config, moments = place.config(output), []
    while True:
        pid = fork(do_run(config))
        moment = draw.uniform(0.0, seconds)
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) == 0
                return moments
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        if wait(pid) == 0:
            return moments
        moments.append(moment)
        if len(moments) == 3:  # three kills in a row, then it may finish
            assert wait(fork(do_run(config))) == 0
            return moments


def main() -> int:
    """Kill a run at each of the chosen points, and print as JSON which results are the same."""
    place = Workplace.build(Path(sys.argv[1]))
    import kifuse.running.runner  # noqa: F401 - one import for all forks

    # every Trainer collects garbage at its start, which takes longer than the training here
    gc.collect()
    gc.freeze()
    jinja2.Environment.compile = compile_once  # type: ignore[method-assign]

    whole = Path(sys.argv[1]) / "whole"
    assert wait(fork(do_run(place.config(whole)))) == 0
    expected = outcome(whole)
    found = {}
    for number, (name, point) in enumerate(POINTS.items()):
        output = Path(sys.argv[1]) / f"killed-{number}"
        killed = wait(fork(do_run(place.config(output), point)))
        again = wait(fork(do_run(place.config(output))))
        found[name] = [killed, again, again == 0 and outcome(output) == expected]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
