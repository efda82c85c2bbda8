"""Faults that fuzzing or reading the code has found once, each as the smallest file that showed it."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse.config import load_config, parse_overrides
from kifuse.errors import ConfigError, DataError, KifuseError, RunError, did_you_mean
from kifuse.io.storage import read_json, read_tensors, sha256_file, write_json, write_tensors, write_text
from kifuse.record.run_record import MethodRecord, RunRecord, TaskRecord
from kifuse.tasks import Example, MemoryBuffer, Task, read_stream, read_task
from kifuse.tasks.readers.long_sequence import parse_options

GOOD = "model: {name: m}\ndata: {benchmark: support-desk}\nmethod: {name: kif}\noutput: runs/a\n"
ROW = {"input": "Who?", "output": "me"}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(folder: Path, text: str) -> str:
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "run.yaml")
    return str(caught.value).replace(f"{folder}/", "")


# YAML


def laughs(value: Callable[[str], str], levels: int = 30) -> str:
    lines = ["a0: &a0 " + value("x: 1")]
    lines += [f"a{n}: &a{n} " + value(f"*a{n - 1}") for n in range(1, levels)]
    return "\n".join(lines) + f"\nboom: *a{levels - 1}\n"


BOMBS = {
    "lists": laughs(lambda inner: f"[{inner}, {inner}]".replace("x: 1", "1")),
    "mappings": laughs(lambda inner: f"{{p: {inner}, q: {inner}}}".replace("x: 1", "1")),
    "merges": laughs(lambda inner: f"{{<<: [{inner}, {inner}]}}" if "*" in inner else f"{{{inner}}}"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_billion_laughs_are_refused_before_they_unfold(kind: str, tmp_path: Path) -> None:
    assert "aliases expand to more than 20000 values" in refusal(tmp_path, BOMBS[kind] + GOOD)


def test_a_bomb_in_a_setting_is_refused() -> None:
    value = "&b0 [1, 1]"
    for level in range(1, 40):
        value = f"&b{level} [{value}, *b{level - 1}, *b{level - 1}]"
    with pytest.raises(
        ConfigError, match=r"^--set method\.beta: .* aliases expand to more than 20000 values"
    ):
        parse_overrides([f"method.beta={value}"])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("!!bool maybe", "'maybe' is no bool"),
        ("!!int ''", "'' is no int"),
        ("!!timestamp x", "'x' is no timestamp"),
        ("!!python/object/apply:os.system [ls]", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("!!python/name:os.system x", "could not determine a constructor"),
        ("!!set {a}", "the tag 'tag:yaml.org,2002:set' is not allowed"),
        ("0x" + "f" * 5000, "a number of 5002 characters"),
        ("1" + ":1" * 20_000, "a number of 40001 characters"),
        ('"\\UFFFFFFFF"', "is not YAML"),
        ('"\\uD800"', "expected"),
        ("\0", r"the character '\x00' is not allowed"),
        ("[" * 10_000, "nested too deep"),
    ],
)
def test_a_value_that_yaml_stumbles_over_is_refused_at_its_line(
    tmp_path: Path, value: str, said: str
) -> None:
    message = refusal(tmp_path, GOOD + f"training:\n  epochs: {value}\n")
    assert said in message
    assert message.startswith(("run.yaml:6:", "run.yaml:1: found values nested"))


def test_a_file_that_is_no_configuration_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    assert "it holds 400000 characters" in refusal(tmp_path, "a, " * 133_333 + "a")


def test_the_first_fifty_problems_are_enough(tmp_path: Path) -> None:
    lines = refusal(tmp_path, GOOD + "".join(f"key{n}: 1\n" for n in range(1000))).splitlines()
    assert len(lines) == 51 and lines[-1] == "... and 950 more."


@pytest.mark.parametrize("path", ["~nobody-has-this-name/x", '"a\\0b"', "x" * 300, '"\\uD800"'])
@pytest.mark.parametrize("key", ["output", "data"])
def test_a_path_that_no_system_takes_is_refused_at_its_line(tmp_path: Path, key: str, path: str) -> None:
    text = GOOD.replace("runs/a", path) if key == "output" else GOOD.replace("desk}", f"desk, path: {path}}}")
    assert refusal(tmp_path, text).startswith(
        "run.yaml:4: output" if key == "output" else "run.yaml:2: data.path"
    )


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:2: byte 8 is not UTF-8"):
        load_config(tmp_path / "run.yaml")


# What is no file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write_rows(tmp_path / "t" / "train.jsonl", ROW)
    for name in ("t/test.jsonl", "x.json", "x.yaml", "x.safetensors"):
        os.mkfifo(tmp_path / name)
    calls: list[Callable[[], Any]] = [
        lambda: read_stream(tmp_path),
        lambda: read_stream(tmp_path / "t" / "test.jsonl"),
        lambda: read_json(tmp_path / "x.json"),
        lambda: load_config(tmp_path / "x.yaml"),
        lambda: read_tensors(tmp_path / "x.safetensors"),
        lambda: sha256_file(tmp_path / "x.json"),
    ]
    for call in calls:
        with pytest.raises(KifuseError, match=r"found a pipe, expected a file|not a known layout"):
            call()


@pytest.mark.parametrize("name", ["dev.jsonl", "test.jsonl", "task.json"])
def test_a_broken_link_is_refused_and_not_taken_for_a_missing_file(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "train.jsonl", ROW)
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        read_stream(tmp_path)


def test_links_are_followed_as_download_caches_need_it(tmp_path: Path) -> None:
    blob = write_rows(tmp_path / "blobs" / "0123", ROW)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").symlink_to(blob)
    assert read_task(tmp_path / "data").train[0].target == "me"


def test_hidden_files_beside_the_data_are_passed_over(tmp_path: Path) -> None:
    write_rows(tmp_path / "mine.jsonl", ROW)
    (tmp_path / "._mine.jsonl").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".cache").mkdir()
    write_rows(tmp_path / ".cache" / "train.jsonl", ROW)
    assert [task.name for task in read_stream(tmp_path)] == ["mine"]


def test_the_folder_one_is_in_is_a_task_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        text = json.dumps({"Definition": "Do.", "Instances": [ROW]})
        write_text(tmp_path / "task001_x" / f"{split}.json", text)
    monkeypatch.chdir(tmp_path / "task001_x")
    assert read_task(".").name == "task001_x"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    inner = tmp_path / "closed" / "data"
    inner.mkdir(parents=True)
    inner.parent.chmod(0)
    try:
        with pytest.raises(DataError, match="Permission denied"):
            read_stream(inner)
        with pytest.raises(KifuseError, match="record"):
            RunRecord.load(inner)
    finally:
        inner.parent.chmod(0o700)


# JSON


def test_a_key_given_twice_is_refused_with_its_place(tmp_path: Path) -> None:
    write_text(
        tmp_path / "a.jsonl", '{"input": "x", "output": "y"}\n{"input": "x", "output": "y", "input": "z"}\n'
    )
    with pytest.raises(DataError, match=r"a\.jsonl:2: the key 'input' appears twice"):
        read_stream(tmp_path)
    write_text(tmp_path / "x.json", '{"tasks": [\n{"name": 1},\n{"name": 1, "name": 2}]}')
    with pytest.raises(KifuseError, match=r"x\.json: 'tasks' row 2: the key 'name' appears twice"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 200 + "]" * 200, '{"a":' * 10_000, '"\\ud800"'])
def test_json_that_python_would_choke_on_later_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(KifuseError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_half_a_surrogate_pair_in_an_id_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", '{"input": "x", "output": "y", "id": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: 'id' holds half a surrogate pair"):
        read_stream(tmp_path)


def test_the_line_of_a_wrong_byte_counts_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf{}\n\xff\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8"):
        read_stream(tmp_path)


# Long searches: none of these came to an end before


def test_spaces_among_the_options_do_not_take_the_search_for_ever() -> None:
    assert parse_options("Option: a" + " " * 200_000 + "b.\n") == ("a" + " " * 200_000 + "b",)


def test_many_labels_are_checked_at_once(tmp_path: Path) -> None:
    labels = [f"label {n}" for n in range(50_000)]
    write_text(tmp_path / "task.json", json.dumps({"labels": labels, "list_labels": True}))
    write_rows(tmp_path / "train.jsonl", *({"input": str(n), "output": labels[-1]} for n in range(2000)))
    task = read_task(tmp_path)
    assert task.labels is not None and len(task.labels) == 50_000
    assert len({id(example.head) for example in task.train}) == 1  # one long text, not 2000


def test_no_suggestion_is_sought_for_a_text_of_a_megabyte() -> None:
    assert did_you_mean("ab" * 500_000, ["ba" * 500_000, "c"]) == ""


# Messages


def test_a_message_steers_no_terminal_and_has_an_end() -> None:
    message = str(
        KifuseError("file:1: found '\x1b[31m\u202e\ud800' and " + "x" * 10**6 + " end\nsecond line")
    )
    assert message.startswith(r"file:1: found '\x1b[31m\u202e\ud800' and xxx")
    assert message.endswith("xxx end\nsecond line") and len(message) < 2500


# Names and ids


@pytest.mark.parametrize(
    "name", ["con", "nul.x", "a:b", "x.", " x", ".x", "a\u202eb", "a\x7fb", "a\ud800b", "a?"]
)
def test_a_task_in_a_row_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "all.jsonl", {**ROW, "task": "fine"}, {**ROW, "task": name})
    with pytest.raises(DataError, match=r"all\.jsonl:2: 'task'"):
        read_stream(tmp_path / "all.jsonl")


def test_tasks_that_differ_in_letter_case_only_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "all.jsonl", {**ROW, "task": "Mail"}, {**ROW, "task": "mail"})
    with pytest.raises(DataError, match=r"all\.jsonl.*'Mail' and 'mail'.*letter case"):
        read_stream(tmp_path / "all.jsonl")
    assert len(read_stream(tmp_path / "all.jsonl", ["mail"])) == 1


def test_a_record_names_no_file_outside_of_its_run(tmp_path: Path) -> None:
    RunRecord(
        kifuse_version="0",
        status="running",
        created="",
        config={},
        model={},
        method=MethodRecord(name="kif", settings={}, data_class="replay-free"),
        stream="s",
        tasks=[TaskRecord(name="[b]any|plain name", metric="exact_match")],
    ).save(tmp_path)
    assert RunRecord.load(tmp_path).tasks[0].name == "[b]any|plain name"
    found = read_json(tmp_path / "record.json")
    del found["seal"]
    found["tasks"][0]["name"] = "../../secret"
    write_json(tmp_path / "record.json", found)
    with pytest.raises(RunError, match=r"record\.json: tasks\.0\.name: .*is a path"):
        RunRecord.load(tmp_path)


def test_an_id_on_several_examples_of_a_split_is_said_and_kept(tmp_path: Path) -> None:
    rows = [
        {"input": f"{n}", "output": "y", "id": number}
        for n, number in enumerate([1, 1, 2, 2, 2, "", "", None])
    ]
    write_rows(tmp_path / "t" / "train.jsonl", *rows)
    write_rows(tmp_path / "t" / "test.jsonl", *rows[1:3])
    stream = read_stream(tmp_path)
    assert stream.warnings == ("Task 't': in train, more than one example has the id '1' and 1 more.",)
    assert [example.id for example in stream.tasks[0].train] == ["1", "1", "2", "2", "2", None, None, None]


# The memory buffer


def state(**changed: Any) -> dict[str, Any]:
    memory = MemoryBuffer(per_task=2)
    memory.add(Task("t", (Example("h", "b", "", ("a",)),), (), (), None, "rouge_l"))
    return {**memory.state(), **changed}


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        None,
        state(version=True),
        state(per_task=2.5),
        state(share=True),
        state(seed="1"),
        state(tasks=[{"name": "../t", "examples": state()["tasks"][0]["examples"]}]),
        state(tasks=[{"name": "t", "examples": []}]),
        state(tasks=state()["tasks"] * 2),
        state(tasks=[{"name": "t", "examples": state()["tasks"][0]["examples"] * 3}]),
        state(
            tasks=[{"name": "t", "examples": [{**state()["tasks"][0]["examples"][0], "references": "abc"}]}]
        ),
        state(tasks=[{"name": "t", "examples": [{**state()["tasks"][0]["examples"][0], "head": None}]}]),
        state(tasks=[{"name": "t", "examples": [{**state()["tasks"][0]["examples"][0], "id": 3}]}]),
    ],
)
def test_a_damaged_memory_is_refused_by_the_name_of_its_file(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"^run/memory\.json: the state of the memory buffer"):
        MemoryBuffer.from_state(wrong, "run/memory.json")


# Writing


def test_a_disk_that_fills_up_while_tensors_are_saved_is_said(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_text(tmp_path / "a.safetensors", "before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(KifuseError, match=r"a\.safetensors: cannot be written: .*File too large"):
            write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_text() == "before"


def test_text_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    for call in (
        lambda: write_text(tmp_path / "a", "x\ud800"),
        lambda: write_json(tmp_path / "a", "x\ud800"),
        lambda: write_text(f"{tmp_path}/a\0b", "x"),
    ):
        with pytest.raises(KifuseError, match="cannot be written"):
            call()
    assert not list(tmp_path.iterdir())
