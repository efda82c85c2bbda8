"""Whatever a file holds, it loads to something whole or is refused with kifuse's own error that names it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kifuse.config import load_config, parse_overrides
from kifuse.errors import ConfigError, DataError, KifuseError, did_you_mean
from kifuse.io.storage import parse_json, read_tensors, write_text
from kifuse.record.run_record import RunRecord
from kifuse.tasks import MemoryBuffer, read_stream
from kifuse.tasks.readers.long_sequence import parse_options
from kifuse.tasks.task import check_different, check_task_name

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fuzz_inputs
from fuzzing.targets import TARGETS, Target, check_memory, check_stream, safe_name
from fuzzing.values import NAMES

# A fresh folder for every example of hypothesis would cost more than what is tried in it.
SETTINGS = settings(max_examples=60, deadline=None)
TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_load_whole_or_are_refused_by_name(name: str, tmp_path: Path) -> None:
    for index in range(40):
        outcome = fuzz_inputs.run_case(7, index, tmp_path / str(index), [name], seconds=60)
        assert outcome.kind != "failed", f"--targets '{name}' --seed 7 --only {index}: {outcome.detail}"


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_load(name: str, tmp_path: Path) -> None:
    """Else the test above would refuse everything and prove nothing."""
    target, root = TARGETS[name], tmp_path / "data"
    root.mkdir()
    target.build(root, fuzz_inputs.Random(1))
    target.check(target.load(root, _Plain()), root)


class _Plain(fuzz_inputs.Random):
    """Draws the plain way of reading: nothing in the command line, no order."""

    def random(self) -> float:
        return 0.99


def _refused_or(load: Any, path: Path) -> Any:
    """What was read, or None after a refusal that names the file and can be printed."""
    try:
        return load()
    except KifuseError as error:
        assert str(path) in str(error)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", str(error))
        return None


@SETTINGS
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "bytes"
    folder.mkdir(exist_ok=True)
    for name, load in (
        ("x.jsonl", lambda path: read_stream(path)),
        ("x.yaml", lambda path: load_config(path)),
        ("x.safetensors", lambda path: read_tensors(path)),
    ):
        path = folder / name
        path.write_bytes(data)
        _refused_or(lambda load=load, path=path: load(path), path)


FIELDS = st.sampled_from(["input", "output", "messages", "options", "instruction", "id", "task", "x"])


@SETTINGS
@given(st.lists(st.dictionaries(FIELDS, JSON, max_size=5) | JSON, min_size=1, max_size=3))
def test_any_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "rows" / "data"
    path = folder / "x.jsonl"
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    found = _refused_or(lambda: read_stream(path), path)
    if found is not None:
        assert sum(len(task.train) for task in found) == len(rows)
        for task in found:
            assert safe_name(task.name) and all(example.references for example in task.train)


STATE = {"version": 1, "share": 0.5, "per_task": 2, "selection": "random", "seed": 1}
EXAMPLE = {"head": "h", "body": "b", "tail": "", "references": ["a"], "id": None}


@SETTINGS
@given(st.sampled_from([*STATE, "tasks", "name", "examples", *EXAMPLE]), JSON)
def test_any_value_in_the_state_of_a_memory_buffer(tmp_path_factory, key: str, value: Any) -> None:
    state: dict[str, Any] = {**STATE, "tasks": [{"name": "t", "examples": [dict(EXAMPLE)]}]}
    inside = [state, state["tasks"][0], state["tasks"][0]["examples"][0]]
    next(part for part in inside if key in part)[key] = value
    where = tmp_path_factory.getbasetemp() / "memory.json"
    found = _refused_or(lambda: MemoryBuffer.from_state(state, where), where)
    if found is not None:
        check_memory(found, where.parent)


@SETTINGS
@given(st.sampled_from(["schema_version", "tasks", "scores", "status", "config", "loss", "machine"]), JSON)
def test_any_value_in_a_record(tmp_path_factory, key: str, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "record"
    folder.mkdir(exist_ok=True)
    TARGETS["record.json"].build(folder, fuzz_inputs.Random(2))
    path = folder / "record.json"
    found = json.loads(path.read_text("utf-8"))
    found.pop("seal", None)
    (found["tasks"][0] if key == "loss" else found)[key] = value
    path.write_text(json.dumps(found), encoding="utf-8")
    record = _refused_or(lambda: RunRecord.load(folder), path)
    if record is not None:
        record.save(folder)


@SETTINGS
@given(st.text(alphabet=st.sampled_from("ab:&*!<>[]{}-?|'\"%@`# \n~,0x19.\\Uu\ud800é"), max_size=60))
def test_any_setting(text: str) -> None:
    try:
        found = parse_overrides([f"training.epochs={text}"])
    except ConfigError as error:
        assert str(error).startswith("--set training.epochs: found ")
    else:
        assert list(found) == ["training.epochs"]


@settings(max_examples=300, deadline=None)
@given(TEXT | st.sampled_from(NAMES))
def test_a_name_is_accepted_only_where_it_is_a_file_name_everywhere(name: str) -> None:
    if safe_name(name):
        return
    with pytest.raises(DataError, match="Task name"):
        check_task_name(name)


PLAIN_NAMES = [
    "agnews",
    "task1572_samsum_summary",
    "01-queue",
    "Früchte",
    "שלום",
    "e\u0301",
    "console",
    "a.b",
    "👩‍👩‍👧",
]


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_ordinary_names_are_accepted(name: str) -> None:
    check_task_name(name)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a", "a"], "twice"),
        (["Agnews", "agnews"], "letter case"),
        (["stra\u00dfe", "STRASSE"], "letter case"),
        (["caf\u00e9", "cafe\u0301"], "accents"),
    ],
)
def test_names_that_some_file_systems_take_for_one_are_refused(names: list[str], kind: str) -> None:
    with pytest.raises(DataError, match=kind):
        check_different(names, "The stream")
    check_different(["agnews", "agnews2"], "The stream")


# How the options were found at first: right, but without an end for a list with many spaces in it.
OLD_OPTIONS = re.compile(r"\bOptions?: *(?P<options>.+?)\.?\s*\Z")


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="ab., :\nOption", max_size=12).map(lambda text: f"Which? Option: {text}".split("\n")[0])
)
def test_options_are_those_of_the_plain_pattern(line: str) -> None:
    found = OLD_OPTIONS.search(line)
    expected = tuple(item.strip() for item in found["options"].split(", ")) if found else ()
    assert parse_options(line + "\n") == (() if expected == ("",) else expected)


@given(TEXT, st.lists(TEXT, max_size=4))
def test_a_suggestion_is_one_of_the_names(name: str, names: list[str]) -> None:
    said = did_you_mean(name, names)
    assert not said or any(f"'{each}'" in said for each in names)


@given(JSON.filter(lambda value: "nan" not in repr(value)))
def test_json_is_read_as_python_reads_it(value: Any) -> None:
    assert parse_json(json.dumps(value), "x") == value


def test_a_failing_case_can_be_written_again(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        fuzz_inputs.prepare(3, 13, tmp_path / folder, list(TARGETS))
    first, second = (
        {
            path.relative_to(tmp_path / folder): path.read_bytes()
            for path in (tmp_path / folder).rglob("*.json*")
        }
        for folder in ("one", "two")
    )
    assert first == second and first


@pytest.mark.parametrize("fault", ["hang", "write", "escape", "wrong error"])
def test_the_engine_sees_a_fault(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(root: Path, rng: Any) -> Any:
        if fault == "hang":
            while True:
                pass
        if fault == "write":
            (root.parent / "outside" / "x").touch()
            return read_stream(tmp_path / "sound")
        if fault == "escape":
            raise KifuseError("no file is named here")
        raise IndexError

    TARGETS["jsonl chat"].build(tmp_path / "sound", fuzz_inputs.Random(1))
    target = Target(TARGETS["jsonl chat"].build, load, check_stream)
    monkeypatch.setitem(TARGETS, "jsonl chat", target)
    assert fuzz_inputs.run_case(0, 0, tmp_path / "case", ["jsonl chat"], seconds=0.2).kind == "failed"
