"""Measure how a learner's time, folder and page grow with its tasks, and memory with the tokenised rows.

    python benchmarks/growth.py [--only tasks tokens rows] [--methods sequential o-lora] [--folder FOLDER]

A tiny model (2 layers, width 32, LoRA of rank 8) learns 100 tasks of 12 training and 3 test rows. It does so
with each method in a process of its own, and scores every task after each one. At 5, 20, 60 and 100 tasks
this is measured: the seconds of that `learn`; how its processor time divides, which other work on the machine
changes little; the bytes of the folder, of its record and of its page. It also measures the peak of memory
while 30,000 and 300,000 rows are tokenised. With 1,000,000 rows of JSON Lines it measures the peak of `kifuse
validate`, of a run with replay to its fifth step, and of drawing the examples that replay keeps. The figures
are in benchmarks/results/growth.json. New figures of a method replace its old ones.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

RESULTS = Path(__file__).parent / "results" / "growth.json"
METHODS: dict[str, dict[str, Any]] = {
    "sequential": {"name": "sequential"},
    "replay": {"name": "replay"},
    "recurrent-kif": {"name": "recurrent-kif", "inner_steps": 2},
    "o-lora": {"name": "o-lora"},
}
WORDS = ("harbour", "town", "ship", "paragraph", "topic", "question", "option", "science", "sports")
ANSWERS = ("yes", "no")
TASKS = (5, 20, 50, 100)
KINDS = ("tasks", "tokens", "rows")
ROWS = (30_000, 300_000)
MANY_ROWS, STEPS = 1_000_000, 5
PARTS = {
    "write the record": "kifuse.record.run_record:RunRecord.save",
    "read the record": "kifuse.record.run_record:RunRecord.load",
    "train": "kifuse.running.engine:train_task",
    "score": "kifuse.answering.evaluator:Evaluator.score",
    "draw the page": "kifuse.page_refresh:refresh_report",
    "write adapter and state": "kifuse.running.snapshot:Snapshots.save",
    "look through the data": "kifuse.running.engine:look_through",
}
"""The parts of the time of a `learn`, and the functions that are timed for each; what is left is the rest."""


class Clock:
    """Adds up the processor time of some functions; if one calls another, the time counts for the caller."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within = False

    def wrap(self, part: str, target: str) -> None:
        """Begin to time every call of a function."""
        module, _, path = target.partition(":")
        *owners, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        kind, inner = vars(owner)[name], getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._within:
                return inner(*args, **kwargs)
            self._within, began = True, time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[part] += time.process_time() - began
                self._within = False

        setattr(owner, name, staticmethod(timed) if isinstance(kind, classmethod) else timed)


def size_of(folder: Path) -> int:
    """Count the bytes on disk below a folder; a file with several names counts once."""
    found = {(s.st_dev, s.st_ino): s.st_size for p in folder.rglob("*") if p.is_file() for s in [p.stat()]}
    return sum(found.values())


def rows_of(number: int, count: int, words: int = 8) -> list[dict[str, str]]:
    """Make the rows of a task; no two of them are the same."""
    draw = random.Random(number)  # noqa: S311 - draws data, not secrets
    return [
        {"input": f"{number} {i} " + " ".join(draw.choices(WORDS, k=words)), "output": draw.choice(ANSWERS)}
        for i in range(count)
    ]


def learn(method: str, folder: Path) -> list[dict[str, Any]]:
    """Learn the tasks with a method in this process, and measure after some of them."""
    import torch
    from tests.tiny import build_llama, build_tokenizer

    from kifuse import ContinualLearner

    torch.set_num_threads(1)
    tokenizer, clock = build_tokenizer("bytes"), Clock()
    learner = ContinualLearner(
        build_llama(len(tokenizer)),
        METHODS[method],
        folder,
        tokenizer=tokenizer,
        settings={
            "model": {"precision": "fp32", "adapter": {"rank": 8, "alpha": 16}},
            "data": {"max_input": 64, "max_target": 8},
            "memory": {"per_task": 3},
            "training": {"epochs": 1, "batch_size": 4},
            "evaluation": {"max_new_tokens": 2},
        },
        progress=False,
    )
    for part, target in PARTS.items():
        clock.wrap(part, target)
    found = []
    for k in range(1, TASKS[-1] + 1):
        rows = rows_of(k, 15)
        clock.seconds.clear()
        began, worked = time.perf_counter(), time.process_time()
        learner.learn(rows[:12], name=f"task-{k}", test=rows[12:], labels=ANSWERS)
        took, worked = time.perf_counter() - began, time.process_time() - worked
        if k in TASKS:
            parts = {part: clock.seconds[part] for part in PARTS}
            found.append(
                {
                    "tasks": k,
                    "learn_seconds": round(took, 3),
                    "processor_seconds": round(worked, 3),
                    "parts": {name: round(s, 3) for name, s in parts.items()}
                    | {"the rest": round(worked - sum(parts.values()), 3)},
                    "folder_bytes": size_of(folder),
                    "adapters_bytes": size_of(folder / "adapters"),
                    "last_adapter_bytes": size_of(folder / "adapters" / f"after-{k}"),
                    "state_bytes": size_of(folder / "state"),
                    "predictions_bytes": size_of(folder / "predictions"),
                    "record_bytes": (folder / "record.json").stat().st_size,
                    "page_bytes": (folder / "report.html").stat().st_size,
                }
            )
            print(f"{method}: {json.dumps(found[-1])}", file=sys.stderr, flush=True)
    return found


def tokenise(count: int) -> dict[str, Any]:
    """Measure the peak of memory while `count` rows are tokenised, above what the process held before."""
    from tests.tiny import build_tokenizer

    from kifuse.tasks.any_task import as_task
    from kifuse.tasks.token_cache import CachingEncoder

    with tempfile.TemporaryDirectory() as folder:
        encoder = CachingEncoder(
            build_tokenizer("bytes"), source="tiny", cache=None, folder=Path(folder), encoder_decoder=False
        )
        task = as_task(rows_of(0, count, words=20), name="rows", to_learn=False)
        found: dict[str, Any] = {"rows": count, "rows_mib": memory("VmRSS") >> 20}
        for what in ("first start", "next start"):
            gc.collect()
            before = memory("VmRSS")
            # start the measurement of the peak again
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            began = time.perf_counter()
            encoded = encoder.encode_pieces(task.train)
            found["tokens"] = sum(each.length for each in encoded)
            found[what] = {
                "seconds": round(time.perf_counter() - began, 2),
                "peak_mib": (memory("VmHWM") - before) >> 20,
                "kept_mib": (memory("VmRSS") - before) >> 20,
            }
            del encoded
    return found


def write_rows(folder: Path, count: int) -> Path:
    """Write a tiny model, a task of `count` training rows and the configuration of a run on it."""
    from tests.tiny import build_llama, build_tokenizer

    tokenizer = build_tokenizer("bytes")
    tokenizer.save_pretrained(folder / "model")
    build_llama(len(tokenizer)).save_pretrained(folder / "model")
    (folder / "data" / "rows").mkdir(parents=True)
    for split, rows in (("train", rows_of(0, count)), ("test", rows_of(1, 3))):
        with (folder / "data" / "rows" / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    config = {
        "model": {"name": str(folder / "model"), "precision": "fp32"},
        "data": {"path": str(folder / "data"), "max_input": 64, "max_target": 8},
        "method": {"name": "replay"},
        "memory": {"per_task": 20},
        "training": {"epochs": 3, "batch_size": 32, "threads": 1},
        "evaluation": {"max_new_tokens": 2},
        "output": str(folder / "run"),
    }
    file = folder / "rows.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")
    return file


def use_rows(what: str, file: Path) -> dict[str, Any]:
    """Measure the peak of memory of `kifuse validate` or of a run, above the model and the libraries.

    The run is ended after a few training steps: by then all rows have been read, checked, tokenised and put
    into the order of training.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer

    from kifuse import run
    from kifuse.cli import main
    from kifuse.config import RunConfig
    from kifuse.running.progress import Progress
    from kifuse.tasks.memory import MemoryBuffer
    from kifuse.tasks.readers import read_task

    class Few(Progress):
        def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
            if step == STEPS:
                raise SystemExit

    # what the libraries take when they are first used belongs to the model, not to the rows
    held = [
        get_peft_model(AutoModelForCausalLM.from_pretrained(file.parent / "model"), LoraConfig()),
        Trainer,
    ]
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    began = time.process_time()
    sys.argv = ["kifuse", what, str(file)]
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        if what == "validate":
            main()
        elif what == "run":
            run(RunConfig.model_validate(json.loads(file.read_text("utf-8"))), progress=Few())
        else:
            MemoryBuffer(per_task=20).draw(read_task(file.parent / "data" / "rows"))
    del held
    return {
        "processor_seconds": round(time.process_time() - began, 1),
        "peak_mib": (memory("VmHWM") - before) >> 20,
    }


def memory(key: str) -> int:
    """Return a figure of this process's memory in bytes, by its name in /proc."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def alone(*what: str) -> Any:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", *what]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> int:
    """Measure, write the figures and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=(*KINDS,), default=[*KINDS])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folder", type=Path, default=None, help="keeps the learners' folders")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, *rest = arguments.one
        if what == "tasks":
            found: Any = learn(rest[0], Path(rest[1]))
        else:
            found = tokenise(int(rest[0])) if what == "tokens" else use_rows(rest[0], Path(rest[1]))
        print(json.dumps(found))
        return 0
    top = arguments.folder or Path(tempfile.mkdtemp(prefix="growth-"))
    known: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    for method in arguments.methods if "tasks" in arguments.only else ():
        known.setdefault("tasks", {})[method] = alone("tasks", method, str(top / method))
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    if "tokens" in arguments.only:
        known["tokens"] = [alone("tokens", str(count)) for count in ROWS]
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(known["tokens"], indent=1))
    if "rows" in arguments.only:
        file = write_rows(top, MANY_ROWS)
        known["rows"] = {"rows": MANY_ROWS} | {
            what: alone("rows", what, str(file)) for what in ("validate", "run", "keep")
        }
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(known["rows"], indent=1))
    if arguments.folder is None:
        shutil.rmtree(top)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
