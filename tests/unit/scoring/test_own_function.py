"""A user's own function as a metric."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kifuse.errors import DataError
from kifuse.scoring import score, score_one
from kifuse.scoring.own_function import register_metric, source_hash
from kifuse.tasks.task import Example, Task

EXAMPLES = [Example("", "2+2=", "", ("4",), "sum-1"), Example("", "2+3=", "", ("5",), "sum-2")]


def has_digits(prediction: str, references: list[str]) -> bool:
    return any(reference in prediction for reference in references)


def by_example(prediction: str, example: Example) -> float:
    return 0.25 if example.body.startswith(prediction) else 0.75


class Strict:
    def __call__(self, prediction: str, references: list[str]) -> bool:
        return prediction in references


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, which is left again with the modules that were imported from it."""
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_a_module_of_the_working_directory_is_found_by_name(here: Path) -> None:
    text = "def score(prediction, references):\n    return 0.5 if prediction else 0\n"
    (here / "my_scores.py").write_text(text)
    assert score(["x", ""], EXAMPLES, "my_scores:score") == 25.0
    task = Task("sums", tuple(EXAMPLES), (), (), None, "my_scores:score")
    assert task.metric == "my_scores:score"
    assert task.metric_source == hashlib.sha256(text.encode()).hexdigest()
    assert str(here) not in sys.path


def test_a_module_of_a_package_is_found(here: Path) -> None:
    (here / "ours").mkdir()
    (here / "ours" / "scores.py").write_text("class Of:\n    def all(text, example):\n        return 1\n")
    assert score_one("x", ("y",), "ours.scores:Of.all") == 1.0


def test_a_function_may_be_given_as_it_is() -> None:
    assert score(["= 4", "6"], EXAMPLES, has_digits) == 50.0
    assert score(["2", ""], EXAMPLES, by_example) == 25.0
    assert score(["4", "4"], EXAMPLES, Strict()) == 50.0
    assert score(["4", "4"], EXAMPLES, lambda prediction, references: True) == 100.0
    task = Task("sums", tuple(EXAMPLES), (), (), None, has_digits)  # pyright: ignore[reportArgumentType]
    assert task.metric == f"{__name__}:has_digits"
    assert task.metric_source == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert task.comparison_why == ""


def test_two_functions_without_a_name_of_their_own_are_told_apart() -> None:
    one, other = (lambda prediction, references: True), (lambda prediction, references: 0)
    names = register_metric(one), register_metric(other)
    assert names[0] != names[1] and "@" in names[0]
    assert [score_one("x", ("y",), name) for name in names] == [1.0, 0.0]
    assert source_hash(names[0]) is not None

    def scorer(value: float) -> Callable[..., float]:
        return lambda prediction, references: value

    made = [register_metric(scorer(value)) for value in (0.25, 0.5, 0.25)]
    assert made[0] == made[2]
    assert [score_one("x", ("y",), name) for name in made] == [0.25, 0.5, 0.25]


def test_numbers_of_other_libraries_are_numbers() -> None:
    import numpy as np
    import torch

    for value in (np.float32(0.5), np.bool_(True), torch.tensor(0.5), np.array([1])):
        found = score_one("x", ("y",), lambda prediction, references, value=value: value)
        assert found == float(value.item())


@pytest.mark.parametrize("value", [None, "good", float("nan"), 1.5, -0.1, 100, [1, 0], {}])
def test_what_is_no_score_is_refused_with_the_example(value: object) -> None:
    def odd(prediction: str, references: list[str]) -> object:
        return value

    with pytest.raises(
        DataError, match=r"returned .* for example sum-1 '2\+2=…', prediction 'x'; expected true"
    ):
        score(["x", "y"], EXAMPLES, odd)


def test_a_function_that_raises_is_refused_with_the_example_and_the_line(here: Path) -> None:
    (here / "halves.py").write_text("def score(prediction, references):\n    return int(prediction) / 10\n")
    with pytest.raises(
        DataError, match=r"raised ValueError.*halves\.py:2\), for example sum-2 .*prediction 'x'"
    ):
        score(["5", "x"], EXAMPLES, "halves:score")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:remove", "the working directory .* holds no module 'os'"),
        ("subprocess:call", "holds no module 'subprocess'"),
        ("torch:load", "holds no module 'torch'"),
        ("nowhere:score", "holds no module 'nowhere'.*expected a file nowhere.py"),
        ("known:scor", "has no function 'scor'.*Did you mean 'score'"),
        ("known:one", "expected a function of .prediction, references."),
        ("broken:score", "importing 'broken' .* failed: SyntaxError"),
        ("my scores:score", "metric is 'my scores:score', expected one of exact_match"),
        ("known:", "metric is 'known:', expected one of"),
        ("../x:score", "metric is '../x:score', expected one of"),
        ("somewhere:<lambda>@12345678", "given in Python by another process"),
    ],
)
def test_a_name_that_leads_to_no_function_is_refused(here: Path, name: str, message: str) -> None:
    (here / "known.py").write_text("def score(a, b):\n    return 1\n\ndef one(a):\n    return 1\n")
    (here / "broken.py").write_text("def score(:\n")
    with pytest.raises(DataError, match=message):
        score_one("x", ("y",), name)


def test_a_task_refuses_a_metric_before_anything_is_trained() -> None:
    with pytest.raises(
        DataError, match=r"Task 'sums': metric is 'blue', expected one of .*Did you mean 'bleu'"
    ):
        Task("sums", tuple(EXAMPLES), (), (), None, "blue")
    with pytest.raises(DataError, match=r"Task 'sums': metric .* expected a function of"):
        Task("sums", tuple(EXAMPLES), (), (), None, lambda: 1)  # pyright: ignore[reportArgumentType]
