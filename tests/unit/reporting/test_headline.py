"""The headline: its numbers, and the sentence that says what they mean."""

from __future__ import annotations

import pytest

from kifuse.record.run_record import RunRecord
from kifuse.reporting.headline import Figure, figures, how_scored, sentence
from tests.unit.reporting.runs import make_record


def named(record: RunRecord) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures(record)}


def test_the_numbers_of_a_run():
    record = make_record(full=True, peak_memory_mb=2048.0, memory={"examples": 80, "tasks": []})
    found = named(record)
    assert list(found)[:4] == ["AP", "BWT", "forgetting", "FWT"]
    assert found["AP"].value == "70.0"
    assert found["BWT"].value == "\u221225.0"
    assert (found["valid outputs"].value, found["valid outputs"].unit) == ("98.0", "%")
    assert (found["training time"].value, found["training time"].unit) == ("7.5", "s")
    assert (found["peak memory"].value, found["peak memory"].unit) == ("2.0", "GiB")
    assert "80 old examples" in found["peak memory"].note


def test_a_missing_number_is_a_dash_with_its_reason():
    found = named(make_record(tasks=["a"]))
    assert found["BWT"].value == "\u2013"
    assert found["BWT"].note.startswith("none: ")
    assert found["peak memory"].value == "\u2013"


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        (-1.5, "got better at the earlier tasks, from 90.0 when learned to 93.8"),
        (0.4, "kept what it had learned"),
        (4.0, "lost a little of what it had learned"),
        (
            10.0,
            "lost a good part of what it had learned: the earlier tasks fell from 90.0 when learned to 65.0",
        ),
        (20.0, "lost most of what it had learned"),
    ],
)
def test_the_sentence_says_how_much_was_lost(drop: float, said: str):
    text = sentence(make_record(drop=drop))
    assert text.startswith("After five tasks the model scores ")
    assert said in text


def test_the_sentence_does_not_praise_what_never_was_learned():
    record = make_record()
    for cell in record.scores:
        cell.score, cell.valid = 0.0, 12.5
    said = sentence(record)
    assert "There was little to forget: the earlier tasks went from 0.0 when learned to 0.0" in said
    assert "Only 12.5% of its answers at the end are a label of their task." in said


def test_the_sentence_names_the_task_that_lost_the_most():
    assert "yelp lost the most (90.0 to 50.0)." in sentence(make_record())


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (make_record("joint", data_class="all data"), "Trained on all five tasks at once"),
        (make_record(tasks=["a"]), "The one task was learned to a score of 90.0."),
        (make_record(scores=[]), "not all of it is scored"),
        (make_record().model_copy(update={"tasks": [], "scores": []}), "No task has been learned yet."),
    ],
    ids=["joint", "one task", "not scored", "no task"],
)
def test_runs_without_a_before_and_after_are_told_as_what_they_are(record: RunRecord, said: str):
    assert said in sentence(record)
    assert len(figures(record)) == 7


def test_a_run_that_goes_on_says_how_far_it_is():
    record = make_record(status="running", scores=[])
    for task in record.tasks[2:]:
        task.train_steps = None
    assert sentence(record) == "The run is not finished: it has learned two of five tasks."
    assert named(record)["AP"].note.startswith("none: ")


def test_scores_are_explained_by_their_metrics():
    record = make_record(tasks=["a", "b"])
    record.tasks[1].metric = "rouge_l"
    assert how_scored(record) == "Scores run from 0 to 100 (exact match and ROUGE-L)."
    record.machine["precision"] = "bf16"
    assert "Answers were generated in bf16. If two tokens are almost equally likely" in how_scored(record)
