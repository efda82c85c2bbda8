"""The score of each prediction, and of a whole test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, Protocol

from kifuse.errors import DataError
from kifuse.scoring.labels import comparison
from kifuse.scoring.metrics import METRICS, metric_name
from kifuse.scoring.own_function import call_own


class HasReferences(Protocol):
    """Anything with accepted outputs, such as an Example."""

    @property
    def references(self) -> Sequence[str]:
        """The accepted outputs."""
        ...


@dataclass(frozen=True)
class Scored:
    """Scores of a test set.

    Attributes:
        score: Score of the whole set, 0 to 100.
        points: Score of each prediction, 0 to 1.
        valid: Whether each prediction is one of the labels, right or wrong; None without labels.
    """

    score: float
    points: list[float]
    valid: list[bool] | None


def score(
    predictions: Sequence[str],
    examples: Sequence[HasReferences],
    metric: Any,
    labels: Sequence[str] | None = None,
) -> float:
    """Score a set of predictions.

    Args:
        predictions: The generated texts.
        examples: The examples that the predictions answer, in the same order.
        metric: A name of `METRICS`, ``"module:function"``, or a function.
        labels: The labels of the task, if it has any.

    Returns:
        The score, from 0 to 100.

    Raises:
        DataError: There is no such metric, there are no examples, the number of predictions differs from that
            of the examples, or a user's own function raises an error or returns no score.
    """
    if not examples:
        raise DataError("there are no examples to score, expected at least one.")
    return score_all(predictions, examples, metric, labels).score


def score_one(
    prediction: str, references: Sequence[str], metric: Any, labels: Sequence[str] | None = None
) -> float:
    """Score one prediction.

    Args:
        prediction: The generated text.
        references: The accepted outputs.
        metric: As in `score`.
        labels: As in `score`.

    Returns:
        The score, from 0 to 1.

    Raises:
        DataError: For the reasons given in `score`.
    """
    return score_all([prediction], [_Accepted(tuple(references))], metric, labels).points[0]


def score_all(
    predictions: Sequence[str],
    examples: Sequence[HasReferences],
    metric: Any,
    labels: Sequence[str] | None = None,
    *,
    seen: Sequence[Sequence[str]] | None = None,
    seen_labels: Sequence[str] = (),
) -> Scored:
    """Score each prediction, and the whole set.

    Args:
        predictions: The generated texts.
        examples: The examples that the predictions answer, in the same order. Without labels, the `options`
            of an example are its labels.
        metric: As in `score`.
        labels: As in `score`.
        seen: The references of each example as the model can produce them, which differ where special tokens
            in them decode to nothing; the better of the two scores counts.
        seen_labels: The labels as the model can produce them.

    Returns:
        The scores.

    Raises:
        DataError: For the reasons given in `score`.
    """
    if len(predictions) != len(examples):
        raise DataError(
            f"found {len(predictions)} predictions for {len(examples)} examples; expected one for each."
        )
    name = metric_name(metric)
    chosen = METRICS.get(name)
    if chosen is not None and chosen.points is None:
        raise DataError(f"metric '{name}' is measured on the model, so it cannot be computed from answers.")
    compared = comparison(labels, seen_labels)
    options = [() if labels else tuple(getattr(example, "options", ())) for example in examples]

    def one(place: int, references: Sequence[str]) -> float:
        if chosen is not None and chosen.points is not None:
            own = comparison(options[place]) if options[place] else compared
            return chosen.points(predictions[place], references, own)
        example = _with_references(examples[place], references)
        return call_own(name, predictions[place], example, references, _place(examples[place], place))

    points, accepted = [], []
    for place, example in enumerate(examples):
        raw = list(example.references)
        decoded = list(seen[place]) if seen is not None else raw
        best, references = one(place, raw), raw
        if decoded != raw and best < 1.0 and (other := one(place, decoded)) > best:
            best, references = other, decoded
        points.append(best)
        accepted.append(references)
    whole = chosen.whole if chosen is not None else None
    if whole is not None and points:
        every = tuple(dict.fromkeys(option for each in options for option in each))
        total = 100.0 * whole(predictions, accepted, comparison(every) if every else compared, points)
    else:
        # sum() is not used, because it rounds differently from Python 3.12 on
        total = 100.0 * reduce(add, points, 0.0) / max(len(points), 1)
    valid = [compared.label(prediction) is not None for prediction in predictions] if labels else None
    return Scored(min(total, 100.0), points, valid)


@dataclass(frozen=True)
class _Accepted:
    references: tuple[str, ...]


def _with_references(example: Any, references: Sequence[str]) -> Any:
    if list(example.references) == list(references):
        return example
    return replace(example, references=tuple(references))


def _place(example: Any, place: int) -> str:
    identifier = getattr(example, "id", None)
    start = str(getattr(example, "input", "")).strip().replace("\n", " ")[:60]
    return f"example {identifier if identifier is not None else place + 1}" + (
        f" '{start}…'" if start else ""
    )
