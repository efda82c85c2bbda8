"""`kifuse validate`: what a model will read, what is odd in the data, and how it looks in a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kifuse.cli import app
from kifuse.cli.visible_text import visible

HOSTILE = "Where\x1b[31m is\x07 my \u202eparcel?\nIt is late."


def rows(path: Path, *values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")


@pytest.fixture
def config(tmp_path: Path, tiny_folder_llama: Path) -> Path:
    data = tmp_path / "data"
    chat = {"messages": [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "delivery"}]}
    rows(data / "january" / "train.jsonl", chat, chat, {"input": "same", "output": "a"})
    rows(data / "january" / "test.jsonl", {"input": "same", "output": "a"})
    rows(
        data / "february" / "train.jsonl",
        {"input": "one", "output": "long " * 300, "note": "x"},
        {"input": "two", "output": "yes"},
        {"input": "two", "output": "no"},
    )
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model:\n  name: {tiny_folder_llama}\ndata:\n  path: {data}\n  chat_template: true\n"
        f"method:\n  name: sequential\noutput: {tmp_path / 'out'}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(autouse=True)
def _only_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", None)


def call(config: Path, *options: str, width: int = 100) -> str:
    done = CliRunner().invoke(app, ["validate", str(config), *options], env={"COLUMNS": str(width)})
    assert done.exit_code == 0, done.output
    return done.output


def test_everything_odd_is_said_with_the_limit_that_would_hold_all(config: Path):
    said = " ".join(call(config).split())
    assert "No test examples, and so no score: february." in said
    assert "(same input, same answers): january/train 1 of 3." in said
    assert "answers contradict each other: february 1." in said
    assert "also trained on: january 1 of 1 (in january/train)." in said
    found = json.loads(call(config, "--json"))
    longest = found["tasks"][0]["longest_target"]
    assert longest > 128 and found["tasks"][0]["cut_answers"] == 1
    assert f"february/train 1 of 3; data.max_target: {-(-longest // 64) * 64} would hold all." in said
    again = call(config, "--set", f"data.max_target={-(-longest // 64) * 64}")
    assert "lose their end" not in again
    assert "Task 'february':" in said and "'note'" in said  # the column that is not read


def test_of_many_overlaps_the_first_are_named_and_all_where_all_is_asked_for(config: Path, tmp_path: Path):
    for name in "cdefgh":
        rows(tmp_path / "data" / f"{name}.jsonl", {"input": "same", "output": "a"})
    said = " ".join(call(config).split())
    assert "c/train and d/train 1, c/train and e/train 1" in said and " and 13 more." in said
    assert "g/train and h/train 1" not in said
    assert "g/train and h/train 1" in " ".join(call(config, "--examples").split())


def test_what_the_model_cannot_take_is_refused_with_file_and_line(config: Path, tmp_path: Path):
    path = tmp_path / "data" / "march.jsonl"
    asked, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    system = {"role": "system", "content": "s " * 900}
    for row, message in (
        ({"messages": [asked, {**answer, "weight": 0.5}]}, "'weight' of a message is 0.5, expected 0 or 1"),
        ({"input": "x", "output": "</s>"}, "consists of special tokens only"),
        ({"messages": [system, asked, answer]}, "the parts that are never cut take"),
        ({"messages": [asked, {**answer, "weight": 0}]}, "task 'march' has no answer to learn"),
    ):
        rows(path, row)
        done = CliRunner().invoke(app, ["validate", str(config)], env={"COLUMNS": "200"})
        assert done.exit_code == 2 and "march.jsonl:1: Example" in done.output and message in done.output


@pytest.mark.parametrize("width", [80, 120])
def test_the_examples_are_shown_as_they_are_trained_and_cannot_act_on_the_terminal(config: Path, width: int):
    said = call(config, width=width)
    assert not {"\x1b", "\x07", "\u202e"} & set(said)
    assert max(len(line) for line in said.splitlines() if not line.startswith("/")) <= max(width, 100)
    whole = call(config, "--show", "january", width=width)
    assert "<|turn|>user⏎\n" in whole.replace(" ", "")
    assert "Where\\x1b[31m is\\x07 my \\u202eparcel?⏎" in whole
    assert "delivery</s>" in whole or "delivery<|end|>" in whole
    assert "long long" not in whole.partition("What the model reads")[2]
    assert "long long" in call(config, "--examples", width=width)
    assert "'two' is answered 'yes' and 'no'" in call(config, "--show", "february", width=width)


def test_a_task_that_is_not_there_is_refused_with_a_near_name(config: Path):
    done = CliRunner().invoke(app, ["validate", str(config), "--show", "januar"])
    assert done.exit_code == 2 and "Did you mean 'january'?" in done.output


def test_without_the_tokenizer_the_plain_texts_and_the_reason_are_shown(config: Path, no_bundled_model: None):
    said = " ".join(call(config, "--set", "model.name=smollm2-135m").split())
    assert "The tokenizer cannot be loaded, so no lengths are known" in said and "no network here" in said
    assert "as it is in the data" in said and "answers contradict" in said
    found = json.loads(call(config, "--set", "model.name=smollm2-135m", "--json"))
    assert "longest_input" not in found["tasks"][0]
    assert found["tasks"][1]["rendered"]["target"] == [["delivery", False]]


def test_data_without_oddities_says_so(config: Path, tiny_stream: Path):
    said = call(config, "--set", f"data.path={tiny_stream}")
    assert "Nothing stands out" in said and "To know:" not in said
    assert said.count("scored by") == 1 and "exact_match" in said


def test_an_instruction_that_alone_is_too_long_is_refused_as_by_the_run(config: Path, tiny_stream: Path):
    wide = ["--set", f"data.path={tiny_stream}", "--set", "data.max_input=8"]
    done = CliRunner().invoke(app, ["validate", str(config), *wide])
    assert done.exit_code == 2 and "data.max_input" in done.output


FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467 東京 má"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\tb", "a\\tb"), ("a\r\nb", "a\\x0d⏎b"), ("\x9b31m", "\\x9b31m"), (FAMILY, FAMILY)],
)
def test_what_a_terminal_would_act_upon_is_written_out_and_nothing_else(text: str, shown: str):
    assert visible(text) == shown
