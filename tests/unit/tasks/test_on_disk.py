"""Long data sets stay on disk: the results are the same, and memory does not grow with them."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from kifuse import run
from kifuse.errors import DataError
from kifuse.tasks import on_disk, token_files
from kifuse.tasks.encoded import EncodedOnDisk
from kifuse.tasks.encoding import Encoder
from kifuse.tasks.on_disk import OnDisk, joined
from kifuse.tasks.readers import read_stream, read_task
from kifuse.tasks.task import Conversation, Example
from tests.runs import learned_files, make_config, write_stream
from tests.tiny import build_llama, build_tokenizer


def write_rows(file: Path, count: int, **more: Any) -> Path:
    rows = ({"input": f"Is {i} even?", "output": ("yes", "no")[i % 2], **more} for i in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def few_is_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "MANY", 5)
    monkeypatch.setattr(token_files, "WORTH", 1)


def test_a_run_with_data_on_disk_learns_the_same_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    build_llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    stream = write_stream(tmp_path / "data")
    found = []
    for many in (10_000, 5):
        monkeypatch.setattr(on_disk, "MANY", many)
        monkeypatch.setattr(token_files, "WORTH", 1)
        output = tmp_path / f"run-{many}"
        run(make_config(tmp_path / "model", stream, output, {"name": "replay"}))
        scores = json.loads((output / "record.json").read_text("utf-8"))["scores"]
        found.append((learned_files(output), [(each["score"], each["predictions"]) for each in scores]))
    assert found[0] == found[1]


def test_what_is_read_from_disk_is_what_was_put_there(few_is_many: None) -> None:
    chat = Conversation.of(
        [{"role": "user", "content": "Grüße\ud83d"}, {"role": "assistant", "content": "hi"}]
    )
    examples = [
        Example("h", f"body {i}", "t", ("a", "b"), f"{i}", chat, True, ("a",), note="lesson", where=f"f:{i}")
        for i in range(9)
    ]
    held = Example.held(iter(examples))
    assert isinstance(held, OnDisk) and list(held) == examples
    assert [(e.note, e.where) for e in held] == [(e.note, e.where) for e in examples]
    assert held[-1] == examples[8] and held[2:8:3] == (examples[2], examples[5])
    assert list(joined((), held, held[:2])) == [*examples, *examples[:2]]
    with pytest.raises(IndexError):
        held[9]


def test_a_value_that_json_cannot_hold_stays_as_it_is() -> None:
    days: OnDisk[Any] = OnDisk([1, date(2024, 5, 1), "x"], lambda value: value, lambda value: value)
    assert list(days) == [1, date(2024, 5, 1), "x"]


def test_rows_of_several_tasks_and_splits_are_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"input": f"{i}", "output": "ab"[i % 2], "task": ("one", "two")[i % 3 == 0], "options": ["a", "b"]}
        for i in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    csv = "".join(f"{row['input']},{row['output']}\n" for row in rows)
    (tmp_path / "table.csv").write_text(f"input,output\n{csv}", encoding="utf-8")
    (tmp_path / "list.json").write_text(json.dumps([{**row, "task": None} for row in rows]), encoding="utf-8")
    names = ("rows.jsonl", "table.csv", "list.json")
    whole = [task for name in names for task in read_stream(tmp_path / name)]
    monkeypatch.setattr(on_disk, "MANY", 5)
    parts = [task for name in names for task in read_stream(tmp_path / name)]
    assert all(isinstance(task.train, OnDisk) for task in parts)
    assert [replace(task, train=tuple(task.train[:0])) for task in whole] == [
        replace(task, train=()) for task in parts
    ]
    assert [list(task.train) for task in whole] == [list(task.train) for task in parts]
    assert [task.split_hash("train") for task in whole] == [task.split_hash("train") for task in parts]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"input": "a"}', r"rows.jsonl:31: .*output"),
        (b'{"input": "a", "output": "b"},', r"rows.jsonl:31: .*comma"),
        (b'{"input": "\xff", "output": "b"}', r"rows.jsonl:31: not UTF-8"),
    ],
)
def test_a_wrong_line_is_named(line: bytes, said: str, tmp_path: Path, few_is_many: None) -> None:
    file = write_rows(tmp_path / "rows.jsonl", 30)
    file.write_bytes(file.read_bytes() + line + b"\n" + b'{"input": "a", "output": "b"}\n')
    with pytest.raises(DataError, match=said):
        read_task(file)


@pytest.mark.parametrize("many", [100, 10_000_000])
def test_memory_does_not_grow_with_the_rows(
    many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_disk, "MANY", many)
    count, encoder = 3000, Encoder(build_tokenizer(), encoder_decoder=False)
    file = write_rows(tmp_path / "rows.jsonl", count)
    read_task(file)  # what is imported on first use is no part of it
    tracemalloc.start()
    try:
        task = read_task(file)
        encoded = encoder.encode_pieces(task.train)
        kept = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    on_file = isinstance(task.train, OnDisk) and isinstance(encoded, EncodedOnDisk)
    assert on_file == (many == 100) == (kept < 120), f"{kept:.0f} bytes of memory a row"
