"""Writes the folder of an export, whole or not at all, and reports what was exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kifuse import __version__
from kifuse.adapters.folder import CONFIG, WEIGHTS
from kifuse.errors import ConfigError, RunError
from kifuse.exporting.card import card, results, summary
from kifuse.exporting.hub import check_repo, push
from kifuse.exporting.merged import DTYPES, write_merged
from kifuse.exporting.plain import refuse_form, write_adapter
from kifuse.exporting.serving import Server, servers
from kifuse.exporting.source import Base, Source, open_source, public_base
from kifuse.io.storage import read_json, sha256_file, write_json, write_text
from kifuse.io.whole_folders import replace_folder
from kifuse.models.catalog import BUNDLED
from kifuse.models.identity import identity, refuse_another
from kifuse.models.loading import empty_model
from kifuse.models.tokenizer import load_tokenizer

FACTS = "kifuse.json"
"""File that tells programs what was learned; a folder with it is an export and may be replaced."""


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        folder: The folder of the export.
        form: `adapter` or `merged`.
        base: Name and licence of the base model.
        tasks: Names of the tasks learned, in their order.
        files: SHA-256 of each file, by name.
        servers: Whether and how vLLM, llama.cpp and Ollama serve it.
        probe: What the probe of a merged model found; None for an adapter.
        notes: What was guessed, is missing or differs.
        commit: The address on the hub; empty where nothing was pushed.
    """

    folder: Path
    form: str
    base: Base
    tasks: list[str]
    files: dict[str, str]
    servers: list[Server]
    probe: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    commit: str = ""

    def facts(self) -> dict[str, Any]:
        """Return the export as JSON values."""
        return {**asdict(self), "folder": str(self.folder)}


def export(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    after: int | str | None = None,
    merged: bool = False,
    precision: str = "base",
    may_differ: int = 0,
    model: str | None = None,
    base: str | None = None,
    licence: str | None = None,
    push_to_hub: str | None = None,
    private: bool = True,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Export:
    """Write what a run or a learner has learned as a folder that loads without kifuse.

    Args:
        folder: The folder of the run or learner.
        output: The folder to write; None for `export` in that folder. An earlier export there is replaced.
        after: Number of tasks, or the name of the last one, whose state is exported; None for the last state.
        merged: Export the whole model, with what was learned in its weights, instead of the adapter.
        precision: Precision of a merged model's weights: `base`, `fp32`, `bf16` or `fp16`.
        may_differ: How many answers on the probe of a merged model may differ from the adapter's.
        model: The base model's name or folder, if it is not where the record says.
        base: Name of the base model for others, such as a hub id; None for the name that is known.
        licence: Licence of the base model; None for the one in its own card.
        push_to_hub: The repository on the hub to upload the folder to.
        private: Whether a repository that is made there is private.
        trust_remote_code: Run Python code that comes with the model; the setting in the folder does not
            count.
        say: Called with lines about what is going on.

    Raises:
        KifuseError: There is nothing to export, a file is damaged, the base model is another one than on
            record, the method's adapter cannot be exported in this form, the merged model gives other
            answers, or the folder cannot be written.
    """
    if precision not in ("base", *DTYPES) or may_differ < 0:
        raise ConfigError(
            f"export: found precision {precision!r} and may_differ {may_differ}, expected one of base, "
            f"{', '.join(DTYPES)}, and a number of 0 or more."
        )
    if push_to_hub is not None:
        check_repo(push_to_hub)
    source = open_source(Path(folder).expanduser(), after)
    refuse_form(source, merged=merged)
    target = Path(output).expanduser() if output is not None else source.folder / "export"
    _refuse_other(target)
    name = _loaded_by(source, model)
    loaded = load_tokenizer(name, trust_remote_code=trust_remote_code, say=say)
    told = public_base(name, loaded.source, base, licence)
    notes = _notes(source, told, name)
    found: dict[str, Any] = {"probe": None}

    def fill(partial: Path) -> None:
        outline, encoder_decoder = empty_model(loaded.source, trust_remote_code=trust_remote_code)
        known = {key: source.record.model[key] for key in ("files", "commit") if key in source.record.model}
        refuse_another(name, identity(name, loaded.source, outline.config, known), known)
        if merged:
            found["probe"] = write_merged(
                source,
                name,
                partial,
                precision=precision,
                may_differ=may_differ,
                trust_remote_code=trust_remote_code,
                say=say,
            )
            config, tensors = None, []
        else:
            write_adapter(source, told.name, partial, lambda: outline)
            config, tensors = read_json(partial / CONFIG), _tensor_names(partial / WEIGHTS)
        _write_tokenizer(loaded.tokenizer, partial)
        family = outline.config.model_type
        found["servers"] = servers(config, tensors, family, encoder_decoder, told.name)
        text = card(
            source,
            told,
            family,
            found["servers"],
            encoder_decoder=encoder_decoder,
            probe=found["probe"],
            notes=notes,
        )
        write_text(partial / "README.md", text)
        write_json(partial / FACTS, _facts(source, told, found["probe"]))
        _refuse_private(partial, [source.folder.resolve(), Path.home(), Path.cwd(), Path(name)])

    try:
        replace_folder(target, fill)
    except BaseException as error:
        shutil.rmtree(target.with_name(f".{target.name}.partial"), ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(f"{target}: cannot be written: {error.strerror or error}.") from error
        raise
    for note in notes:
        say(note)
    commit = ""
    if push_to_hub is not None:
        message = f"kifuse {__version__}: {source.record.method.name} after {source.count} tasks"
        commit = push(target, push_to_hub, private=private, message=message)
    return Export(
        folder=target,
        form="merged" if merged else "adapter",
        base=told,
        tasks=source.tasks,
        files={path.name: sha256_file(path) for path in sorted(target.iterdir())},
        servers=[each.placed(target) for each in found["servers"]],
        probe=found["probe"],
        notes=notes,
        commit=commit,
    )


def _refuse_other(target: Path) -> None:
    """Refuse to replace a folder that is no export.

    Raises:
        RunError: The folder is there, and is no export.
    """
    if target.is_dir() and any(target.iterdir()) and not (target / FACTS).is_file():
        raise RunError(f"{target}: is not empty and holds no export. Name a new or empty folder.")
    if target.exists() and not target.is_dir():
        raise RunError(f"{target}: is a file. Name a folder.")


def _loaded_by(source: Source, model: str | None) -> str:
    """The name by which the base model is loaded.

    Raises:
        RunError: The model was given as an object, and `model` does not name it.
    """
    if model is None and source.record.model.get("given"):
        raise RunError(
            f"{source.folder}: its model was given as an object ({source.record.model['name']}). Name the "
            "folder or hub id that it was loaded from: --model, or model=."
        )
    return model or source.record.config["model"]["name"]


def _notes(source: Source, base: Base, name: str) -> list[str]:
    """The notes that go on the card and are said."""
    notes = []
    if not base.on_hub:
        notes.append(
            f"Only the folder's name of the base model is known, {base.name}. Give its name on the hub with "
            "--base."
        )
    if base.licence is None:
        notes.append("The licence of the base model is not known. Give it with --licence.")
    if name in BUNDLED:
        notes.append(
            f"It was trained on the weights of {BUNDLED[name].package}, which were quantised once, so the "
            f"weights of {base.name} differ a little."
        )
    quantization = source.record.config["model"].get("quantization", "none")
    if quantization != "none":
        notes.append(f"It was trained and scored on the base model in {quantization}.")
    if "adapter" in source.record.model:
        notes.append("It started from an adapter made elsewhere, whose training data is not known.")
    return notes


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer and its chat template, without the keys that say where it was loaded from."""
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    here = ("name_or_path", "is_local", "local_files_only")
    write_json(file, {key: value for key, value in read_json(file).items() if key not in here})


def _facts(source: Source, base: Base, probe: dict[str, Any] | None) -> dict[str, Any]:
    """The facts about what was learned, for programs; without paths, and without any example."""
    record = source.record
    return {
        "kifuse_version": __version__,
        "base": asdict(base),
        "method": {"name": record.method.name, "settings": record.method.settings},
        "rendering": record.rendering.get("form", "plain"),
        "probe": probe,
        "summary": summary(record, source.count),
        "tasks": [
            {
                "name": each.task.name,
                "metric": each.task.metric,
                "examples": each.task.sizes,
                "sha256": each.task.hashes,
                "before": each.before,
                "right_after": each.learned,
                "now": each.now,
            }
            for each in results(source)
        ],
    }


def _tensor_names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="np") as tensors:
        return list(tensors.keys())


def _refuse_private(folder: Path, places: list[Path]) -> None:
    """Make sure that no file names a path on this machine.

    Raises:
        RunError: One does.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for place in places:
            written = json.dumps(str(place))[1:-1]
            # "/" alone is in every text
            known = place.is_absolute() and len(place.parts) > 1
            if known and (f"{place}/" in text or f"{written}/" in text):
                raise RunError(f"export: {path.name} would name {place}, so nothing was written.")
