"""The model card: what was learned in which order, what was kept, on which data, and how to load it.

Names of tasks, metrics and models are text from outside. In Markdown every sign that has a meaning is
escaped; in the metadata the YAML writer does this.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kifuse import __version__
from kifuse.exporting.serving import Server
from kifuse.exporting.source import Base, Source
from kifuse.record.run_record import RunRecord, TaskRecord
from kifuse.reporting.wording import for_markdown
from kifuse.terminal.safe_console import without_control

_SIGNS = "".join(set(string.punctuation) - set("-,;.'\"&<>=/%?^"))
"""The signs that may have a meaning in Markdown."""


def escaped(text: str) -> str:
    """Make a text from outside safe for Markdown: one line, no mark-up, no HTML, no link."""
    line = without_control(" ".join(text.split())).replace("&", "&amp;")
    return for_markdown(line, _SIGNS).replace("www.", "www\\.")


@dataclass(frozen=True)
class TaskResult:
    """A learned task as the card shows it; scores from 0 to 100, None where they were not measured."""

    task: TaskRecord
    before: float | None
    learned: float | None
    now: float | None


def results(source: Source) -> list[TaskResult]:
    """The scores of each learned task: before it was learned, right after, and in the exported state."""
    cells = {(cell.after, cell.task): cell.score for cell in source.record.scores}
    return [
        TaskResult(task, cells.get((i, i)), cells.get((i + 1, i)), cells.get((source.count, i)))
        for i, task in enumerate(source.record.tasks[: source.count])
    ]


def summary(record: RunRecord, count: int) -> dict[str, float | None]:
    """AP, FWT, BWT and forgetting over the exported tasks, from 0 to 100; None where they are not known."""
    matrix = record.matrix()
    jointly = record.method.data_class == "all data"
    found = {"AP": matrix.average_performance(count)}
    if not jointly:
        found |= {"FWT": matrix.forward_transfer(count), "BWT": matrix.backward_transfer(count)}
        found["forgetting"] = matrix.forgetting(count)
    return {name: metric.value for name, metric in found.items()}


def card(
    source: Source,
    base: Base,
    family: str,
    servers: Sequence[Server],
    *,
    encoder_decoder: bool,
    probe: Mapping[str, Any] | None,
    notes: Sequence[str],
) -> str:
    """Write the card.

    Args:
        source: What is exported.
        base: The base model.
        family: `model_type` of the base model.
        servers: For each server whether and how it serves the export.
        encoder_decoder: Whether it is an encoder-decoder model.
        probe: What the probe of a merged model found; None for an adapter.
        notes: Further notes, in sentences.

    Returns:
        Markdown with the hub's metadata before it.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    task_type = "text2text-generation" if encoder_decoder else "text-generation"
    title = f"{base.name.rpartition('/')[2]}-{source.record.method.name}"
    found = results(source)
    scored = [
        EvalResult(
            task_type=task_type,
            dataset_type=_plain(each.task.name),
            dataset_name=_plain(each.task.name),
            dataset_split="test",
            dataset_args={"examples": each.task.sizes.get("test"), "sha256": each.task.hashes.get("test")},
            metric_type=_plain(each.task.metric),
            metric_value=round(each.now, 2),
        )
        for each in found
        if each.now is not None
    ]
    data = ModelCardData(
        base_model=base.name if base.on_hub else None,
        base_model_relation="finetune" if probe is not None else "adapter",
        library_name="transformers" if probe is not None else "peft",
        license=base.licence,
        pipeline_tag=task_type,
        tags=["kifuse", "continual-learning", source.record.method.name, family],
        model_name=_plain(title) if scored else None,
        eval_results=scored or None,
    )
    body = "\n\n".join(_body(source, base, title, found, servers, probe, notes, encoder_decoder))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n", ignore_metadata_errors=False))


def _plain(text: str) -> str:
    return without_control(" ".join(text.split()))


def _body(
    source: Source,
    base: Base,
    title: str,
    found: Sequence[TaskResult],
    servers: Sequence[Server],
    probe: Mapping[str, Any] | None,
    notes: Sequence[str],
    encoder_decoder: bool,
) -> list[str]:
    record = source.record
    what = "An adapter for" if probe is None else "A merged model, made of"
    licence = f", licence {escaped(base.licence)}" if base.licence else ", whose licence is not known here"
    parts = [
        f"# {escaped(title)}",
        f"{what} {escaped(base.name)}{licence}. It learned {source.count} "
        f"{'task' if source.count == 1 else 'tasks'} one after another with the method "
        f"{escaped(record.method.name)} of kifuse {__version__} "
        f"({escaped(record.config['model']['adapter']['kind'])}; class of the method: "
        f"{record.method.data_class}).",
        "## What was learned, in this order",
        _table(found),
        _told(summary(record, source.count)),
        "Scores are from 0 to 100, on the test examples of each task: before it was learned, right after, "
        "and now, in the state of this export.",
        "## Data",
        "No example is part of this export. These are the SHA-256 of the examples as they were read:",
        _hashes(found),
        "## Use",
        _python(base, probe is not None, encoder_decoder),
        f"The model was trained on examples in this form: {escaped(record.rendering.get('form', 'plain'))}.",
    ]
    if probe is not None:
        of = "the learned tasks' test examples" if probe["of_tasks"] else "general questions"
        parts.append(
            f"The weights are in {probe['precision']}. Of {probe['questions']} questions ({of}) this model "
            f"answers {probe['same']} with exactly the same words as the adapter on its base model."
        )
    parts += ["## Servers", "`EXPORT` is the folder of these files, `BASE` that of the base model."]
    for server in servers:
        if server.refuses:
            parts.append(f"**{server.name}** cannot load it: {escaped(server.refuses)}.")
        else:
            parts += [f"**{server.name}**:", "```bash\n" + "\n".join(server.commands) + "\n```"]
    if notes:
        parts += ["## Notes", "\n".join(f"- {escaped(note)}" for note in notes)]
    return parts


def _table(found: Sequence[TaskResult]) -> str:
    lines = ["| | task | metric | before | right after | now |", "| --- | --- | --- | --: | --: | --: |"]
    for number, each in enumerate(found, start=1):
        scores = " | ".join(_points(score) for score in (each.before, each.learned, each.now))
        lines.append(f"| {number} | {escaped(each.task.name)} | {escaped(each.task.metric)} | {scores} |")
    return "\n".join(lines)


def _hashes(found: Sequence[TaskResult]) -> str:
    lines = ["| task | split | examples | SHA-256 |", "| --- | --- | --: | --- |"]
    for each in found:
        for split, count in each.task.sizes.items():
            if count:
                name, digest = escaped(each.task.name), each.task.hashes.get(split, "")
                lines.append(f"| {name} | {split} | {count} | `{digest}` |")
    return "\n".join(lines)


def _told(numbers: Mapping[str, float | None]) -> str:
    meaning = {
        "AP": "average score of all tasks",
        "FWT": "score just before a task is learned",
        "BWT": "change of earlier tasks since they were learned",
        "forgetting": "fall of earlier tasks from their best score",
    }
    known = {name: value for name, value in numbers.items() if value is not None}
    if not known:
        return "Not every score was measured, so there is no average."
    return "\n".join(f"- {name}, {meaning[name]}: {value:.1f}" for name, value in known.items())


def _points(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"


def _python(base: Base, merged: bool, encoder_decoder: bool) -> str:
    kind = "AutoModelForSeq2SeqLM" if encoder_decoder else "AutoModelForCausalLM"
    if merged:
        lines = [
            f"from transformers import {kind}, AutoTokenizer",
            "",
            f'model = {kind}.from_pretrained("EXPORT")',
        ]
    else:
        lines = [
            "from peft import PeftModel",
            f"from transformers import {kind}, AutoTokenizer",
            "",
            f"model = {kind}.from_pretrained({_plain(base.name)!r})",
            'model = PeftModel.from_pretrained(model, "EXPORT")',
        ]
    lines.append('tokenizer = AutoTokenizer.from_pretrained("EXPORT")')
    return "```python\n" + "\n".join(lines) + "\n```"
