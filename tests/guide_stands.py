"""Replace the things that a reader of the guide has while the guide is run: models, data, finished runs.

- Every model that the guide names is a tiny one: `smollm2-135m`, `path/of/the/base/model` and the papers' T5.
- `my-tasks`, `data` and the published benchmarks are a few made-up examples. A built-in benchmark that is
  trained on is cut to as many examples.
- `kifuse run` trains for one epoch (`SHORT`), and every answer ends after two tokens, since models with
  random weights would go on to the limit.
- `kifuse show` gets SmolLM2's config.json without weights, so its output is the real one.
- `benchmarks` is the folder of the repository.
- Names that a snippet does not define come from `given`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

from kifuse import registry
from kifuse.tasks.task import TaskStream
from tests.guide_pages import ROOT
from tests.runs import write_stream
from tests.unit.reporting.measured_runs import kif_record, rounds_record, write_run
from tests.unit.reporting.runs import make_record

MONTHS = {"colour": "january", "fruit": "february", "weather": "march"}
BENCHMARK = ("dbpedia", "amazon", "yahoo", "agnews")
SHORT = ["--set", "training.epochs=1"]
DESK = """
model: {name: smollm2-135m}
data: {path: my-tasks}
method: {name: recurrent-kif}
memory: {per_task: 2}
training: {epochs: 1}
evaluation: {max_new_tokens: 2}
output: runs/desk
"""


def furnish(folder: Path, llama: Path) -> None:
    """Put the files into a folder that the guide expects there."""
    write_stream(folder / "my-tasks", train=8, test=2)
    for name, month in MONTHS.items():
        (folder / "my-tasks" / name).rename(folder / "my-tasks" / month)
    (folder / "desk.yaml").write_text(DESK, encoding="utf-8")
    base = folder / "path" / "of" / "the" / "base" / "model"
    base.parent.mkdir(parents=True)
    base.symlink_to(llama, target_is_directory=True)
    (folder / "data").mkdir()
    for month in ("october", "november", "december", "general"):
        rows = [{"input": f"{month}: is {i} odd?", "output": "yes" if i % 2 else "no"} for i in range(10)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{month}.jsonl").write_text(text, encoding="utf-8")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks", target_is_directory=True)
    for place in ("DATA/long_sequence", "my-data"):
        _write_benchmark(folder / place)


def _write_benchmark(folder: Path) -> None:
    """Write a benchmark in the layout of the papers' authors, with made-up texts."""
    head = "What is the topic of the paragraph? Choose one from the option.\nOption: World, Sports \n"
    for split, count in (("train", 6), ("dev", 2), ("test", 2)):
        (folder / split).mkdir(parents=True)
        for task in BENCHMARK:
            rows = [
                {
                    "input": f"{head}{task} {split} {i}\nAnswer:",
                    "output": ("World", "Sports")[i % 2],
                }
                for i in range(count)
            ]
            (folder / split / f"{task}.json").write_text(json.dumps(rows), encoding="utf-8")


def finished_runs() -> None:
    """Make the finished runs that the page about the report expects."""
    write_run(Path("runs/desk"), make_record("kif", tasks=["january", "february"]))
    write_run(Path("runs/first"), rounds_record(tasks=["january", "february"]))
    write_run(Path("runs/second"), kif_record(tasks=["january", "february"]))


def given(llama: Path) -> dict[str, Any]:
    """Return the names that the README's snippet of a Trainer script does not define."""
    texts = [[6, 7 + i, 2] for i in range(8)]
    rows = [{"input_ids": ids, "attention_mask": [1] * 3, "labels": ids} for ids in texts]
    arguments = TrainingArguments("checkpoints", per_device_train_batch_size=4, report_to=[])
    model = AutoModelForCausalLM.from_pretrained(llama)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "q_proj" in name
    return {"Trainer": Trainer, "model": model, "args": arguments, "november": Dataset.from_list(rows)}


class Stands:
    """Puts the tiny models in the place of the real ones, and small data in the place of a whole benchmark.

    Args:
        patch: The patches, which are undone after the page.
        llama: Folder of the tiny decoder-only model.
        t5: Folder of the tiny encoder-decoder model.
        outline: Folder that holds only SmolLM2's config.json.
    """

    def __init__(self, patch: pytest.MonkeyPatch, llama: Path, t5: Path, outline: Path) -> None:
        from kifuse.answering import evaluator
        from kifuse.models import loading, tokenizer
        from kifuse.running import run_start as opening

        self.llama, self.outline, self.bundled = llama, outline, llama
        tiny = {"google-t5/t5-large": str(t5)}
        load = loading.load_backbone
        for module in (loading, tokenizer):
            patch.setattr(module, "bundled_model", lambda name, say=None: self.bundled)
        patch.setattr(opening, "load_backbone", lambda name, **rest: load(tiny.get(name) or name, **rest))
        answer = evaluator.greedy_generate
        patch.setattr(
            evaluator,
            "greedy_generate",
            lambda *given, **more: answer(*given, **{**more, "max_new_tokens": 2}),
        )
        patch.setattr(registry, "METHODS", dict(registry.METHODS))
        patch.setattr(registry, "OWN", {})
        patch.setenv("COLUMNS", "80")

    def prepare(self, words: tuple[str, ...], patch: pytest.MonkeyPatch) -> list[str]:
        """Prepare everything for one command of `kifuse`; return the options to add to its own."""
        import kifuse.streams
        from kifuse.benchmarks.catalog import load_benchmark

        self.bundled = self.outline if words[1] == "show" else self.llama
        if "--adapter" in words:
            model = AutoModelForCausalLM.from_pretrained(self.llama)
            adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
            adapted.save_pretrained(words[words.index("--adapter") + 1])
        if words[1] != "run":
            return []

        def few(*arguments: Any, **options: Any) -> TaskStream:
            stream = load_benchmark(*arguments, **options)
            return TaskStream(stream.name, tuple(t.subset(8, 2, 2, seed=0) for t in stream.tasks))

        patch.setattr(kifuse.streams, "load_benchmark", few)
        return SHORT


def smollm2_outline(folder: Path) -> Path:
    """Write the part of SmolLM2-135M's config.json that decides the shapes."""
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    return folder
