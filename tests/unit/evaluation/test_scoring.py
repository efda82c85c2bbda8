from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from kifuse.errors import ConfigError, DataError
from kifuse.evaluation.scoring import exact_match, is_valid_label, normalise, rouge_l, score, score_one


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
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_exact_match_takes_any_reference() -> None:
    assert exact_match(" Positive.", ("negative", "positive")) == 1.0
    assert exact_match("very positive", ("positive",)) == 0.0
    assert exact_match("", ("positive",)) == 0.0


@pytest.mark.parametrize(("one", "other"), [("C#", "C"), ("-5", "5"), ("C++", "C")])
def test_labels_that_differ_in_a_symbol_stay_apart(one: str, other: str) -> None:
    assert exact_match(one, (other,)) == 0.0


def test_valid_labels_are_told_from_other_text() -> None:
    assert is_valid_label("True.", ["true", "false"])
    assert not is_valid_label("true or false", ["true", "false"])


@given(st.text("abc .,1", max_size=30), st.text("abc .,1", max_size=30))
def test_rouge_of_english_is_that_of_the_package(prediction: str, reference: str) -> None:
    package = RougeScorer(["rougeL"], use_stemmer=False).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, (reference,)) == package


def test_rouge_takes_the_best_reference() -> None:
    assert rouge_l("the cat sat", ("a dog ran", "the cat sat")) == 1.0
    assert rouge_l("the cat", ("the dog",)) == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["Привет мир", "東京は大きい", "हिन्दी भाषा"])
def test_rouge_of_other_scripts_is_not_zero(text: str) -> None:
    assert rouge_l(text, (text,)) == 1.0
    assert rouge_l("something else", (text,)) == 0.0


def test_rouge_of_a_script_without_spaces_counts_characters() -> None:
    assert 0.0 < rouge_l("東京は小さい", ("東京は大きい",)) < 1.0


def test_score_is_a_percentage_over_examples() -> None:
    examples = [SimpleNamespace(references=("a",)), SimpleNamespace(references=("b", "c"))]
    assert score(["a", "d"], examples, "exact_match") == 50.0
    assert score(["A.", "c"], examples, "exact_match") == 100.0


def test_score_refuses_what_it_cannot_score() -> None:
    example = SimpleNamespace(references=("a",))
    with pytest.raises(DataError, match="no examples"):
        score([], [], "exact_match")
    with pytest.raises(DataError, match="found 2 predictions for 1 examples"):
        score(["a", "b"], [example], "exact_match")
    with pytest.raises(ConfigError, match="Did you mean 'rouge_l'"):
        score_one("a", ("a",), "rougel")
