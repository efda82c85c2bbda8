"""Write sound files of every kind that kifuse reads. They are small and depend on a seed."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from kifuse.io.sealed_json import read_sealed
from kifuse.io.storage import write_json, write_tensors, write_text
from kifuse.record.run_record import MethodRecord, RunRecord, ScoreRecord, TaskRecord
from kifuse.tasks import Example, MemoryBuffer, Task

_WORDS = ["port", "ship", "town", "Größe", "日本", "question", "science", "a", "the"]


def _text(rng: Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(1, 6)))


def _json(path: Path, value: Any) -> None:
    # half of the files have one line, the others have many
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(value, indent=1 if len(path.name) % 2 else None, ensure_ascii=False), encoding="utf-8"
    )


def build_long_sequence(root: Path, rng: Random) -> None:
    """Write ``{train,dev,test}/<task>.json``."""
    for task in ("agnews", "yelp"):
        for split in ("train", "dev", "test"):
            head = "What is it? Choose one from the option. Option: good, bad.\n"
            rows = [
                {
                    "id": f"{task}_{i}",
                    "input": f"{head}{_text(rng)}\nAnswer:",
                    "output": rng.choice(["good", "bad"]),
                }
                for i in range(3)
            ]
            _json(root / split / f"{task}.json", rows)


def build_cl_benchmark(root: Path, rng: Random) -> None:
    """Write ``<CATEGORY>/<task>/{train,dev,test,labels}.json``."""
    for category, task in (("SC", "yelp"), ("COPA", "COPA")):
        _json(root / category / task / "labels.json", ["good", "bad"])
        for split in ("train", "dev", "test"):
            rows = [{"sentence": _text(rng), "label": rng.choice(["good", "bad"])} for _ in range(3)]
            _json(root / category / task / f"{split}.json", rows)


def build_superni(root: Path, rng: Random) -> None:
    """Write ``<task>/{train,dev,test}.json``."""
    for task in ("task001_quoref", "task1572_samsum_summary"):
        for split in ("train", "dev", "test"):
            rows = [{"id": f"{split}-{i}", "input": _text(rng), "output": [_text(rng)]} for i in range(3)]
            _json(root / task / f"{split}.json", {"Definition": ["Do it."], "Instances": rows})


def build_pairs(root: Path, rng: Random, form: int | None = None) -> None:
    """Write pairs as JSON Lines, in one of the arrangements that kifuse reads."""
    form = rng.randrange(4) if form is None else form
    for task in ("colour", "Früchte"):
        settings = {
            "instruction": "Which one?",
            "labels": ["a", "b"],
            "list_labels": True,
            "metric": "exact_match",
        }
        for split in ("train", "dev", "test"):
            rows = [{"input": _text(rng), "output": rng.choice("ab"), "id": i} for i in range(3)]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            if form == 0:
                write_text(root / task / f"{split}.jsonl", lines)
            elif form == 1 and split == "train":
                write_text(root / f"{task}.jsonl", lines)
            elif form == 2:
                named = [{**row, "task": task, "options": ["a", "b"], "instruction": "Go."} for row in rows]
                with (root / f"{split}.jsonl").open("a", encoding="utf-8") as stream:
                    stream.writelines(json.dumps(row) + "\n" for row in named)
            elif form == 3:
                write_text(root / task / f"{split}.jsonl", lines)
                _json(root / task / "task.json", settings)


def build_task_json(root: Path, rng: Random) -> None:
    """Write two tasks with settings."""
    build_pairs(root, rng, form=3)


def build_chat(root: Path, rng: Random) -> None:
    """Write JSON Lines of conversations."""
    for task in ("help", "sales"):
        for split in ("train", "test"):
            rows = []
            for _ in range(3):
                turns = [("system", "Be kind."), ("user", _text(rng)), ("assistant", _text(rng))]
                turns += [("user", _text(rng)), ("assistant", _text(rng))] if rng.random() < 0.5 else []
                messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
                if rng.random() < 0.3:
                    messages[1]["content"] = [{"type": "text", "text": _text(rng)}]
                rows.append({"messages": messages})
            write_text(root / task / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


CONFIG = """\
model:
  name: smollm2-135m
  adapter:
    rank: 4
    target_modules: [q_proj, v_proj]
  precision: fp32
data:
  path: data
  order: [one, two]
  train_examples: 10
method:
  name: kif
  beta: 0.5
memory:
  share: 0.1
training:
  learning_rate: 1.0e-3
  epochs: 2
  batch_size: 8
  seed: 3
evaluation:
  full_matrix: true
output: runs/a
"""
CONFIG_KEYS = ["model.name", "model.adapter.rank", "model.adapter.target_modules", "data.path", "data.order"]
CONFIG_KEYS += ["data.benchmark", "method.name", "method.beta", "method", "memory.share", "training.epochs"]
CONFIG_KEYS += ["training.learning_rate", "training.batch_size", "training.seed", "output", "model", "data"]


def build_config(root: Path, rng: Random) -> None:
    """Write a run's configuration."""
    (root / "run.yaml").write_text(CONFIG, encoding="utf-8")


def build_record(root: Path, rng: Random) -> None:
    """Write the record of a finished run of two tasks."""
    tasks = [
        TaskRecord(
            name=name, metric="exact_match", labels=["a"], sizes={"train": 3}, hashes={"train": "0" * 64}
        )
        for name in ("one", "two")
    ]
    tasks[0].loss, tasks[0].events, tasks[0].train_steps = [(1, 0.5), (2, None)], [{"step": 1}], 2
    cells = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    RunRecord(
        kifuse_version="0.1.0",
        status=rng.choice(["running", "finished"]),
        created="2026-01-01T00:00:00+00:00",
        config={"method": {"name": "kif"}, "training": {"seed": 0}},
        model={"name": "m", "parameters": 10},
        method=MethodRecord(name="kif", settings={"beta": 0.5}, data_class="replay-free"),
        stream="s",
        tasks=tasks,
        scores=[ScoreRecord(after=a, task=t, score=50.0, valid=100.0, n=3, seconds=0.1) for a, t in cells],
    ).save(root)
    # without a seal, as an earlier kifuse wrote it, so that all other checks must find the damage
    write_json(root / "record.json", read_sealed(root / "record.json")[0])


def build_memory(root: Path, rng: Random) -> None:
    """Write the state of a memory buffer of two tasks."""
    memory = MemoryBuffer(per_task=rng.choice([None, 2]), share=0.5, seed=1)
    for name in ("one", "two"):
        train = tuple(Example("h\n", _text(rng), "\nAnswer:", ("a", "b"), str(i)) for i in range(4))
        memory.add(Task(name, train, (), (), ("a", "b"), "exact_match"))
    write_json(root / "memory.json", memory.state())


def build_tensors(root: Path, rng: Random) -> None:
    """Write a method's state as a safetensors file."""
    import torch

    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float16]
    tensors = {
        f"layer.{i}": torch.zeros(rng.choice([(2, 3), (), (0, 4), (5,)]), dtype=dtypes[i]) for i in range(5)
    }
    write_tensors(root / "method.safetensors", tensors, {"step": "3"})
