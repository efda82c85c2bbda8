"""Damaged rows of every format in files of every kind, and the check that all of it is read or named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pandas as pd
import pyarrow.parquet as parquet
from datasets import Dataset, DatasetDict, disable_progress_bars, load_from_disk

from fuzzing import mutations
from fuzzing.mutations import Pairs, write_json
from kifuse.errors import KifuseError, printable
from kifuse.tasks import Example, TaskStream, read_stream
from kifuse.tasks.any_task import as_task

disable_progress_bars()

Rows = list[dict[str, Any]]
_MARK = re.compile(r"mark\d{8}")
TRAIN = ["train", "Train", "TRAIN", "training", "train_sft", "data"]
TEST = ["test", "Test", "test_sft", "testing"]
DEV = ["dev", "validation", "valid", "val", "eval"]
KINDS = [
    "jsonl",
    "ndjson",
    "json",
    "lines.json",
    "pretty.json",
    "jsonl.gz",
    "json.gz",
    "csv",
    "tsv",
    "csv.gz",
]
KINDS += ["parquet", "saved"]


def _text(rng: Random) -> str:
    """Make a text with a mark that occurs nowhere else."""
    words = rng.choice(["ship", "Größe", "日本", "two\nlines", "a, b; c", "x"])
    return f"mark{rng.randrange(10**8):08} {words}"


def _turns(rng: Random, who: str, what: str, user: str, assistant: str) -> list[dict[str, Any]]:
    turns = [{who: "system", what: _text(rng)}] if rng.random() < 0.4 else []
    for _ in range(rng.choice([1, 1, 2])):
        turns += [{who: user, what: _text(rng)}, {who: assistant, what: _text(rng)}]
    return turns


def _calls(rng: Random) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": _text(rng)}}}
    turns = [{"role": "user", "content": _text(rng)}]
    turns += [{"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "content": _text(rng)}, {"role": "assistant", "content": _text(rng)}]
    tools = [{"type": "function", "function": {"name": "look", "description": _text(rng)}}]
    return {"messages": turns, "tools": tools}


FORMATS: dict[str, Callable[[Random], dict[str, Any]]] = {
    "pairs": lambda rng: {"id": _text(rng)[:12], "input": _text(rng), "output": _text(rng)},
    "options": lambda rng: {
        "input": _text(rng),
        "output": "a",
        "options": ["a", "b"],
        "instruction": _text(rng),
    },
    "references": lambda rng: {"input": _text(rng), "output": [_text(rng), _text(rng)]},
    "completion": lambda rng: {"prompt": _text(rng), "completion": _text(rng)},
    "completion chat": lambda rng: {
        "prompt": [{"role": "user", "content": _text(rng)}],
        "completion": [{"role": "assistant", "content": _text(rng)}],
    },
    "alpaca": lambda rng: {"instruction": _text(rng), "input": _text(rng), "output": _text(rng)},
    "history": lambda rng: {
        "instruction": _text(rng),
        "input": _text(rng),
        "output": _text(rng),
        "system": _text(rng),
        "history": [[_text(rng), _text(rng)]],
    },
    "question": lambda rng: {"question": _text(rng), "context": _text(rng), "answers": [_text(rng)]},
    "trace": lambda rng: {"prompt": _text(rng), "answer": _text(rng)},
    "label": lambda rng: {"sentence": _text(rng), "label": rng.choice(["good", "bad"])},
    "text": lambda rng: {"text": _text(rng)},
    "messages": lambda rng: {"messages": _turns(rng, "role", "content", "user", "assistant")},
    "sharegpt": lambda rng: {"conversations": _turns(rng, "from", "value", "human", "gpt")},
    "calls": _calls,
}


def _data_set(rows: Rows) -> Dataset:
    """Make a data set of rows; with nested values, datasets takes twice as long for each level."""
    level: list[Any] = list(rows)
    for _ in range(20):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError("values too deep for datasets")
    names = list(dict.fromkeys(name for row in rows for name in row))
    # with a name: to make a name by hashing takes half a minute if rows have thousands of fields
    with mock.patch("datasets.arrow_dataset.generate_fingerprint", return_value="rows"):
        return Dataset.from_list([{name: row.get(name) for name in names} for row in rows])


def write(path: Path, kind: str, rows: Rows) -> Path:
    """Write rows as a file or folder of a kind; `path` has no ending."""
    file = path.with_name(f"{path.name}.{kind.rpartition('.')[2] if kind[-5:] == '.json' else kind}")
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "saved":
        _data_set(rows).save_to_disk(path)
        return path
    if kind == "parquet":
        _data_set(rows).to_parquet(file)
        return file
    file.write_bytes(_bytes(kind, rows))
    return file


def _bytes(kind: str, rows: Rows) -> bytes:
    if kind.endswith(".gz"):
        return gzip.compress(_bytes(kind.removesuffix(".gz"), rows), mtime=0)
    if kind in ("csv", "tsv"):
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
            )
        return out.getvalue().encode()
    if kind == "json":
        return write_json(list(rows)).encode("utf-8", "surrogatepass")
    if kind == "pretty.json":
        return json.dumps(rows, indent=1).encode()
    return "".join(write_json(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def kind_of(path: Path) -> str:
    """Return the kind of a file by its name; for JSON, by its first character."""
    return "saved" if path.is_dir() else path.name.partition(".")[2]


def read(path: Path) -> Rows:
    """Read rows again; raises ValueError or a similar error if that is not possible."""
    kind = kind_of(path)
    if kind == "saved":
        found = load_from_disk(str(path))
        return (
            found.to_list()
            if isinstance(found, Dataset)
            else [row for part in found.values() for row in part]
        )
    if kind == "parquet":
        return parquet.ParquetFile(path).read().to_pylist()
    data = path.read_bytes()
    if kind.endswith(".gz"):
        data, kind = gzip.decompress(data), kind.removesuffix(".gz")
    text = data.decode("utf-8-sig")
    if kind in ("csv", "tsv"):
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == "tsv" else ","))
        return [{str(key): value for key, value in row.items()} for row in rows]
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


# Sound data, and damage


def build(root: Path, rng: Random) -> None:
    """Write two tasks, each with its own format and kind of file."""
    for name in ("colour", "Früchte"):
        make, kind = rng.choice(list(FORMATS.values())), rng.choice(KINDS)
        single = rng.random() < 0.2
        names = [rng.choice(TRAIN), rng.choice(TEST), *([rng.choice(DEV)] if rng.random() < 0.3 else [])]
        renamed = {} if single or rng.random() < 0.8 else {key: f"the {key}" for key in make(Random(0))}  # noqa: S311
        for split in names[:1] if single else names:
            rows = [make(rng) for _ in range(3)]
            rows = [{renamed.get(key, key): value for key, value in row.items()} for row in rows]
            if not single and kind != "saved" and rng.random() < 0.15:
                for part in range(2):
                    write(root / name / f"{split}-0000{part}-of-00002", kind, rows[part:][: 2 - part])
            else:
                write(root / name if single else root / name / split, kind, rows)
        if renamed:
            settings = {"columns": renamed}
            (root / name / "task.json").write_text(json.dumps(settings), encoding="utf-8")


def damage(root: Path, rng: Random, outside: Path) -> None:
    """Damage a value of a row, the bytes of a file, its name, or the folder tree."""
    way = rng.random()
    if way < 0.12:
        mutations.mutate_tree(rng, root, outside)
        return
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not _inside_saved(path)]
    files += [path for path in sorted(root.rglob("*")) if path.is_dir() and (path / "state.json").is_file()]
    path = rng.choice([file for file in files if file.name != "task.json"])
    if way < 0.27:
        _rename(path, rng)
    elif way < 0.8:
        _damage_row(path, rng)
    else:
        inside = path if path.is_file() else rng.choice(sorted(path.iterdir()))
        data = inside.read_bytes()
        if inside.suffix == ".gz" and data[:2] == b"\x1f\x8b" and rng.random() < 0.5:
            with suppress(zlib.error):
                data = gzip.decompress(data)
            inside.write_bytes(gzip.compress(mutations.mutate_bytes(rng, data)))
        else:
            inside.write_bytes(mutations.mutate_bytes(rng, data))


def _inside_saved(path: Path) -> bool:
    return any((folder / "state.json").is_file() for folder in path.parents)


def _rename(path: Path, rng: Random) -> None:
    stem, dot, ending = path.name.partition(".")
    new = [stem.upper(), stem[::-1], stem + "2", "tarin", "validaton", "notes", *TRAIN, *DEV]
    endings = [ending, ending.upper(), "txt", "jsonl.bak", "csv", "json", "jsonl", "xlsx", "jsonl.zst"]
    name = rng.choice(new) + (dot + rng.choice([ending, *endings]) if dot else "")
    twin = path.with_name(name)
    if twin.exists():
        return
    if rng.random() < 0.4:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, twin)
    else:
        path.rename(twin)


def _damage_row(path: Path, rng: Random) -> None:
    """Change a value, add a field, or rename a column; the file keeps its kind."""
    try:
        rows, kind = read(path), kind_of(path)
    except Exception as error:  # after the damage before, no rows are left
        raise ValueError(path) from error
    way = rng.random()
    if way < 0.25:
        field = rng.choice(
            ["instuction", "inptu", "note", "source", "Output", "system", "label", "text", "x" * 99]
        )
        for row in rows[: rng.choice([1, len(rows)])]:
            row[field] = _text(rng)
    elif way < 0.4:
        key = rng.choice(list(rows[0]))
        new = rng.choice([key.upper(), key[:-1], key + " ", "other", "output", "input", "messages"])
        rows = [{new if name == key else name: value for name, value in row.items()} for row in rows]
    elif way < 0.5:
        rng.choice(rows)[rng.choice(list(rows[0]))] = rng.choice(
            [None, "", [], {}, 5, [_text(rng)], {"a": _text(rng)}]
        )
    else:
        at = rng.randrange(len(rows))
        rows[at] = mutations.mutate_value(rng, rows[at])
    if kind in ("csv", "tsv", "csv.gz") and len({len(row) for row in rows}) > 1:
        names = list(dict.fromkeys(name for row in rows for name in row))
        rows = [{name: row.get(name, "") for name in names} for row in rows]
    if kind in ("parquet", "saved"):
        _data_set(rows)  # raises an error, or the rows can be written
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        write(path.with_name(path.name.removesuffix(".parquet")), kind, rows)
    else:
        path.write_bytes(_bytes("json" if path.read_bytes()[:1] == b"[" else kind, rows))


# Reading them with kifuse


def load(root: Path, rng: Random) -> TaskStream:
    """Read all tasks of the folder."""
    return read_stream(root)


def build_rows(root: Path, rng: Random) -> None:
    """Write rows that will be given in memory."""
    make = rng.choice(list(FORMATS.values()))
    (root / "rows.json").write_bytes(_bytes("json", [make(rng) for _ in range(4)]))


def damage_rows(root: Path, rng: Random, outside: Path) -> None:
    """Damage one of the rows."""
    _damage_row(root / "rows.json", rng)


def load_rows(root: Path, rng: Random) -> TaskStream:
    """Give the rows as a list, a data set, a data frame or by split."""
    try:
        rows = json.loads((root / "rows.json").read_text("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise KifuseError(f"{root}: nothing that Python holds") from error
    holder = rng.choice(
        [list, iter, _data_set, pd.DataFrame, _by_split, lambda rows: _by_split(rows, _data_set)]
    )
    try:
        data = holder(rows)
    except Exception:  # the libraries accept fewer rows than kifuse
        data = rows
    try:
        return TaskStream("rows", (as_task(data, name="t", to_learn=False),))
    except KifuseError as error:
        raise KifuseError(f"{root}: {error}") from error


def _by_split(rows: Rows, make: Callable[[Rows], Any] = list) -> Mapping[str, Any]:
    splits = {"train_sft": make(rows[:2]), "test": make(rows[2:3]), "more": make(rows[3:])}
    return DatasetDict(splits) if make is _data_set else splits


# What must hold


def undropped(stream: TaskStream, root: Path) -> str:
    """Say what is in the files and is neither read nor named; empty if there is no such thing.

    Every text of the data holds a mark. A mark that is in a file must be in an example, or the notes about
    unread data must name the file or field that holds it.
    """
    read_marks = {mark for task in stream for mark in _marks_of([*task.train, *task.dev, *task.test])}
    said = " ".join([*stream.passed_over, *(note for task in stream for note in task.passed_over)])
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if hidden or not path.is_file() or path.name == "task.json":
            continue
        for mark, fields in _places(path).items():
            shown = [path.name, *(parent.name for parent in path.relative_to(root).parents), *fields - {""}]
            named = [f"'{printable(name)}'" for name in shown if name] + ["field without a name"] * (
                "" in fields
            )
            if mark not in read_marks and not any(name in said for name in named):
                shown_path = path.relative_to(root).as_posix()
                return (
                    f"{mark} of {shown_path} ({', '.join(fields)}) is neither read nor named: {said!r:.300}"
                )
    return ""


def _marks_of(examples: Sequence[Example]) -> Iterator[str]:
    for example in examples:
        chat = "" if example.conversation is None else example.conversation.text
        yield from _MARK.findall("\n".join([example.input, *example.references, example.id or "", chat]))


def _places(path: Path) -> dict[str, set[str]]:
    """Return the marks in a file, with the fields and splits that hold them."""
    found: dict[str, set[str]] = defaultdict(set)
    holder = path.parent if _inside_saved(path) else path
    try:
        for number, row in enumerate(read(holder)):
            for key, value in row.items():
                for mark in _MARK.findall(json.dumps(value, ensure_ascii=False, default=str)):
                    found[mark] |= {key, *({"more"} if number == 3 else ())}
    except Exception:
        for mark in _MARK.findall(_decoded(path)):
            found[mark] |= set()
    return found


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error):
        return ""
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "replace")


__all__ = [
    "FORMATS",
    "Pairs",
    "build",
    "build_rows",
    "damage",
    "damage_rows",
    "load",
    "load_rows",
    "undropped",
]
