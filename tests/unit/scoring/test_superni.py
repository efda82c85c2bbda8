"""SuperNI's own evaluation, against its rules written out."""

from __future__ import annotations

import random
import string
from types import SimpleNamespace
from typing import Any

import pytest
from rouge_score import rouge_scorer
from rouge_score.scoring import Score

from kifuse.errors import DataError
from kifuse.scoring import superni
from kifuse.scoring.scores import score
from tests.tiny import build_tokenizer

WORDS = "the Cats running runs, ran quickly 7 (old) houses' don't Paris. studies happily 東京 мир".split()  # noqa: SIM905


def cases(count: int) -> list[tuple[str, list[str]]]:
    """Predictions with one to three references."""
    draw = random.Random(3)
    return [
        (
            " ".join(draw.choices(WORDS, k=draw.randint(0, 8))),
            [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(draw.randint(1, 3))],
        )
        for _ in range(count)
    ]


def scored(metric: str, found: list[tuple[str, list[str]]]) -> float:
    """The score of a task, as a run has it."""
    examples: Any = [SimpleNamespace(references=tuple(references)) for _, references in found]
    return score([prediction for prediction, _ in found], examples, metric)


def published(found: list[tuple[str, list[str]]], one: Any) -> float:
    """The best reference of each, and 100 times the mean of all."""
    return 100.0 * sum(max(one(p, each) for each in gold) for p, gold in found) / len(found)


def normalised(text: str) -> str:
    kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(kept.split())


def fmeasure(scores: dict[str, Score]) -> float:
    return scores["rougeL"].fmeasure


def test_exact_match_is_that_of_superni():
    found = [*cases(50), ("Paris.", ["London", "paris"]), ("don't  stop", ["dont stop"]), ("a", ["b"])]
    wanted = published(found, lambda p, gold: float(normalised(p) == normalised(gold)))
    assert scored("superni_exact_match", found) == pytest.approx(wanted, abs=1e-9) and wanted > 0


def test_rouge_l_is_that_of_superni():
    plain = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    found = cases(200)
    wanted = published(found, lambda p, gold: fmeasure(plain.score(prediction=p, target=gold)))
    assert scored("superni_rouge_l", found) == pytest.approx(wanted, abs=1e-9) and wanted > 10
    # stems count as the same word, and a text in another script has no words at all
    assert scored("superni_rouge_l", [("the cat runs", ["the cats running"])]) == 100.0
    assert scored("superni_rouge_l", [("東京", ["東京"])]) == 0.0


def test_tokens_of_other_scripts_are_those_of_gpt2(monkeypatch: pytest.MonkeyPatch):
    tokenizer = build_tokenizer()
    monkeypatch.setattr(superni, "gpt2", lambda: tokenizer)

    class Tokens:
        def tokenize(self, text: str) -> list[str]:
            return [token.lstrip("Ġ") for token in tokenizer.tokenize(text)]

    found = cases(100)
    plain = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Tokens())
    wanted = published(found, lambda p, gold: fmeasure(plain.score(prediction=p, target=gold)))
    assert scored("superni_rouge_l_xlingual", found) == pytest.approx(wanted, abs=1e-9)
    assert scored("superni_rouge_l_xlingual", [("東京", ["東京"])]) == pytest.approx(100.0)


def test_a_missing_tokenizer_is_said(monkeypatch: pytest.MonkeyPatch):
    def gone(name: str) -> Any:
        raise OSError(f"{name} is nowhere\nand more")

    superni.gpt2.cache_clear()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", gone)
    with pytest.raises(DataError, match=r"gpt2 is nowhere Download it once .* 'hf download gpt2'"):
        superni.gpt2()
