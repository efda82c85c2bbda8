"""Removes the texts of a task from a learner's folder and history; an interrupted removal is finished later.

A journal, `forgetting.json`, is written first and removed last. It holds none of the texts: only the task's
name, the keys of what a method stored with the task's examples, and the hash before and after of each list of
files that changes, so that records can be given the new hash.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from kifuse.errors import KifuseError, RunError
from kifuse.io.storage import (
    json_text,
    read_json,
    read_tensors,
    sha256_file,
    sha256_text,
    write_json,
    write_tensors,
    write_text,
)
from kifuse.record.run_record import FILE, RENDERED, RunRecord

JOURNAL = "forgetting.json"
LEFT_OUT = "left out: the task was forgotten"

_STORED = "stored_tensors."


def begin(folder: Path, task: str, when: str, stored: Iterable[str]) -> None:
    """Write the journal. From then on the task will be forgotten, now or when the folder is opened next.

    Args:
        folder: The learner's folder.
        task: The task's name.
        when: The time, for the record.
        stored: Keys of what a method stored with the task's examples.
    """
    found = {"task": task, "when": when, "stored": sorted(stored), "lists": {}}
    write_json(folder / JOURNAL, found)


def is_begun(folder: Path) -> bool:
    """Whether a task is being forgotten in the folder, or was when the process was killed."""
    return (folder / JOURNAL).is_file()


def finish(folder: Path, record: RunRecord, say: Callable[[str], None]) -> list[str]:
    """Do everything that the journal asks for; each step may have been done before.

    Call it while the folder is held.

    Args:
        folder: The learner's folder.
        record: The learner's record; it is changed in place and saved.
        say: Called with a line about a damaged file that was removed, since nobody can tell what it holds.

    Returns:
        What was removed or rewritten, relative to the folder.

    Raises:
        RunError: A list of files is not the one that the record knows.
        KifuseError: A file cannot be written.
    """
    journal = _Journal(folder)
    task, touched = journal.task, list[str]()
    roots = [folder, *sorted(folder.glob("rolled-back/*")), *sorted(folder.glob("set-aside/*"))]
    others = _records(roots[1:], say)
    # files that only quote the texts go first: the files that go last tell what the texts are
    texts = _known_texts(roots, task)
    for root in roots:
        touched += _without_in_rendered(root, folder, task) + _without_lines(root, folder, texts)
    for root, each in [*others.items(), (folder, record)]:
        _without_texts(each, task, texts)
        each.save(root)
    for root in roots:
        for state in sorted(root.glob("state/after-*")):
            touched += _without_in_state(root, state, journal, say)
        gone = [file for file in _kept_files(root) if _name_in(file) == task]
        gone += [*_found(root, f"predictions/after-*/{escape(task)}.jsonl"), *root.glob("tokens")]
        for file in [*gone, root / "checkpoint"]:
            if file.exists():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
                touched.append(file.relative_to(folder).as_posix())
    for root, each in [*others.items(), (folder, record)]:
        _put_on_record(each, journal)
        each.save(root)
        touched.append((root / FILE).relative_to(folder).as_posix())
    return sorted(set(touched))


def end(folder: Path) -> None:
    """Remove the journal."""
    (folder / JOURNAL).unlink(missing_ok=True)


class _Journal:
    """The journal, with the old and new hashes of the lists of files that were written again."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / JOURNAL
        found = read_json(self.file)
        try:
            self.task, self.when = str(found["task"]), str(found["when"])
            self.stored, self.lists = tuple(found["stored"]), dict(found["lists"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{self.file}: this is not the list of what is removed for a forgotten task; restore it."
            ) from error

    def renamed(self, before: str, after: str) -> None:
        """Note the new hash of a list of files, before that list is written."""
        self.lists[before] = after
        found = {"task": self.task, "when": self.when, "stored": list(self.stored), "lists": self.lists}
        write_json(self.file, found)

    def now(self, seal: str | None) -> str | None:
        """The hash that a list of files has now."""
        return None if seal is None else self.lists.get(seal, seal)


def _without_in_state(root: Path, state: Path, journal: _Journal, say: Callable[[str], None]) -> list[str]:
    """Remove the task from the memory and the method's state in a state folder, and seal both again."""
    changed = _without_in_memory(state, journal.task, say) + _without_in_method(state, journal, say)
    manifest = state / "manifest.json"
    if not manifest.is_file():
        return [file.as_posix() for file in changed]
    before = sha256_file(manifest)
    if before in journal.lists.values():
        return []
    found = read_json(manifest)
    for file in (state / "memory.json", state / "method.json", state / "method.safetensors"):
        # the list names files by where the state was at first; it may have been moved since
        name = f"state/{state.name}/{file.name}"
        if name in found.get("files", {}) and file.is_file():
            found["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    text = json_text(manifest, found)
    if sha256_text(text) == before:
        return []
    journal.renamed(before, sha256_text(text))
    write_text(manifest, text)
    top = journal.file.parent
    return [path.relative_to(top).as_posix() for path in (*changed, manifest)]


def _without_in_memory(state: Path, task: str, say: Callable[[str], None]) -> list[Path]:
    file = state / "memory.json"
    if not file.is_file():
        return []
    try:
        found = read_json(file)
        kept = [entry for entry in found["tasks"] if entry["name"] != task]
        same = len(kept) == len(found["tasks"])
    except (KifuseError, KeyError, TypeError):
        say(f"{file} is damaged, so its content is not known; it was removed")
        file.unlink()
        return [file]
    if same:
        return []
    write_json(file, {**found, "tasks": kept})
    return [file]


def _without_in_method(state: Path, journal: _Journal, say: Callable[[str], None]) -> list[Path]:
    """Drop what a method stored with the task's examples, and what it holds under the task's name."""
    described, file = state / "method.json", state / "method.safetensors"
    if not (described.is_file() and file.is_file()):
        return []
    try:
        found = read_json(described)
        values = found["values"]
        tensors, metadata = read_tensors(file)
    except (KifuseError, KeyError, TypeError):
        say(f"{described} is damaged, so its content is not known; both files were removed")
        described.unlink()
        file.unlink()
        return [described, file]
    task = journal.task
    kept_values = {
        key: {n: v for n, v in value.items() if n != task} if isinstance(value, dict) else value
        for key, value in values.items()
    }
    dropped = tuple(f"{_STORED}{key}." for key in journal.stored)
    kept = {name: tensor for name, tensor in tensors.items() if not (dropped and name.startswith(dropped))}
    if kept_values == values and sorted(kept) == found.get("tensors"):
        return []
    # the tensors first: if a kill leaves a description that names too many, the next call corrects it
    write_tensors(file, kept, metadata or None)
    write_json(described, {**found, "values": kept_values, "tensors": sorted(kept)})
    return [described, file]


def _without_in_rendered(root: Path, folder: Path, task: str) -> list[str]:
    file = root / RENDERED
    if not file.is_file():
        return []
    try:
        found = read_json(file)
    except KifuseError:
        found = None
    if not isinstance(found, dict):
        file.unlink()
    elif task in found:
        write_json(file, {name: value for name, value in found.items() if name != task})
    else:
        return []
    return [file.relative_to(folder).as_posix()]


def _without_lines(root: Path, folder: Path, texts: set[str]) -> list[str]:
    """Remove the lines of a log that hold one of the texts."""
    file = root / "log.txt"
    if not file.is_file():
        return []
    lines = file.read_text("utf-8", "replace").splitlines(keepends=True)
    kept = [line for line in lines if not _holds(line, texts)]
    if len(kept) == len(lines):
        return []
    write_text(file, "".join(kept))
    return [file.relative_to(folder).as_posix()]


def _records(roots: Iterable[Path], say: Callable[[str], None]) -> dict[Path, RunRecord]:
    """Read the records of what was moved aside; a damaged one is removed."""
    found = {}
    for root in roots:
        if not (root / FILE).is_file():
            continue
        try:
            found[root] = RunRecord.load(root)
        except KifuseError:
            say(f"{root / FILE} is damaged, so its content is not known; it was removed")
            (root / FILE).unlink()
    return found


def _without_texts(record: RunRecord, task: str, texts: set[str]) -> None:
    """Remove the texts of a task from a record."""

    def clean(lines: list[str]) -> list[str]:
        return [LEFT_OUT if _holds(line, texts) else line for line in lines]

    for entry in record.tasks:
        entry.events = [_without_examples(event, entry.name, task) for event in entry.events]
        entry.notes, entry.passed_over = clean(entry.notes), clean(entry.passed_over)
    record.warnings, record.notes = clean(record.warnings), clean(record.notes)


def _put_on_record(record: RunRecord, journal: _Journal) -> None:
    """Note on a record that a task was forgotten, and the new hashes of the files that were written again."""
    task, names = journal.task, [entry.name for entry in record.tasks]
    for entry in record.tasks:
        entry.seal = journal.now(entry.seal)
    if task in names:
        place = names.index(task)
        entry = record.tasks[place]
        if entry.train_steps is None:  # it was never learned, and nothing is left of it
            record.tasks = record.tasks[:place]
            record.scores = [score for score in record.scores if score.task < place]
        else:
            entry.kept, entry.forgotten = None, journal.when
            entry.sizes = {**entry.sizes, "test": 0}
        for score in record.scores:
            if score.task == place:
                score.predictions = None
    for place, entry in enumerate(record.watched):
        if entry.name == task:
            entry.kept, entry.forgotten = None, entry.forgotten or journal.when
            for score in record.watch_scores:
                if score.task == place:
                    score.predictions = None
    if not any((e.get("event"), e.get("when")) == ("forgotten", journal.when) for e in record.lineage):
        record.lineage.append({"event": "forgotten", "when": journal.when, "task": task})
    if isinstance(record.memory.get("tasks"), list):
        record.memory["tasks"] = [name for name in record.memory["tasks"] if name != task]


def _without_examples(event: dict[str, Any], of: str, task: str) -> dict[str, Any]:
    """Remove a task's examples from an event; its `of`, or else its own task, says whose they are."""
    if event.get("of", of) != task or not isinstance(event.get("examples"), list):
        return event
    return {**event, "examples": []}


def _known_texts(roots: Iterable[Path], task: str) -> set[str]:
    """Collect the texts of a task that are still there: parts of more than two words or 24 characters."""
    found: set[str] = set()
    for root in roots:
        for file in _kept_files(root):
            if _name_in(file) == task:
                found |= _texts_of(_read(file).get("test")) | _texts_of(_read(file).get("probe"))
        for file in root.glob("state/after-*/memory.json"):
            for entry in _read(file).get("tasks") or ():
                if isinstance(entry, Mapping) and entry.get("name") == task:
                    found |= _texts_of(entry.get("examples"))
    return found


def _kept_files(root: Path) -> list[Path]:
    """The files with the examples of learned and of watched tasks."""
    return [*_found(root, "tasks/*.json"), *_found(root, "watched/*.json")]


def _found(root: Path, pattern: str) -> list[Path]:
    """Find files by a pattern, also those that got a number behind their name when they were moved aside."""
    return [*root.glob(pattern), *root.glob(f"{pattern} (*)")]


def _texts_of(examples: Any) -> set[str]:
    parts = [
        part
        for each in examples or ()
        for part in (each.get("body"), each.get("head"), *each.get("references", ()))
        if isinstance(part, str)
    ]
    # a label such as "yes" is in many lines, and says nothing about anybody
    return {part.strip() for part in parts if len(part.split()) > 2 or len(part.strip()) > 24}


def _holds(line: str, texts: set[str]) -> bool:
    return any(text in line or json.dumps(text)[1:-1] in line for text in texts)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except KifuseError:
        return {}
    return found if isinstance(found, dict) else {}


def _name_in(file: Path) -> Any:
    return _read(file).get("name")
