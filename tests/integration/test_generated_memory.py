"""Memory that the model wrote itself, in whole runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse.answering.sampling import sample
from kifuse.errors import ConfigError, KifuseError
from kifuse.methods.replay import Replay
from kifuse.methods.texts import Texts
from kifuse.running import task_texts as module
from kifuse.running.runner import run
from kifuse.tasks import read_stream
from tests.runs import LABELS, METHODS, StopIn, Stopped, adapter, make_config
from tests.two_tasks import load

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def fluent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that writes new texts, though it is tiny and random."""

    def write(*args: Any, seed: int, **kwargs: Any) -> list[str]:
        return [f"a new text {seed} {place}" for place, _ in enumerate(args[2])]

    def answer(self: Any, prompts: Sequence[Any]) -> list[str]:
        return [self.labels[place % 2] for place, _ in enumerate(prompts)]

    monkeypatch.setattr(module, "sample", write)
    monkeypatch.setattr(module.TaskTexts, "answer", answer)


def _memory(folder: Path, after: int) -> dict[str, list[dict[str, Any]]]:
    state = json.loads((folder / "state" / f"after-{after}" / "memory.json").read_text("utf-8"))
    return {task["name"]: task["examples"] for task in state["tasks"]}


@pytest.mark.parametrize("name", ["generated-replay", "replay", "kif-m", "kiflora-m", "recurrent-kif"])
def test_a_replaying_method_runs_on_what_the_model_wrote(
    fluent: None, tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, name: str
):
    sections = {} if name == "generated-replay" else {"memory": {"source": "generated"}}
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": name}, **sections)
    with pytest.raises(Stopped):
        run(config, progress=StopIn("fruit"))
    record = run(config)
    assert record.method.data_class == "generated replay"
    held = _memory(tmp_path / "run", 3)
    for task in read_stream(tiny_stream).tasks:
        assert len(held[task.name]) == 3
        assert {row["references"][0] for row in held[task.name]} == set(LABELS[task.name])
        real = {row.body for split in (task.train, task.dev, task.test) for row in split}
        assert all("a new text" in row["body"] and row["body"] not in real for row in held[task.name])
    for entry in record.tasks:
        events = {event["kind"]: event for event in entry.events}
        assert events["written examples"]["kept"] == 3
        assert (events["examples"]["given"], events["examples"]["added"]) == (12, 3)
    assert [bool(entry.replayed_examples) for entry in record.tasks] == [False, True, True]
    again = run(config.model_copy(update={"output": tmp_path / "again"}))
    assert _memory(tmp_path / "again", 3) == held and again.status == "finished"
    first, second = adapter(tmp_path / "run"), adapter(tmp_path / "again")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_could_not_be_written_is_said_and_nothing_real_takes_its_place(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    """A tiny random model writes nothing that passes."""
    config = make_config(
        tiny_folder_llama,
        tiny_stream,
        tmp_path / "run",
        {"name": "recurrent-kif", "inner_steps": 2},
        memory={"source": "generated"},
    )
    record = run(config)
    assert record.status == "finished" and _memory(tmp_path / "run", 3) == {}
    (event,) = [e for e in record.tasks[0].events if e["kind"] == "written examples"]
    assert event["kept"] == 0 and event["asked"] == 12
    assert event["asked"] == sum(event[k] for k in ("empty", "copies", "repeated", "no_label"))


def test_a_method_that_stores_something_with_real_rows_is_refused(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    config = make_config(
        tiny_folder_llama, tiny_stream, tmp_path, {"name": "der++"}, memory={"source": "generated"}
    )
    with pytest.raises(ConfigError, match=r"memory.source: 'generated' does not work with method 'der\+\+'"):
        run(config)


def test_a_hook_may_drop_and_relabel_examples(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def training_examples(self: Replay, ctx: Texts, rows: Sequence[Any]) -> list[Any]:
        assert ctx.labels is not None
        return [*rows[1:], ctx.example(rows[0], answer=ctx.labels[1])]

    monkeypatch.setattr(Replay, "training_examples", training_examples)
    record = run(make_config(tiny_folder_llama, tiny_stream, tmp_path, {"name": "replay"}))
    found = [event for entry in record.tasks for event in entry.events]
    assert (
        found
        == [{"kind": "examples", "step": 0, "given": 12, "added": 1, "dropped": 1, "cut_answers": 0}] * 3
    )


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_sampled_texts_depend_on_the_seed_alone(request: pytest.FixtureRequest, family: str):
    backbone = load(request.getfixturevalue(f"tiny_folder_{family}"))
    prompts = [[5, 6, 7], [5, 6, 7], [8, 9]]

    def texts(seed: int, **changes: Any) -> list[str]:
        settings = {"max_new_tokens": 6, "top_k": 50, "temperature": 1.0, **changes}
        return sample(
            backbone.model,
            backbone.tokenizer,
            prompts,
            encoder_decoder=backbone.encoder_decoder,
            seed=seed,
            **settings,
        )

    before = torch.get_rng_state()
    first = texts(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == texts(1) and first != texts(2)
    greedy = texts(1, top_k=1)
    assert greedy == texts(2, top_k=1) and greedy[0] == greedy[1]


def test_sapt_holds_its_attention_on_inputs_that_the_model_wrote(
    fluent: None, tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    config = make_config(
        tiny_folder_llama, tiny_stream, tmp_path / "run", METHODS["sapt"], memory={"source": "generated"}
    )
    record = run(config)
    assert record.method.data_class == "generated replay"
    held = [e for task in record.tasks for e in task.events if e["kind"] == "kept inputs"]
    assert [(e["inputs"], e.get("unknown")) for e in held] == [(3, None), (6, None)]
    assert [task.replayed_examples for task in record.tasks] == [0, 3, 6]


def brought(folder: Path, lines: list[dict[str, Any]]) -> Path:
    file = folder / "samples.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["replay", "recurrent-kif"])
def test_samples_of_a_user_pass_the_filters_and_are_replayed(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, name: str
):
    colour = read_stream(tiny_stream).tasks[0]
    texts = [
        ("a red ship", "red"),
        ("A  red ship", "red"),
        (colour.test[0].body, "blue"),
        (" ", "blue"),
        ("a green ship", "green"),
        ("another", "red"),
        ("one more", "red"),
        ("the sea", "blue"),
    ]
    lines = [{"task": "colour", "input": text, "output": label} for text, label in texts]
    file = brought(tmp_path, [*lines, {"task": "fruit", "input": "a tree", "output": "plum"}])
    config = make_config(
        tiny_folder_llama,
        tiny_stream,
        tmp_path / "run",
        {"name": name},
        memory={"source": "generated", "samples": file},
    )
    record = run(config)
    assert record.method.data_class == "generated replay"
    held = {
        task: [(row["body"], row["references"][0]) for row in rows]
        for task, rows in _memory(tmp_path / "run", 3).items()
    }
    # three places over two labels: two of each, and the first three of those
    assert held == {
        "colour": [("a red ship", "red"), ("another", "red"), ("the sea", "blue")],
        "fruit": [("a tree", "plum")],
    }
    events = [e for task in record.tasks for e in task.events if e["kind"] == "brought samples"]
    assert [(e["asked"], e["kept"]) for e in events] == [(8, 3), (1, 1), (0, 0)]
    counts = {key: events[0][key] for key in ("copies", "repeated", "empty", "no_label", "surplus")}
    assert counts == {"copies": 1, "repeated": 1, "empty": 1, "no_label": 1, "surplus": 1}
    assert events[0]["file"] == str(file) and len(events[0]["sha256"]) == 64
    # no lessons, and what is kept is replayed
    assert not any(e["kind"] == "examples" for task in record.tasks for e in task.events)
    assert [bool(task.replayed_examples) for task in record.tasks] == [False, True, True]


@pytest.mark.parametrize(
    ("method", "memory", "line", "words"),
    [
        ("replay", {}, {}, r"memory.samples: .*with memory.source 'real' and method 'replay'"),
        ("kif", {"source": "generated"}, {}, r"memory.samples: .*whose class is 'replay-free'"),
        ("replay", {"source": "generated"}, {"task": "x"}, r"samples.jsonl:1: the field 'input' is missing"),
        (
            "replay",
            {"source": "generated"},
            {"task": 3, "input": "a", "output": "b"},
            r"samples.jsonl:1.*'task'",
        ),
    ],
)
def test_samples_that_cannot_be_used_are_refused(
    tiny_folder_llama: Path,
    tiny_stream: Path,
    tmp_path: Path,
    method: str,
    memory: dict[str, Any],
    line: dict[str, Any],
    words: str,
):
    given = {**memory, "samples": brought(tmp_path, [line])}
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": method}, memory=given)
    with pytest.raises(KifuseError, match=words):
        run(config)
