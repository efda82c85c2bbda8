"""Identifies a base model by the files that decide what it computes, each with its hash."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from kifuse.errors import ModelError
from kifuse.io.storage import sha256_file
from kifuse.models.catalog import BUNDLED

DECIDING = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
    "*.model",
)
"""Names of the files in a model's folder that decide its results."""

Files = dict[str, dict[str, Any]]
"""For each file by its name: `bytes`, `modified` (nanoseconds) and `sha256`."""


def identity(name: str, source: str, config: Any, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what distinguishes a base model from another one.

    Args:
        name: The user's name for the model.
        source: Where the model's files are: a folder or a hub id.
        config: The model's configuration, as it was loaded.
        known: The result of an earlier call; a file of the same size and time is not read again.

    Returns:
        `files` of a model's folder, or the `commit` of a model from a hub. Empty for a bundled model, because
        its package has its own hash, and for a model that was loaded elsewhere.
    """
    if name in BUNDLED:
        return {}
    folder = Path(source)
    if folder.is_dir():
        return {"files": _files(folder, (known or {}).get("files") or {})}
    commit = getattr(config, "_commit_hash", None)
    return {"commit": commit} if commit else {}


def refuse_another(name: str, found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a base model that differs from the recorded one.

    Args:
        name: The user's name for the model.
        found: The present result of `identity`.
        known: The recorded result; empty in the record of an earlier kifuse.

    Raises:
        ModelError: It differs; the message names the first file that differs.
    """
    remedy = "Put the model back as it was, say where it is now, or begin a new folder."
    if known.get("commit") and found.get("commit") not in (None, known["commit"]):
        raise ModelError(
            f"model.name: {name} is at commit {found['commit']}, expected {known['commit']}, which the "
            f"training began with. {remedy}"
        )
    if not known.get("files") or not found.get("files"):
        return
    old, new = known["files"], found["files"]
    for file in sorted({*old, *new}):
        if file not in new:
            what = "is missing"
        elif file not in old:
            what = "was not there when the training began"
        elif new[file]["sha256"] != old[file]["sha256"]:
            what = "is not the file that the training began with (SHA-256 differs)"
        else:
            continue
        raise ModelError(f"model.name: {Path(name) / file}: {what}: this is another base model. {remedy}")


def _files(folder: Path, known: Mapping[str, Any]) -> Files:
    found: Files = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or not any(fnmatch(path.name, pattern) for pattern in DECIDING):
            continue
        stat = path.stat()
        facts = {"bytes": stat.st_size, "modified": stat.st_mtime_ns}
        old = known.get(path.name, {})
        same = all(old.get(key) == value for key, value in facts.items())
        sha256 = old["sha256"] if same else _hash(str(path.resolve()), *facts.values())
        found[path.name] = {**facts, "sha256": sha256}
    return found


@lru_cache(maxsize=256)
def _hash(path: str, size: int, modified: int) -> str:
    """The hash of a file's content; computed once per process for a file of the same size and time."""
    return sha256_file(path)
