"""Two processes share the test prompts, and come to what one alone comes to, to the last byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.invariants import scoring_of_many
from tests.invariants.scoring_of_many import NAMES
from tests.processes import run_two
from tests.runs import write_stream

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def scored(tiny_folder_llama: Path, tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """For each method what one process has scored, and what two have scored together."""
    folder = tmp_path_factory.mktemp("scored")
    stream = write_stream(folder / "stream", train=8, test=17)
    write_watched(folder)
    torch.set_num_threads(1)
    for name in NAMES:
        scoring_of_many.train(tiny_folder_llama, stream, folder, name)
        told = scoring_of_many.score(tiny_folder_llama, stream, folder, name, "one")
        (folder / name / "told-alone.json").write_text(json.dumps(told.told), encoding="utf-8")
    run_two("tests.invariants.scoring_of_many", *map(str, (tiny_folder_llama, stream, folder)), timeout=300)
    return folder


def write_watched(folder: Path) -> None:
    """Two tasks to watch: questions, and plain texts that are scored by their perplexity."""
    questions = [{"input": f"ship {i} " + "town " * i, "output": "yes"} for i in range(7)]
    texts = [{"text": f"harbour {i} " + "science sports " * (i + 1)} for i in range(7)]
    for name, rows in (("watched", questions), ("texts", texts)):
        (folder / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / "test.jsonl").write_text(lines, encoding="utf-8")


def on_record(folder: Path) -> dict[str, Any]:
    """Everything that was scored, but for how long it took."""
    record = json.loads((folder / "record.json").read_text("utf-8"))
    scores = [
        {key: value for key, value in each.items() if key != "seconds"}
        for each in (*record["scores"], *record["watch_scores"])
    ]
    return {"scores": scores, "cut": [task["cut_test_inputs"] for task in record["tasks"]]}


def predictions(folder: Path) -> dict[str, bytes]:
    found = {
        each.relative_to(folder).as_posix(): each.read_bytes()
        for each in (folder / "predictions").rglob("*.jsonl")
    }
    assert len(found) == 2 + 3 + 3 + 4 * 2  # those learned and the next one; the watched ones, also at first
    return found


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_write_the_very_predictions_of_one(scored: Path, name: str):
    one, two = (predictions(scored / name / output) for output in ("one", "two"))
    assert one == two
    assert len({line for lines in one.values() for line in lines.splitlines()}) > 40


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_put_on_record_what_one_does(scored: Path, name: str):
    one, two = (on_record(scored / name / output) for output in ("one", "two"))
    assert one == two
    found = {score.get("identified") for score in one["scores"]}
    assert (found != {None}) == (name in ("epi", "mocl"))


def test_each_process_answers_a_share_and_says_how_far_all_are(scored: Path):
    both = [json.loads((scored / f"told-{rank}.json").read_text("utf-8")) for rank in range(2)]
    for name in NAMES:
        alone = json.loads((scored / name / "told-alone.json").read_text("utf-8"))
        # it is told once for each batch
        shares = [len(each[name]) for each in both]
        assert sum(shares) == len(alone) and max(shares) <= 0.6 * len(alone)
        for told in (alone, *(each[name] for each in both)):
            of_colour = [(done, total) for task, done, total in told if task == "colour"]
            assert {total for _, total in of_colour} == {17} and of_colour[-1][0] == 17
