"""Records with what methods measure for each trainable tensor, and records full of hostile text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kifuse.record.run_record import RunRecord
from tests.unit.reporting.runs import make_record, write_predictions

HOSTILE = (
    """<script>alert("1")</script><img src=x onerror='alert(2)'>"]]>--></style>{{ 7 * 7 }}"""
    """$x_1$\u202e\x00\ud800"""
)
"""Hostile text: markup, signs of templates and formulas, control characters, half a surrogate pair."""

HOSTILE_NAME = HOSTILE.replace("/", "").replace("\x00", "").replace("\ud800", "")
"""The part of the hostile text that the name of a task may contain."""


def t5_names(layers: int = 3) -> list[str]:
    """Return the adapted tensors of a T5: query and value of encoder, decoder and cross-attention."""
    places = [
        f"{stack}.block.{layer}.layer.{part}.{attention}.{projection}"
        for stack in ("encoder", "decoder")
        for layer in range(layers)
        for part, attention in (
            [(0, "SelfAttention")] + ([(1, "EncDecAttention")] if stack == "decoder" else [])
        )
        for projection in "qv"
    ]
    return [f"base_model.model.{place}.lora_{matrix}.default.weight" for place in places for matrix in "AB"]


def llama_names(layers: int = 4) -> list[str]:
    """Return the adapted tensors of a LLaMA: query and value of each layer."""
    return [
        f"base_model.model.model.layers.{layer}.self_attn.{projection}.lora_{matrix}.default.weight"
        for layer in range(layers)
        for projection in ("q_proj", "v_proj")
        for matrix in "AB"
    ]


def kif_record(**fields: Any) -> RunRecord:
    """Make a run whose method measured importance, history and movement, with one fusion in each task."""
    record = make_record("kif", full=True, **fields)
    names = t5_names()
    for k, task in enumerate(record.tasks):
        own = [1e-6 * (1 + (7 * i + 3 * k) % 11) for i in range(len(names))]
        series = {"importance": own, "moved": [10 * v for v in own], "history_after": own[::-1]}
        if k:
            series |= {"history": own, "weight_of_previous": [0.7] * len(names)}
            counts = {"kept": 10, "overwritten": 6, "shared": 4, "neither": 20}
            task.events = [{"kind": "fusion", "step": 4, "units": 40, **counts}]
        task.per_tensor = {"names": names, "series": series}
        task.loss = [(1, 3.0), (2, None), (4, 1.0)]
        task.sizes, task.hashes = {"train": 8, "test": 50}, {"train": "a" * 64, "test": f"{k}" * 64}
    return record


def rounds_record(**fields: Any) -> RunRecord:
    """Make a run whose method fused twice with masks in each task from the second on."""
    record = make_record("recurrent-kif", full=True, data_class="real replay", **fields)
    names = llama_names()
    for k, task in enumerate(record.tasks):
        task.loss = [(1, 2.0), (4, 0.05)]
        if not k:
            continue
        inner = [1.0 + (5 * i + k) % 7 for i in range(len(names))]
        outer = [1.0 + (3 * i + k) % 5 for i in range(len(names))]
        masks = {
            "mask_in": [0.2] * len(names),
            "mask_out": [0.3] * len(names),
            "mask_both": [0.1] * len(names),
        }
        series = {"inner_importance": inner, "outer_importance": outer, **masks, "moved": inner[::-1]}
        task.per_tensor = {"names": names, "series": series}
        task.events = [{"kind": "fusions", "step": 4, "rounds": 2, "steps": [2, 4], "mask_overlap": 0.1}]
    return record


def hostile_record() -> RunRecord:
    """Make a record in which every text that a user or a model can choose is hostile."""
    record = kif_record(tasks=[f"{HOSTILE_NAME} {i}" for i in range(3)])
    text = HOSTILE.replace("\ud800", "")
    record.method.name = record.stream = text
    record.method.settings = {text: text, "list": [text]}
    record.config = {text: {text: text}, "model": {"name": text, "adapter": {"kind": text}}}
    record.model = {"name": text, "family": text}
    record.versions = record.machine = {text: text, "device_name": text}
    record.memory = {"examples": 3, "tasks": [text]}
    record.warnings = record.notes = [text]
    record.overlaps = [{"task_a": text, "split_a": text, "task_b": text, "split_b": text, "count": 2}]
    scores = {"before": {text: 1.0}, "after": {text: 1.0}}
    record.lineage = [{"event": "refused", "when": text, "task": text, "reason": text, **scores}]
    for task in record.tasks:
        task.metric, task.labels, task.notes = text, [text], [text]
        task.hashes, task.sizes = {text: text}, {text: 3}
        task.format, task.metric_why, task.passed_over, task.repeated = text, text, [text], {text: 2}
        task.per_tensor["names"] = [f"{text}.{i}.{text}" for i in range(len(task.per_tensor["names"]))]
    return record


def write_run(folder: Path, record: RunRecord, *, examples: int = 12) -> Path:
    """Write a record with predictions of its tasks, some of them lost, kept and gained."""
    record.save(folder)
    last = len(record.tasks)
    for number, task in enumerate(record.tasks[:-1], start=1):
        inputs = [f"example {i} of {number}: is it good or bad?" for i in range(examples)]
        write_predictions(folder, number, task.name, {text: i % 4 != 0 for i, text in enumerate(inputs)})
        write_predictions(folder, last, task.name, {text: i % 3 != 0 for i, text in enumerate(inputs)})
    return folder
