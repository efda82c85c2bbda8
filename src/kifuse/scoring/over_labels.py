"""Scores over the labels of a whole test set."""

from __future__ import annotations

from collections.abc import Sequence

from kifuse.scoring.labels import Comparison

_NO_LABEL = -1


def whole_macro_f1(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    compared: Comparison,
    points: Sequence[float],
) -> float:
    """Score a set of predictions by the F1 of each label, averaged.

    Args:
        predictions: The generated texts.
        references: The accepted labels of each prediction; if there are several, the predicted one counts as
            right.
        compared: How answers are compared. Without labels, the distinct references are the labels.
        points: The single scores of the predictions.

    Returns:
        From 0 to 1. A label that neither occurs nor is predicted does not count. An answer that is not a
        label counts as a miss of the right label.
    """
    from sklearn.metrics import f1_score

    known: list[str] = []

    def place(text: str) -> int:
        found = compared.label(text)
        if found is not None:
            return found
        return next(
            (n for n, label in enumerate(known, len(compared.labels)) if compared.same(text, label)),
            _NO_LABEL,
        )

    def learn(text: str) -> int:
        if place(text) == _NO_LABEL:
            known.append(text)
        return place(text)

    accepted = [[learn(each) for each in several] for several in references]
    found = [place(each) for each in predictions]
    right = [mine if mine in several else several[0] for mine, several in zip(found, accepted, strict=True)]
    labels = sorted({*right, *found} - {_NO_LABEL})
    return float(f1_score(right, found, labels=labels, average="macro", zero_division=0))  # pyright: ignore[reportArgumentType]
