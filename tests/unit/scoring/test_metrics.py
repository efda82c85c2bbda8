"""Each metric: the value of its published definition, and 100 for the same answer only."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kifuse.errors import DataError
from kifuse.scoring.free_text import squad_words
from kifuse.scoring.metrics import METRICS, metric_titles
from kifuse.scoring.scores import score, score_all, score_one

GUIDE = Path(__file__).parents[3] / "docs" / "your-own-data.md"
FREE = ["exact_match", "token_f1", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"]
ANSWERED = [name for name, each in METRICS.items() if each.points is not None and not each.to_the_letter]
WORDS = "the a cat dog sat on mat red 7 42 don't Paris, (old) well-known runs. in it's an".split()  # noqa: SIM905


def _of(*references: str) -> SimpleNamespace:
    return SimpleNamespace(references=references)


def _pairs(count: int, seed: int = 0, words: list[str] = WORDS) -> list[tuple[str, str]]:
    """Texts and what became of them: words lost, put in, changed places."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        one = draw.choices(words, k=draw.randint(1, 12))
        other = [w for w in one if draw.random() < 0.8] + draw.choices(words, k=draw.randint(0, 3))
        if draw.random() < 0.3:
            draw.shuffle(other)
        found.append((" ".join(other), " ".join(one)))
    return found


# Any text that a model can emit: every category but halves of surrogate pairs, and what people write.
TEXTS = st.one_of(
    st.text(),
    st.text(st.characters(categories=["M", "P", "S", "Cc", "Cf", "Z"]), min_size=1),
    st.lists(
        st.sampled_from(
            [
                "👩‍👩‍👧",
                "👍🏽",
                "🇫🇷",
                "1️⃣",
                "→",
                "שלום",
                "مرحبا",
                "٣٤",
                "၃",
                "東京",
                "ภาษา",
                "ខ្មែរ",
                "\u0301",
                "\u202e",
                " ",
                "\n    ",
            ]
        ),
        min_size=1,
    ).map("".join),
)


@settings(max_examples=150, deadline=None)
@given(TEXTS)
@example("<|im_end|>")
@example("")
@example("1" * 5000)
@example("[" * 3000)
@example("1e999")
def test_a_text_of_any_script_scores_100_against_itself(text: str) -> None:
    for metric in ANSWERED:
        assert score([text], [_of("something else", text)], metric) == 100.0, metric


@pytest.mark.parametrize("metric", ["rouge_1", "rouge_2", "rouge_l"])
def test_rouge_of_english_is_that_of_the_package(metric: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    kind = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}[metric]
    package = RougeScorer([kind], use_stemmer=False)
    compared = 0
    for prediction, reference in _pairs(400):
        wanted = package.score(reference, prediction)[kind].fmeasure
        found = score_one(prediction, (reference,), metric)
        if wanted == 1.0 or found == 1.0:
            continue  # the same answer, or the same words in another order
        assert found == wanted
        compared += 1
    assert compared > 250


def test_bleu_is_that_of_the_package() -> None:
    from sacrebleu import corpus_bleu, sentence_bleu

    pairs = [pair for pair in _pairs(300) if pair[0] != pair[1]]
    for prediction, reference in pairs:
        wanted = sentence_bleu(prediction, [reference]).score / 100
        assert score_one(prediction, (reference,), "bleu") == pytest.approx(min(wanted, 1.0))
    second = [other for _, other in _pairs(len(pairs), seed=1)]
    examples = [_of(reference, other) for (_, reference), other in zip(pairs, second, strict=True)]
    wanted = corpus_bleu([p for p, _ in pairs], [[r for _, r in pairs], second]).score
    assert score([p for p, _ in pairs], examples, "bleu") == pytest.approx(wanted)


def test_chrf_is_that_of_the_package() -> None:
    from sacrebleu import corpus_chrf, sentence_chrf

    pairs = [pair for pair in _pairs(300) if pair[0] != pair[1]]
    for prediction, reference in pairs:
        wanted = sentence_chrf(prediction, [reference]).score / 100
        assert score_one(prediction, (reference,), "chrf") == pytest.approx(wanted)
    wanted = corpus_chrf([p for p, _ in pairs], [[r for _, r in pairs]]).score
    assert score([p for p, _ in pairs], [_of(r) for _, r in pairs], "chrf") == pytest.approx(wanted)


def test_a_set_of_single_words_has_a_bleu() -> None:
    """The package's own corpus BLEU is 0 where no text has four words, though half the answers are right."""
    assert 0.0 < score(["Paris", "Rome"], [_of("Paris"), _of("Oslo")], "bleu") < 100.0


def test_token_f1_is_that_of_squad() -> None:
    def official(prediction: str, reference: str) -> float:
        mine, theirs = squad_words(prediction), squad_words(reference)
        common = sum((Counter(mine) & Counter(theirs)).values())
        if not common:
            return 0.0
        precision, recall = common / len(mine), common / len(theirs)
        return 2 * precision * recall / (precision + recall)

    assert squad_words("The Cat, an old-timer (a)!") == ["cat", "oldtimer"]
    for prediction, reference in _pairs(300):
        wanted, found = official(prediction, reference), score_one(prediction, (reference,), "token_f1")
        assert found == pytest.approx(wanted) or wanted == pytest.approx(1.0) or found == 1.0
    assert score_one("Eiffel Tower", ("the Eiffel Tower",), "token_f1") == 1.0
    assert score_one("the tower of Eiffel", ("Eiffel Tower",), "token_f1") == pytest.approx(0.8)


def test_accuracy_and_macro_f1_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    draw = random.Random(0)
    for labels in (["a", "b"], ["yes", "no", "may be"], [str(n) for n in range(9)]):
        truth, found = draw.choices(labels, k=120), draw.choices(labels, k=120)
        examples = [_of(label) for label in truth]
        assert score(found, examples, "accuracy", labels) == pytest.approx(100 * accuracy_score(truth, found))
        wanted = 100 * f1_score(truth, found, average="macro")
        assert score(found, examples, "macro_f1", labels) == pytest.approx(wanted)


def test_macro_f1_with_labels_that_do_not_occur_and_answers_that_are_none() -> None:
    labels, examples = ["a", "b", "c"], [_of("a"), _of("a"), _of("b"), _of("b")]
    assert score(["a", "a", "b", "b"], examples, "macro_f1", labels) == 100.0
    # a: precision 1, recall 1/2; b: precision 2/2, recall 1; what is no label adds no class
    assert score(["a", "rubbish", "b", "B."], examples, "macro_f1", labels) == pytest.approx(
        100 * (2 / 3 + 1) / 2
    )
    # c is predicted and never right: it counts with 0
    assert score(["a", "c", "b", "b"], examples, "macro_f1", labels) == pytest.approx(
        100 * (2 / 3 + 1 + 0) / 3
    )
    assert score(["rubbish"] * 4, examples, "macro_f1", labels) == 0.0
    assert score(["a", "a", "b", "x"], examples, "macro_f1") == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert score(["b"], [_of("a", "b")], "macro_f1", labels) == 100.0


# What a person would call another answer.
DIFFERENT = [
    ("-5", "5"),
    ("−5", "5"),
    ("x < 5", "x > 5"),
    ("x = y", "x ≠ y"),
    ("a → b", "a ← b"),
    ("má", "mà"),
    ("ma", "má"),
    ("A-", "A"),
    ("A+", "A"),
    ("C#", "C"),
    (".5", "5"),
    ("1.5", "1:5"),
    ("5%", "5"),
    ("$5", "€5"),
    ("5'", '5"'),
    ("2 * (3 + 4)", "2 * 3 + 4"),
    ("if x:\n    a()\nb()", "if x:\n    a()\n    b()"),
    ("def f():\n\treturn 1", "def f():\nreturn 1"),
    ("😀", "😡"),
    ("great 😀", "great 😡"),
    ("👍🏽", "👍🏿"),
    ("🇫🇷", "🇮🇹"),
    ("٣", "٤"),
    ("१", "२"),
    ("²", "³"),
    ("東京", "京東"),
    ("!", "?"),
    ("dog bites man", "man bites dog"),
    ("", "x"),
    ("", "😀"),
    ("", "..."),
]


@pytest.mark.parametrize("metric", FREE)
@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=[ascii(pair)[1:-1] for pair in DIFFERENT])
def test_another_answer_never_scores_100(metric: str, one: str, other: str) -> None:
    assert score([one], [_of(other)], metric) < 100.0
    assert score([other], [_of(one)], metric) < 100.0
    assert score([one, "x"], [_of(other), _of("x")], metric) < 100.0


@pytest.mark.parametrize("metric", FREE)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris.", "paris"),
        (' "Paris"\n', "Paris"),
        ("I  see!", "i see"),
        ("caf\u0065\u0301", "CAFÉ"),
        ("¡Hola!", "hola"),
        ("東京。", "東京"),
        ("**Yes**", "yes"),
    ],
)
def test_the_same_answer_scores_100(metric: str, one: str, other: str) -> None:
    assert score([one], [_of(other)], metric) == 100.0
    assert score([other], [_of("else", one)], metric) == 100.0


def test_rouge_and_f1_pass_over_the_punctuation_within_a_sentence() -> None:
    for metric in ("rouge_l", "token_f1"):
        assert score_one("the cat, so old - sat", ("the cat so old sat",), metric) == 1.0
        assert score_one("kettle no heat | call", ("kettle | no heat | call",), metric) == 1.0
        assert score_one("a||b", ("a b",), metric) < 1.0


@pytest.mark.parametrize("metric", FREE[1:])
@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("東京は小さいです", "東京は大きいです"),
        ("ภาษาไทยยาก", "ภาษาไทยง่าย"),
        ("ພາສາລາວ", "ພາສາໄທ"),
        ("ភាសាខ្មែរ", "ភាសាថៃ"),
        ("မြန်မာစာ", "မြန်မာစကား"),
        ("Я вижу старый дом", "Я вижу новый дом"),
        ("我用 iPhone 上网 today", "我用 iPad 上网 today"),
    ],
)
def test_a_partial_answer_in_any_script_gets_partial_credit(
    metric: str, prediction: str, reference: str
) -> None:
    assert 0.0 < score_one(prediction, (reference,), metric) < 1.0


@pytest.mark.parametrize("metric", ANSWERED)
def test_an_empty_prediction_scores_nothing_and_fails_nowhere(metric: str) -> None:
    examples = [_of("Paris"), _of("42"), _of('{"a": 1}')]
    assert score(["", "", ""], examples, metric) == 0.0
    assert score([" \n", "", ""], examples, metric) == 0.0


@pytest.mark.parametrize("metric", ANSWERED)
def test_the_best_of_several_references_counts(metric: str) -> None:
    assert score_one("42", ("7", "42"), metric) == 1.0
    assert score_one("42", ("7", "8"), metric) == 0.0


def test_ordinary_means_are_means_and_whole_scores_are_of_the_set() -> None:
    scored = score_all(["the cat", "x"], [_of("the dog"), _of("x")], "rouge_l")
    assert (scored.points, scored.score, scored.valid) == ([0.5, 1.0], 75.0, None)
    assert score_all(["a", "c"], [_of("a"), _of("b")], "accuracy", ["a", "b"]).valid == [True, False]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a": 1, "b": [true]}', '{"b":[true],"a":1.0}', True),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": 1}', '{"a": 2}', False),
        ("[1, 2]", "[2, 1]", False),
        ('"A"', '"a"', False),
        ('{"a": 1', '{"a": 1', True),
        ("no JSON", '{"a": 1}', False),
    ],
)
def test_json_is_compared_as_json(one: str, other: str, same: bool) -> None:
    assert score_one(one, (other,), "json") == float(same)


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_json_value_equals_itself_written_otherwise(value: object) -> None:
    one, other = json.dumps(value, indent=3), json.dumps(value, ensure_ascii=False, sort_keys=True)
    assert score_one(one, (other,), "json") == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("1,000", "1000", True),
        ("0.30000000000000004", "0.3", True),
        ("5.0", "5", True),
        ("The answer is 42.", "42", True),
        ("x = 42", "42", True),
        ("$5", "5", True),
        ("5%", "0.05", True),
        ("1/4", ".25", True),
        ("٤٢", "42", True),
        ("1e3", "1000", True),
        ("−5", "-5", True),
        ("-5", "5", False),
        ("< 5", "5", False),
        ("5%", "5", False),
        ("$5", "€5", False),
        ("41 or 42", "42", False),
        ("42.1", "42", False),
        ("10000001", "10000000", False),
        ("3.14", "3.14159", False),
        ("forty-two", "42", False),
        ("nan", "5", False),
        ("1/0", "1", False),
        ("none", "None.", True),
        ("v42", "42", False),
    ],
)
def test_numbers_are_compared_as_numbers(prediction: str, reference: str, same: bool) -> None:
    assert score_one(prediction, (reference,), "number") == float(same)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers())
def test_numbers_written_otherwise_are_the_same(real: float, whole: int) -> None:
    assert score_one(f"{whole:,}", (str(whole),), "number") == 1.0
    assert score_one(repr(real * (1 + 1e-9)), (repr(real),), "number") == 1.0
    assert score_one(str(whole + 1), (str(whole),), "number") == 0.0


def test_code_keeps_its_indentation_and_loses_trailing_space() -> None:
    code = "def f(x):\n    return x\n"
    assert score_one("def f(x):  \r\n    return x", (code,), "code") == 1.0
    assert score_one("def f(x):\n  return x", (code,), "code") == 0.0
    assert score_one("def F(x):\n    return x", (code,), "code") == 0.0


def test_score_refuses_what_it_cannot_score() -> None:
    with pytest.raises(DataError, match="no examples"):
        score([], [], "exact_match")
    with pytest.raises(DataError, match="found 2 predictions for 1 examples"):
        score(["a", "b"], [_of("a")], "exact_match")
    with pytest.raises(
        DataError, match=r"expected one of exact_match, .*'module:function'.*Did you mean 'rouge_l'"
    ):
        score_one("a", ("a",), "rougel")
    with pytest.raises(DataError, match="measured on the model"):
        score_one("a", ("a",), "perplexity")


def test_the_guide_lists_every_metric() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \| (.+) \| (the set|each answer) \|$", GUIDE.read_text("utf-8"), re.M
    )
    known = [
        (each.name, each.title, each.meaning, "the set" if each.over_set else "each answer")
        for each in METRICS.values()
    ]
    assert rows == known


def test_every_metric_has_a_title_and_a_meaning() -> None:
    assert metric_titles(["rouge_l", "exact_match", "rouge_l", "mine:score"]) == [
        "ROUGE-L",
        "exact match",
        "mine:score",
    ]
    assert all(each.name == name and each.title and each.meaning for name, each in METRICS.items())
