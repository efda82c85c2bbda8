"""Importance for a fusion: measured from any training's gradients, kept in a file, or read from a run.

The file is safetensors; its metadata says `format: kifuse importance` and `version: 1`, and it holds either

- one tensor of scores per trainable parameter: `previous/<name>` (its importance for the earlier tasks) and
  `current/<name>` (its importance for the task just learned), in the parameter's shape or broadcastable to
  it; a higher score means more important; names are those in the model or in the adapter's file; or
- one value per skill unit: `history` and `current`, each `(units,)`, with the metadata `level` (of the units)
  and `order` (a JSON list of the parameters' names in the model's order, which numbers the units).

Scores need no particular scale: both sides are normalised to [0, 1] over the units before they are used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kifuse.errors import KifuseError, ModelError
from kifuse.io.storage import read_json, read_tensors, write_tensors
from kifuse.knowledge.importance import ImportanceTracker, Order
from kifuse.models.names import file_name

FORMAT = "kifuse importance"
VERSION = "1"

Scores = Mapping[str, Tensor] | Tensor
"""Scores by parameter name, or one value per skill unit."""

_AFTER = re.compile(r"after-(\d+)")


@dataclass(frozen=True)
class Importance:
    """Importance for the earlier tasks, and for the task just learned.

    Attributes:
        previous: Scores by parameter name, in the parameters' shapes or broadcastable; or `(units,)`.
        current: The same, of the same kind.
        order: With one value per unit: the parameters' names in the model's order; None if not known.
        level: With one value per unit: the level of the units; None if not known.
    """

    previous: Scores
    current: Scores
    order: tuple[str, ...] | None = None
    level: str | None = None

    @property
    def by_unit(self) -> bool:
        """Whether there is one value per skill unit instead of scores by parameter."""
        return isinstance(self.previous, Tensor)

    def names(self) -> tuple[str, ...]:
        """The scored parameters by their names in an adapter's file, in the model's order if it is known."""
        if not isinstance(self.previous, Tensor) and not isinstance(self.current, Tensor):
            current = by_file_name(self.current)
            return tuple(name for name in by_file_name(self.previous) if name in current)
        return tuple(file_name(name) for name in self.order or ())

    def __post_init__(self) -> None:
        """Refuse two different kinds of scores.

        Raises:
            ModelError: One side has scores by parameter, the other by unit.
        """
        if isinstance(self.previous, Tensor) != isinstance(self.current, Tensor):
            raise ModelError("importance: found scores by parameter and by unit, expected one kind for both.")


def identify(
    params: Mapping[str, Tensor],
    grads: Iterable[Mapping[str, Tensor | None]],
    *,
    order: Order = "first",
    alpha1: float = 0.85,
    alpha2: float = 0.85,
    smoothing: bool = True,
    uncertainty: bool = True,
) -> dict[str, Tensor]:
    """Measure the importance of every scalar from the gradients of any training (KIF Eq. 8-12).

    In your own training loop, let a generator yield the gradients before the optimizer changes the weights:

        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}

        def steps():
            for batch in batches:
                model(**batch).loss.backward()
                yield {n: p.grad for n, p in trainable.items()}
                optimizer.step()  # leave it out to measure a finished model
                optimizer.zero_grad()

        current = identify(trainable, steps())
        save_importance("importance.safetensors", previous=history, current=current)

    where `history` was measured in the same way on the earlier tasks. If your loop cannot be a generator, use
    `kifuse.knowledge.ImportanceTracker` directly: call `tracker.update(params, grads)` before each step, then
    `tracker.scores()`.

    Args:
        params: The weights by name; they are read again at each step, so you may train them meanwhile.
        grads: For each optimizer step its full gradient by name, computed at the weights of that moment; a
            gradient that is missing or None counts as zero.
        order: Kind of sensitivity: `first` (Eq. 8), `second` (Eq. 9), `gradient` or `magnitude`.
        alpha1: Weight of the past in the smoothed sensitivity (Eq. 10).
        alpha2: Weight of the past in the smoothed uncertainty (Eq. 11).
        smoothing: Average over the steps.
        uncertainty: Multiply by the smoothed variation (Eq. 12).

    Returns:
        Scores by name, float32 in the shapes of the weights, on the first weight's device.

    Raises:
        ModelError: There are no weights or no steps, or a gradient has no weight of its name or another
            shape.
    """
    if not params:
        raise ModelError("params: holds no weights to measure.")
    tracker: ImportanceTracker | None = None
    for step, gradients in enumerate(grads, 1):
        for name, gradient in gradients.items():
            if name not in params:
                raise ModelError(f"step {step}: found a gradient of {name!r}, which params does not hold.")
            if gradient is not None and gradient.shape != params[name].shape:
                raise ModelError(
                    f"step {step}: the gradient of {name!r} has shape {tuple(gradient.shape)}, expected "
                    f"{tuple(params[name].shape)}."
                )
        weights = [p.detach() for p in params.values()]
        if tracker is None:
            tracker = ImportanceTracker(
                weights,
                order=order,
                alpha1=alpha1,
                alpha2=alpha2,
                smoothing=smoothing,
                uncertainty=uncertainty,
            )
        tracker.update(weights, [gradients.get(name) for name in params])
    if tracker is None:
        raise ModelError("grads: found no steps, expected the gradients of at least one.")
    return dict(zip(params, tracker.scores(), strict=True))


def save_importance(
    path: str | Path,
    *,
    previous: Scores,
    current: Scores,
    order: Sequence[str] | None = None,
    level: str | None = None,
) -> None:
    """Write an importance file; the module's text describes the file.

    Args:
        path: The file; an existing file is replaced.
        previous: Importance for the earlier tasks: scores by parameter name, or `(units,)`.
        current: Importance for the task just learned, of the same kind.
        order: Required with one value per unit: the parameters' names in the model's order.
        level: Required with one value per unit: the level of the units.

    Raises:
        ModelError: The two are of different kinds, or score different parameters; or there is one value per
            unit, but no order or level.
        KifuseError: The file cannot be written.
    """
    importance = Importance(previous, current, tuple(order) if order else None, level)
    metadata = {"format": FORMAT, "version": VERSION}
    if isinstance(importance.previous, Tensor) or isinstance(importance.current, Tensor):
        if not importance.order or not level:
            raise ModelError(
                "importance: one value per unit needs the order of the parameters and the level."
            )
        metadata |= {"order": json.dumps([file_name(name) for name in importance.order]), "level": level}
        return write_tensors(path, {"history": previous, "current": current}, metadata)  # type: ignore[dict-item]
    tensors: dict[str, Tensor] = {}
    for side, scores in (("previous", importance.previous), ("current", importance.current)):
        tensors |= {f"{side}/{name}": tensor for name, tensor in by_file_name(scores).items()}
    unlike = by_file_name(importance.previous).keys() ^ by_file_name(importance.current).keys()
    if unlike:
        raise ModelError(f"importance: only one of previous and current scores {min(unlike)!r}.")
    write_tensors(path, tensors, metadata)


def load_importance(path: str | Path) -> Importance:
    """Read an importance file, or the state that a kifuse run saved after a task.

    For a run of KIF, give `state/after-<k>/method.safetensors` to get the importance for the fusion after
    task k. This file holds the current importance. The order and level of the units are in `method.json`
    beside it. The history as it was before that fusion is in the folder `after-<k-1>`.

    Args:
        path: The file.

    Raises:
        ModelError: The file is missing, damaged, of another version, or holds no importance.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        return _of_run(path, tensors)
    if metadata.get("version") != VERSION:
        raise ModelError(
            f"{path}: version is {metadata.get('version')!r}, expected {VERSION!r}; it was written by "
            "another version of kifuse."
        )
    if tensors.keys() == {"history", "current"}:
        return Importance(
            tensors["history"], tensors["current"], _order(path, metadata), metadata.get("level")
        )
    sides: dict[str, dict[str, Tensor]] = {"previous": {}, "current": {}}
    for key, tensor in tensors.items():
        side, slash, name = key.partition("/")
        if side not in sides or not slash:
            raise ModelError(
                f"{path}: holds {key!r}, expected names that begin with 'previous/' or 'current/', or the "
                "two tensors 'history' and 'current'."
            )
        sides[side][name] = tensor
    return Importance(sides["previous"], sides["current"])


def _order(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    try:
        names = json.loads(metadata["order"])
    except (KeyError, json.JSONDecodeError):
        names = None
    if not isinstance(names, list):
        raise ModelError(f"{path}: its metadata has no 'order', the parameters' names in the model's order.")
    return tuple(map(str, names))


def by_file_name(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores by the parameters' names in an adapter's file."""
    return {file_name(name): tensor for name, tensor in scores.items()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return read_tensors(path)
    except KifuseError as error:
        raise ModelError(str(error)) from error


def _of_run(path: Path, tensors: dict[str, Tensor]) -> Importance:
    """The importance that a run's fusion used (KIF Eq. 13: with the history before the task)."""
    state = path.absolute().parent
    if "current" not in tensors:
        raise ModelError(
            f"{path}: holds no importance. Expected a file of kifuse.save_importance, or "
            "state/after-<k>/method.safetensors of a run of KIF, with k from 2 on."
        )
    after = _AFTER.fullmatch(state.name)
    if after is None or int(after[1]) < 2:
        raise ModelError(
            f"{path}: its history already includes the task just learned. Expected the file in its place in "
            "a run, state/after-<k> with k from 2 on, as the history before the task is read from "
            "after-<k-1>."
        )
    before = state.with_name(f"after-{int(after[1]) - 1}") / path.name
    earlier, _ = _read(before)
    if "history" not in earlier:
        raise ModelError(f"{before}: holds no history of importance.")
    level, order = _units_of_run(state / "method.json")
    return Importance(earlier["history"], tensors["current"], order, level)


def _units_of_run(file: Path) -> tuple[str, tuple[str, ...]]:
    """The level of a run's skill units, and the names of its parameters in the model's order."""
    try:
        described = read_json(file)
    except KifuseError as error:
        raise ModelError(str(error)) from error
    values = described.get("values") if isinstance(described, dict) else None
    level, names = (
        (values.get("units"), values.get("parameters")) if isinstance(values, dict) else (None, None)
    )
    if not isinstance(level, str) or not isinstance(names, list):
        raise ModelError(f"{file}: does not say which skill units the run has, so it is of another version.")
    return level, tuple(map(str, names))
