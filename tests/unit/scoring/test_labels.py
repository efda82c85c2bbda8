"""Answers that are labels: all labels of a task stay apart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kifuse.scoring import score, score_all, score_one
from kifuse.scoring.labels import comparison, comparison_why, normalise

AS_TODAY = "labels are the same except for letter case, spaces and punctuation at the ends"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Very   Negative.\n", "very negative"),
        ('"World"', "world"),
        ("**Sports**!", "sports"),
        ("(B)", "b"),
        ("C#", "c#"),
        ("C++", "c++"),
        ("-5", "-5"),
        (" - .5.", ".5"),
        ("5%", "5%"),
        ("Education & Reference", "education & reference"),
        ("?!", "?!"),
        ("", ""),
        ("„Straße“", "straße"),
        ("Ma\u0301", "m\u00e1"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (["World", "Sports"], AS_TODAY),
        (["C", "C#", "C++"], AS_TODAY),
        (["-1", "0", "1"], AS_TODAY),
        (["A", "A-", "A+", "B"], "punctuation tells them apart"),
        (["us", "US"], "letter case tells them apart"),
        (["a.", "A."], "letter case tells them apart"),
        (["a", "a "], "exactly as they are"),
        (["x", "x\n"], "exactly as they are"),
        (["m\u00e1", "m\u00e0", "ma"], AS_TODAY),
        (["m\u00e1", "ma\u0301"], "exactly as they are"),
    ],
)
def test_the_loosest_comparison_that_keeps_all_labels_apart_is_taken(labels: list[str], why: str) -> None:
    assert why in comparison_why(labels)
    examples = [SimpleNamespace(references=(label,)) for label in labels]
    for metric in ("exact_match", "accuracy", "macro_f1", "rouge_l", "token_f1", "bleu", "chrf"):
        assert score(labels, examples, metric, labels) == 100.0
        for place, label in enumerate(labels):
            others = [other for n, other in enumerate(labels) if n != place]
            assert all(score_one(other, (label,), metric, labels) < 1.0 for other in others), metric
    assert score_all(labels, examples, "exact_match", labels).valid == [True] * len(labels)


@given(st.lists(st.text(max_size=4), min_size=1, max_size=5, unique=True))
def test_any_labels_stay_apart(labels: list[str]) -> None:
    compared = comparison(labels)
    assert [compared.label(label) for label in labels] == list(range(len(labels)))


def test_labels_are_told_from_other_text() -> None:
    examples = [SimpleNamespace(references=("true",))] * 3
    scored = score_all(["True.", "true or false", "false"], examples, "exact_match", ["true", "false"])
    assert (scored.points, scored.valid) == ([1.0, 0.0, 0.0], [True, False, True])
    assert score_all(["a", "A"], examples[:2], "exact_match", ["A", "A-"]).valid == [True, True]


def test_a_label_is_known_as_the_tokenizer_gives_it_back() -> None:
    labels, seen = ["yes</s>", "no</s>"], ["yes", "no"]
    examples = [SimpleNamespace(references=(labels[0],))] * 3
    scored = score_all(
        ["Yes.", "no", "maybe"],
        examples,
        "exact_match",
        labels,
        seen=[["yes"]] * 3,
        seen_labels=seen,
    )
    assert (scored.points, scored.valid) == ([1.0, 0.0, 0.0], [True, True, False])


def test_free_text_says_how_it_is_compared() -> None:
    assert "signs, symbols" in comparison_why(None)


def test_the_options_of_a_row_are_its_labels() -> None:
    rows = [
        SimpleNamespace(references=("US",), options=("us", "US")),
        SimpleNamespace(references=("US",), options=("US", "DE")),
        SimpleNamespace(references=("A",), options=("A", "A-")),
    ]
    for metric in ("exact_match", "accuracy", "rouge_l", "token_f1"):
        assert score_all(["US", "US", "A"], rows, metric).points == [1.0, 1.0, 1.0]
        assert score_all(["us", "us.", "A-"], rows, metric).points == [0.0, 1.0, 0.0]
    assert score(["US", "US", "A"], rows, "macro_f1") == 100.0
    assert score(["us", "US", "A-"], rows, "macro_f1") < 50.0
    plain = [SimpleNamespace(references=("US",))]
    assert score(["us"], plain, "exact_match") == 100.0
