"""General data beside the tasks: mixed in, or kept in place of their examples, in whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kifuse.errors import KifuseError
from kifuse.running.runner import run
from kifuse.tasks import read_stream
from tests.runs import METHODS, make_config

pytestmark = pytest.mark.usefixtures("quick")


def general(folder: Path, rows: list[tuple[str, str]]) -> Path:
    file = folder / "general.jsonl"
    lines = [json.dumps({"input": text, "output": answer}) + "\n" for text, answer in rows]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def texts(count: int) -> list[tuple[str, str]]:
    return [(f"tell me of place {number}", f"it is far {number}") for number in range(count)]


def of_kind(record: Any, kind: str) -> list[dict[str, Any]]:
    return [event for task in record.tasks for event in task.events if event["kind"] == kind]


def test_general_data_is_mixed_in_at_its_share(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path):
    file = general(tmp_path, texts(10))
    memory = {"generic": file, "generic_share": 0.25}
    record = run(
        make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "sequential"}, memory=memory)
    )
    # 4 of 16 are a quarter, of each of the three tasks with 12 examples
    events = of_kind(record, "general data mixed in")
    assert [(e["added"], e["distinct"], e["held"]) for e in events] == [(4, 4, 10)] * 3
    assert events[0]["file"] == str(file) and len(events[0]["sha256"]) == 64
    assert [e["added"] for e in of_kind(record, "examples")] == [4, 4, 4]
    assert record.method.data_class == "replay-free"
    assert [task.examples_seen for task in record.tasks] == [16, 16, 16]


def test_a_test_input_is_not_drawn_from_general_data_and_is_told(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    asked = read_stream(tiny_stream).tasks[0].test[0]
    file = tmp_path / "general.jsonl"
    file.write_text(
        json.dumps({"instruction": asked.head.strip(), "input": asked.body, "output": "something"}) + "\n",
        encoding="utf-8",
    )
    memory = {"generic": file, "generic_share": 0.25}
    record = run(
        make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "sequential"}, memory=memory)
    )
    events = of_kind(record, "general data mixed in")
    assert [(e["wanted"], e["added"], e["copies"]) for e in events] == [(4, 0, 1), (4, 4, 0), (4, 4, 0)]
    # with one example to draw from, it is drawn again and again
    assert [e["distinct"] for e in events] == [0, 1, 1]
    (shared,) = record.overlaps
    assert (shared["task_a"], shared["task_b"], shared["split_b"]) == ("memory.generic", "colour", "test")


@pytest.mark.parametrize("name", ["replay", "recurrent-kif", "kif-m", "kiflora-m", "sapt"])
def test_general_data_is_kept_in_place_of_the_tasks_examples(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, name: str
):
    memory = {"source": "generic", "generic": general(tmp_path, texts(9))}
    method = METHODS.get(name, {"name": name})
    record = run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", method, memory=memory))
    assert record.method.data_class == "generic replay"
    state = json.loads((tmp_path / "run/state/after-3/memory.json").read_text("utf-8"))
    held = {task["name"]: task["examples"] for task in state["tasks"]}
    assert {name: len(rows) for name, rows in held.items()} == {t.name: 3 for t in record.tasks}
    assert all(row["body"].startswith("tell me of place") for rows in held.values() for row in rows)
    assert [e["added"] for e in of_kind(record, "general data kept")] == [3, 3, 3]
    assert [bool(task.replayed_examples) for task in record.tasks] == [False, True, True]


@pytest.mark.parametrize(
    ("method", "memory", "words"),
    [
        ("replay", {"source": "generic"}, r"memory.generic: found none with memory.source 'generic'"),
        ("kif", {"generic_share": 0.1}, r"memory.generic: found none .*generic_share 0.1"),
        ("replay", {"generic": "general.jsonl"}, r"general.jsonl would not be used.*generic_share: 0.05"),
        ("replay", {"generic": "none.jsonl", "generic_share": 0.1}, r"none.jsonl"),
        (
            "der++",
            {"source": "generic", "generic": "general.jsonl"},
            r"'generic' does not work with .*'der\+\+'",
        ),
    ],
)
def test_general_data_that_cannot_be_used_is_refused(
    tiny_folder_llama: Path,
    tiny_stream: Path,
    tmp_path: Path,
    method: str,
    memory: dict[str, Any],
    words: str,
):
    general(tmp_path, texts(2))
    given = {k: tmp_path / v if k == "generic" else v for k, v in memory.items()}
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": method}, memory=given)
    with pytest.raises(KifuseError, match=words):
        run(config)
