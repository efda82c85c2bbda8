"""The published tasks are scored as the papers did: labels and English are compared as they always were."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from kifuse.scoring import score_all
from kifuse.scoring.labels import comparison, normalise
from kifuse.tasks.readers import read_stream


def _answers(references: list[str], seed: int) -> list[str]:
    """What a model might say: some right, some cut, some in other words, letter case or order."""
    draw = random.Random(seed)
    found = []
    for reference in references:
        words = reference.split()
        cut = [word for word in words if draw.random() < 0.8]
        shuffled = draw.sample(words, len(words))
        found.append(
            draw.choice(
                [
                    reference,
                    reference.upper() + " .",
                    draw.choice(references),
                    " ".join(cut),
                    " ".join(shuffled),
                ]
            )
        )
    return found


@pytest.mark.parametrize("data", ["long_sequence", "cl_benchmark"])
def test_published_labels_are_compared_as_ever(shared_data: Path, data: str) -> None:
    for task in read_stream(shared_data / data):
        assert task.labels and comparison(task.labels).form is normalise
        answers = _answers([example.target for example in task.test], 0)
        scored = score_all(answers, task.test, task.metric, task.labels)
        right = [normalise(a) == normalise(e.target) for a, e in zip(answers, task.test, strict=True)]
        assert scored.points == [float(each) for each in right]
        known = {normalise(label) for label in task.labels}
        assert scored.valid == [normalise(answer) in known for answer in answers]


def test_superni_is_scored_by_the_package(shared_data: Path) -> None:
    package = RougeScorer(["rougeL"], use_stemmer=False)
    for task in read_stream(shared_data / "superni"):
        examples = [e for e in task.test if all(any(c.isalnum() for c in r) for r in e.references)]
        examples = [e for e in examples if "".join(e.references).translate(ORDINARY).isascii()]
        answers = _answers([example.target for example in examples], 1)
        scored = score_all(answers, examples, task.metric, task.labels)
        for answer, example, found in zip(answers, examples, scored.points, strict=True):
            wanted = max(package.score(r, answer)["rougeL"].fmeasure for r in example.references)
            assert found == wanted, (answer, example.references)


ORDINARY = str.maketrans("", "", "\u00a3\u2019\u2014\u2013\u201c\u201d")
"""What is no ASCII and no part of a word either."""
