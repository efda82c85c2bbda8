"""Files of data: every ending, packed and in parts, under every name of a split; the rest is named."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kifuse.config import DataConfig
from kifuse.errors import DataError
from kifuse.streams import open_stream
from kifuse.tasks import read_stream, read_task
from kifuse.tasks.any_task import as_task

ROWS = [{"input": f"Where is {i}?", "output": "here"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "input,output\n" + "".join(f'{row["input"]},"{row["output"]}"\n' for row in ROWS)


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def save(path: Path, kind: str) -> None:
    """Write the rows as a file or folder of a library."""
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list(ROWS)
    if kind == "parquet":
        data.to_parquet(path)
    elif kind == "saved":
        data.save_to_disk(path)
    else:
        DatasetDict(train_sft=data, validation=data, test_sft=data, unlabelled=data).save_to_disk(path)


FILES: dict[str, str | bytes] = {
    "rows.jsonl": LINES,
    "rows.ndjson": LINES,
    "rows.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "lines.json": LINES,
    "rows.jsonl.gz": gzip.compress(LINES.encode()),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "Rows.JSONL": LINES,
    "list.jsonl": json.dumps(ROWS),
    "inside.json": json.dumps({"data": ROWS}),
    "rows.csv": CSV,
    "rows.csv.gz": gzip.compress(CSV.encode()),
    "semicolons.csv": CSV.replace(",", ";"),
    "rows.tsv": CSV.replace(",", "\t"),
    "bom.csv": b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "returns.jsonl": LINES.replace("\n", "\r"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_each_kind_is_a_task_and_the_split_of_one(tmp_path: Path, name: str):
    path = put(tmp_path / name, FILES[name])
    task = read_task(path)
    assert [(e.input, e.target) for e in task.train] == [(row["input"], row["output"]) for row in ROWS]
    assert task.format == f"input_output in {name}" and task.passed_over == ()
    stem, _, ending = name.partition(".")
    put(tmp_path / "own" / "first" / f"train.{ending}", FILES[name])
    put(tmp_path / "own" / f"{stem}.{ending}", FILES[name])
    stream = read_stream(tmp_path / "own")
    assert {each.name: each.train for each in stream} == {"first": task.train, stem: task.train}


@pytest.mark.parametrize("kind", ["parquet", "saved", "saved dictionary"])
def test_what_datasets_writes_is_read(tmp_path: Path, kind: str):
    path = tmp_path / ("rows.parquet" if kind == "parquet" else "rows")
    save(path, kind)
    task = read_task(path)
    assert (task.name, [e.input for e in task.train]) == ("rows", [row["input"] for row in ROWS])
    whole = kind == "saved dictionary"
    assert (len(task.dev), len(task.test)) == ((4, 4) if whole else (0, 0))
    assert task.passed_over == (("the split 'unlabelled' (4 rows) was not read.",) if whole else ())
    (tmp_path / "own").mkdir()
    path.rename(tmp_path / "own" / path.name)
    put(tmp_path / "own" / "other.csv", CSV)
    assert [(each.name, len(each.train)) for each in read_stream(tmp_path / "own")] == [
        ("other", 4),
        ("rows", 4),
    ]


def test_a_parquet_file_is_read_without_hashing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "rows.parquet", "parquet")

    def hashed(*_: object) -> str:
        raise AssertionError("a name by hashing takes minutes where rows have thousands of fields")

    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", hashed)
    assert len(read_task(tmp_path / "rows.parquet").train) == 4


def test_arrow_folders_may_be_the_splits_of_a_task(tmp_path: Path):
    for split in ("train", "validation"):
        save(tmp_path / "january" / split, "saved")
    task = read_task(tmp_path / "january")
    assert (task.name, len(task.train), len(task.dev)) == ("january", 4, 4)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Train.jsonl", "train"),
        ("train_sft.jsonl", "train"),
        ("training.csv", "train"),
        ("data.jsonl", "train"),
        ("TEST.JSONL", "test"),
        ("validation.jsonl", "dev"),
        ("valid.jsonl", "dev"),
        ("val.json", "dev"),
        ("eval.tsv", "dev"),
    ],
)
def test_a_split_has_many_names(tmp_path: Path, name: str, split: str):
    other = "test.jsonl" if split != "test" else "train.jsonl"
    put(tmp_path / "t" / other, LINES)
    text = json.dumps(ROWS[:2])
    text = {"csv": CSV, "tsv": CSV.replace(",", "\t")}.get(name.rpartition(".")[2], text)
    put(tmp_path / "t" / name, text)
    task = read_task(tmp_path / "t")
    assert len(task.split(split)) > 0 and task.passed_over == ()


def test_parts_of_a_file_are_put_together_in_their_order(tmp_path: Path):
    for number in (1, 0):
        part = "".join(json.dumps(row) + "\n" for row in ROWS[2 * number : 2 * number + 2])
        put(tmp_path / "t" / f"train-{number:05}-of-00002.jsonl", part)
        put(tmp_path / f"march-0000{number}-of-00002.jsonl", part)
    stream = read_stream(tmp_path)
    assert [task.name for task in stream] == ["march", "t"]
    for task in stream:
        assert [example.input for example in task.train] == [row["input"] for row in ROWS]
    (tmp_path / "t" / "train-00000-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match=r"the split train is in 2 parts.*missing are the parts 0"):
        read_task(tmp_path, "t")
    alone = read_task(tmp_path / "t" / "train-00001-of-00002.jsonl")
    assert alone.passed_over == ("'train-00001-of-00002.jsonl' is part 1 of 2; the others were not read.",)


def test_two_files_for_one_split_are_refused(tmp_path: Path):
    put(tmp_path / "t" / "train.jsonl", LINES)
    put(tmp_path / "t" / "Training.csv", CSV)
    with pytest.raises(
        DataError, match=r"the split train is in 2 files, Training\.csv, train\.jsonl; keep one"
    ):
        read_task(tmp_path / "t")


def test_split_folders_hold_a_file_for_each_task(tmp_path: Path):
    for split in ("train", "validation", "test"):
        for task in ("january", "february"):
            put(tmp_path / split / f"{task}.csv", CSV)
    put(tmp_path / "test" / "stray.txt", "x")
    stream = read_stream(tmp_path)
    assert [(t.name, len(t.train), len(t.dev), len(t.test)) for t in stream] == [
        ("february", 4, 4, 4),
        ("january", 4, 4, 4),
    ]
    assert "'test/stray.txt'" in stream.passed_over[0]


def test_splits_may_stand_in_one_json_file(tmp_path: Path):
    content = {"train": ROWS, "test": ROWS[:1], "version": "1.0"}
    task = read_task(put(tmp_path / "all.json", json.dumps(content)))
    assert (len(task.train), len(task.test)) == (4, 1)
    assert task.passed_over == ("The keys 'version' of 'all.json' were not read.",)


def test_tasks_of_every_kind_stand_side_by_side_and_the_rest_is_named(tmp_path: Path):
    put(tmp_path / "january" / "train.jsonl", LINES)
    put(tmp_path / "january" / "tset.jsonl", LINES)
    put(tmp_path / "february" / "train.csv", CSV)
    instances = {"Definition": ["Do."], "Instances": [{"input": "a", "output": ["b"]}]}
    for split in ("train", "test"):
        put(tmp_path / "march" / f"{split}.json", json.dumps(instances))
    put(tmp_path / "april.json", json.dumps(ROWS))
    put(tmp_path / "may" / "trian.jsonl", LINES)
    put(tmp_path / "june.xlsx", "x")
    put(tmp_path / "README.md", "Notes.")
    stream = read_stream(tmp_path)
    assert [task.name for task in stream] == ["april", "february", "january", "march"]
    assert stream.tasks[3].train[0].input == "Definition: Do.\n\nInput: a\nOutput:"
    assert stream.tasks[2].passed_over == (
        "not read, as they are not names of splits: 'tset.jsonl' (did you mean 'test.jsonl'?).",
    )
    said = " ".join(stream.passed_over)
    assert "'june.xlsx' (save it as CSV)" in said and "README" not in said
    assert (
        f"The folder 'may' in '{tmp_path.name}' is not a task" in said
        and "Did you mean 'train.jsonl'?" in said
    )
    assert stream.warnings == stream.passed_over


def test_a_task_with_nothing_to_learn_is_refused_with_its_folder(tmp_path: Path):
    put(tmp_path / "t" / "test.jsonl", LINES)
    with pytest.raises(DataError, match=rf"{tmp_path}: Task 't': it has no training examples"):
        open_stream(DataConfig(path=tmp_path), seed=0)


def test_files_beside_a_published_layout_are_named(tmp_path: Path):
    row = {"input": "Head\nbody\nAnswer:", "output": "x"}
    for split in ("train", "test"):
        put(tmp_path / split / "agnews.json", json.dumps([row]))
    put(tmp_path / "test" / "yelp.json", json.dumps([row]))
    put(tmp_path / "train" / "more.jsonl", LINES)
    assert "test/yelp.json, train/more.jsonl" in read_stream(tmp_path).passed_over[0]
    (tmp_path / "test" / "yelp.json").rename(tmp_path / "test" / os.fsdecode(b"\xff.json"))
    # a name of bytes that are no text can be written to a record and a log
    assert "test/\\udcff.json, train/more.jsonl" in read_stream(tmp_path).warnings[0]
    with pytest.raises(DataError, match="the layout long_sequence has fixed fields"):
        read_stream(tmp_path, columns={"input": "q"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "input,output\nx\n",
            r"a\.csv:2: found 1 value, expected 2, one for each of the columns input",
        ),
        ("a.csv", 'input,output\nx,y\n"z,y\n', r"a\.csv:3: not valid CSV: unexpected end of data"),
        ("a.csv", "input,input\nx,y\n", r"a\.csv:1: the column 'input' appears twice"),
        ("a.csv", "input,output\n", "holds no rows below the names of the columns"),
        ("a.csv", "input,output\nx,\n", r"a\.csv:2: 'output' is empty"),
        ("a.csv", '"input","output"\n"two\nlines","x"\n,"x"\n', r"a\.csv:4: 'input' is empty"),
        (
            "a.jsonl",
            '{"input":"a","output":"b"},\n{"input":"a","output":"b"}\n',
            "Remove the comma at the end",
        ),
        ("a.jsonl", "{'input': 'a', 'output': 'b'}\n", r"a\.jsonl:1: .*JSON uses double quotes"),
        ("a.jsonl", '{\n"input": "a"\n}\n{\n"input": "b"\n}\n', r"a\.jsonl:1: .*Put each object on a line"),
        (
            "a.jsonl",
            '{"input":"Grüße"}'.encode("latin-1"),
            r"a\.jsonl:1: not UTF-8 text; save the file as UTF-8",
        ),
        ("a.jsonl", LINES.encode("utf-16")[:-1], "not readable UTF-16 text; save the file as UTF-8"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "not a complete gzip file"),
        ("a.jsonl.gz", LINES, "not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(b" " * (70 << 20), mtime=0), "unpacks to more than 64 MB"),
        ("a.parquet", LINES, r"a\.parquet: not a readable Parquet file"),
        ("a.jsonl.zst", LINES, "expected a folder or a file that ends in one of .*unpack it"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_a_way(
    tmp_path: Path, name: str, content: str | bytes, message: str
):
    with pytest.raises(DataError, match=message):
        read_task(put(tmp_path / name, content))


@pytest.mark.parametrize("kind", ["a long text a million times", "nothing at all", "one text of zeros"])
def test_a_parquet_file_that_unfolds_without_measure_is_refused(tmp_path: Path, kind: str):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = {
        "a long text a million times": lambda: pyarrow.DictionaryArray.from_arrays(
            pyarrow.array([0] * 1_000_000, pyarrow.int32()), ["x" * 10_000]
        ),
        "nothing at all": lambda: pyarrow.nulls(2_000_000),
        "one text of zeros": lambda: pyarrow.array(["\0" * (100 << 20)]),
    }[kind]()
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"input": column, "output": column}), file, compression="zstd")
    assert file.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"a\.parquet: unpacks to more than 64 MB, .* as JSON Lines"):
        read_task(file)


def test_a_damaged_arrow_folder_is_refused(tmp_path: Path):
    save(tmp_path / "rows", "saved")
    (data,) = (tmp_path / "rows").glob("*.arrow")
    data.write_bytes(data.read_bytes()[:-200])
    with pytest.raises(DataError, match="rows: not a readable folder of save_to_disk"):
        read_task(tmp_path / "rows")


def test_an_arrow_folder_names_no_file_of_another_folder(tmp_path: Path):
    save(tmp_path / "rows", "saved")
    save(tmp_path / "mine", "saved")
    state = tmp_path / "rows" / "state.json"
    found = json.loads(state.read_text("utf-8"))
    (data,) = (tmp_path / "mine").glob("*.arrow")
    for name in (f"../mine/{data.name}", str(data), 5):
        put(state, json.dumps({**found, "_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match=r"state\.json: names the file .*, expected files of this folder"):
            read_task(tmp_path / "rows")


def test_a_table_of_many_columns_takes_no_time_for_its_head(tmp_path: Path):
    head = ",".join(f"c{number}" for number in range(100_000))
    with pytest.raises(DataError, match=r"a\.csv:2: the field 'input' is missing"):
        read_task(put(tmp_path / "a.csv", f"{head}\n{head}\n"))


def test_task_json_may_name_format_and_columns(tmp_path: Path):
    put(tmp_path / "t" / "train.csv", "q;a;label\nWhere?;here;x\n")
    settings: dict[str, Any] = {"columns": {"input": "q", "output": "a"}, "instruction": "Say."}
    put(tmp_path / "t" / "task.json", json.dumps(settings))
    task = read_task(tmp_path / "t")
    assert task.train[0].input == "Say.\nWhere?\nAnswer:"
    assert task.passed_over == ("the field 'label' of 1 row was not read.",)
    put(tmp_path / "t" / "task.json", json.dumps({"columns": {"text": "q"}, "format": "text_label"}))
    assert read_task(tmp_path / "t").train[0].target == "x"
    with pytest.raises(
        DataError, match=r"'columns' in the section data of the run's YAML \(.*\) names the column 'Q'"
    ):
        (tmp_path / "t" / "task.json").unlink()
        read_stream(tmp_path, columns={"input": "Q", "output": "a"})


def test_options_complete_a_path(tmp_path: Path):
    path = put(tmp_path / "t" / "train.jsonl", LINES)
    task = as_task(path, instruction="Which queue?", labels=["here"], test=put(tmp_path / "more.csv", CSV))
    assert task.train[0].input == "Which queue?\nWhere is 0?\nAnswer:"
    assert (task.name, len(task.train), len(task.test), task.labels) == ("train", 4, 4, ("here",))
    put(tmp_path / "t" / "task.json", json.dumps({"instruction": "Say."}))
    with pytest.raises(DataError, match=r"task\.json: 'instruction' is given here and in learn\(\)"):
        as_task(tmp_path / "t", instruction="Which queue?")
    assert as_task(tmp_path / "t", labels=["here"]).labels == ("here",)


@pytest.mark.parametrize("inside", [{"train": ROWS, "test": ROWS[:1]}, {"test": ROWS}, {"validation": ROWS}])
@pytest.mark.parametrize("name", ["desk/train.json", "train/desk.json.gz"])
def test_a_file_that_stands_for_training_holds_no_other_split(
    tmp_path: Path, name: str, inside: dict[str, list[dict[str, str]]]
):
    text = json.dumps(inside)
    file = put(tmp_path / name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    with pytest.raises(DataError, match="but its name says train") as refused:
        read_stream(tmp_path)
    assert str(file) in str(refused.value) and next(iter(inside)) in str(refused.value)


def test_a_file_for_training_may_name_its_one_split(tmp_path: Path):
    put(tmp_path / "desk" / "train.json", json.dumps({"train": ROWS}))
    (task,) = read_stream(tmp_path)
    assert [example.input for example in task.train] == [row["input"] for row in ROWS]
