"""Fusion of plain state dicts, `dict[str, Tensor]`, by the equations that the methods use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from kifuse.errors import ConfigError, ModelError, did_you_mean
from kifuse.knowledge.fusion import adaptive_weights, blend, masked_sum, static_weights
from kifuse.knowledge.importance import min_max
from kifuse.knowledge.selection import masks as select
from kifuse.knowledge.skill_units import Level, SkillUnits
from kifuse.merging.importance import Importance, Scores, by_file_name
from kifuse.methods.recurrent_kif import BOTH_AND_NEITHER
from kifuse.models.names import file_name

State = Mapping[str, Tensor]
Fusion = Literal["static", "adaptive", "average"]


def fuse(
    previous: State,
    current: State,
    importance: Importance | None = None,
    *,
    fusion: Fusion = "static",
    units: Level | None = None,
    gamma: float = 0.7,
    quantile: float = 0.8,
    tau: float = 0.15,
    average: float = 0.5,
    unit_score: Literal["outer", "mean"] = "outer",
) -> dict[str, Tensor]:
    """Blend a model before a task with the model after it, skill unit by skill unit (KIF Eq. 14-17).

    This is what KIF does at the end of a task, for weights from any source. A tensor without a score is
    copied if it is the same on both sides. Names that share one tensor (tied weights) share the fused tensor
    as well.

    Args:
        previous: Weights before the task, by name, any shapes and floating dtypes.
        current: Weights after the task: same names, shapes and dtypes.
        importance: Importance for the earlier tasks and for this one; may be None only for
            `fusion="average"`.
        fusion: `static` (Eq. 15), `adaptive` (Eq. 16-17), or `average`, one weight for everything (Eq. 14).
        units: Level of the skill units, see `SkillUnits.build`; None takes the level of the importance if it
            has one value per unit, otherwise `matrix`.
        gamma: Weight of the previous value where both tasks need a unit (static).
        quantile: Units above this quantile of importance are needed (static).
        tau: Temperature (adaptive).
        average: Weight of the previous value (average).
        unit_score: How the scores of one LoRA rank become one value, see `SkillUnits.reduce`; rank level
            only.

    Returns:
        New tensors by the names of `current`; for the same importance they equal KIF's own bit for bit.

    Raises:
        ModelError: Names, shapes or dtypes of the two differ, or the importance does not fit; the message
            says where.
        ConfigError: A setting has a wrong value.
    """
    check_choice("fusion", fusion, get_args(Fusion))
    level = _level(units, importance)
    check_choice("unit_score", unit_score, ("outer", "mean"))
    refuse_unlike({"previous": previous, "current": current})
    shared = _first_of_tied(current)
    names = [name for name in current if shared[name] == name and current[name].is_floating_point()]
    if fusion == "average":
        _check_share("average", average)
        weights = [torch.tensor(average, dtype=torch.float32)] * len(names)
    else:
        if importance is None:
            raise ConfigError(f"fusion: {fusion!r} needs an importance. Only 'average' needs none.")
        names = _with_scores(names, previous, current, importance)
        shapes = [tuple(current[name].shape) for name in names]
        partition = _partition(names, shapes, level)
        p, c = (
            _normalised(which, scores, names, partition, unit_score)
            for which, scores in (("previous", importance.previous), ("current", importance.current))
        )
        try:
            if fusion == "static":
                weight = static_weights(p, c, gamma=gamma, quantile=quantile)
            else:
                weight = adaptive_weights(p, c, tau=tau)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        weights = partition.expand(weight)
    values = blend([previous[n] for n in names], [current[n] for n in names], weights)
    fused = dict(zip(names, values, strict=True))
    return {name: fused[first] if (first := shared[name]) in fused else current[name] for name in current}


def fuse_masked(
    base: State,
    inner: State,
    outer: State,
    inner_scores: State,
    outer_scores: State,
    *,
    quantile: float = 0.8,
    rule: Literal["paper", "published"] = "paper",
) -> dict[str, Tensor]:
    """Add the important parts of two task vectors to a model (Recurrent-KIF Eq. 8-9).

    This is one fusion of Recurrent-KIF, for weights from any source:
    `base + m_in * (inner - base) + m_out * (outer - inner)`, where each mask marks the scalars whose score is
    among the most important of all scalars of the model.

    Args:
        base: Weights at the start, theta_b, by name.
        inner: Weights after training on the current task, theta_Q: same names, shapes and dtypes.
        outer: Weights after training on earlier tasks' examples, starting from `inner`, theta_M.
        inner_scores: Importance for the current task, by name, in the shapes of the weights or broadcastable.
        outer_scores: Importance for the earlier tasks.
        quantile: Scalars above this quantile of all scores are important.
        rule: `paper`, or `published` for the authors' code, which keeps a part of the changes where both or
            neither are important.

    Returns:
        New tensors by the names of `base`. A tensor without scores is copied if all three models agree on it.

    Raises:
        ModelError: Names, shapes or dtypes differ, or scores are missing; the message says where.
        ConfigError: A setting has a wrong value.
    """
    check_choice("rule", rule, tuple(BOTH_AND_NEITHER))
    _check_share("quantile", quantile)
    refuse_unlike({"base": base, "inner": inner, "outer": outer})
    shared = _first_of_tied(outer)
    floating = [name for name in base if shared[name] == name and base[name].is_floating_point()]
    importance = Importance(inner_scores, outer_scores)
    names = _with_scores(floating, base, outer, importance, also=inner)
    masks = []
    for which, scores in (("inner_scores", inner_scores), ("outer_scores", outer_scores)):
        spread = _spread(which, scores, names, [tuple(base[name].shape) for name in names])
        try:
            marked = select(spread, fraction=1.0 - quantile)
        except ValueError as error:
            raise ModelError(f"{which}: {error}") from error
        masks.append([mask.to(base[name].device) for name, mask in zip(names, marked, strict=True)])
    first, middle, last = ([state[name].detach() for name in names] for state in (base, inner, outer))
    both, neither = BOTH_AND_NEITHER[rule]
    tau_in, tau_out = torch._foreach_sub(middle, first), torch._foreach_sub(last, middle)
    values = masked_sum(first, tau_in, tau_out, *masks, both=both, neither=neither)
    fused = dict(zip(names, values, strict=True))
    return {name: fused[first] if (first := shared[name]) in fused else outer[name] for name in base}


def refuse_unlike(states: Mapping[str, State]) -> None:
    """Refuse state dicts that differ in names, shapes or dtypes, or hold NaN or infinity.

    Args:
        states: Two or more state dicts, by the names that the message uses; all are compared with the first.

    Raises:
        ModelError: They differ or hold such a number; the first tensor is named.
    """
    (first, expected), *others = states.items()
    if not expected:
        raise ModelError(f"{first}: holds no tensors.")
    for label, state in others:
        for here, there, a, b in ((first, label, expected, state), (label, first, state, expected)):
            missing = [name for name in a if name not in b]
            if missing:
                raise ModelError(f"{there}: does not hold {missing[0]!r}, which {here} does.")
        for name, tensor in expected.items():
            found = state[name]
            if found.shape != tensor.shape:
                raise ModelError(
                    f"{name!r} has shape {tuple(tensor.shape)} in {first} and {tuple(found.shape)} in "
                    f"{label}; expected the same."
                )
            if found.dtype != tensor.dtype:
                raise ModelError(
                    f"{name!r} is {tensor.dtype} in {first} and {found.dtype} in {label}; expected the same."
                )
    for label, state in states.items():
        for name, tensor in state.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                count = int((~torch.isfinite(tensor)).sum())
                raise ModelError(
                    f"{name!r} holds {count:,} numbers that are NaN or infinite in {label}; expected finite "
                    "ones. Its training failed. Use the adapter from before that."
                )


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    """Refuse a name that is not one of the known ones.

    Raises:
        ConfigError: The name is unknown; the message lists the known names and the most similar one.
    """
    if value not in known:
        raise ConfigError(
            f"{key}: found {value!r}, expected one of {', '.join(known)}.{did_you_mean(value, known)}"
        )


def _check_share(key: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{key}: found {value}, expected a number between 0 and 1.")


def _first_of_tied(state: State) -> dict[str, str]:
    """Map each name to the first one with the same memory: a state dict holds tied weights twice."""
    seen: dict[object, str] = {}
    first: dict[str, str] = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        first[name] = seen.setdefault(place if tensor.numel() else name, name)
    return first


def _level(units: str | None, importance: Importance | None) -> Level:
    """The requested level, which must match an importance with one value per unit."""
    known = importance.level if importance is not None else None
    level = units or known or "matrix"
    check_choice("units", level, get_args(Level))
    if known is not None and level != known:
        raise ConfigError(f"units: found {level!r}, expected {known!r}, which the importance was made for.")
    return level  # type: ignore[return-value]


def _partition(names: list[str], shapes: list[tuple[int, ...]], units: Level) -> SkillUnits:
    try:
        return SkillUnits.build(names, shapes, units)
    except ValueError as error:
        raise ModelError(str(error)) from error


def _with_scores(
    names: list[str],
    previous: State,
    current: State,
    importance: Importance,
    also: State | None = None,
) -> list[str]:
    """The names that take part in the fusion, in the order that gives the units their numbers."""
    if importance.by_unit and importance.order is None:
        return names
    order = importance.names()
    scored = set(order)
    unknown = scored - {file_name(name) for name in current}
    if unknown:
        raise ModelError(
            f"the importance is of another model: it scores {min(unknown)!r}, which is not known here."
        )
    for name in names:
        if file_name(name) in scored:
            continue
        others = [current, *([also] if also is not None else [])]
        if not all(torch.equal(previous[name], state[name]) for state in others):
            raise ModelError(f"the importance holds no scores of {name!r}, which training has changed.")
    by_name = {file_name(name): name for name in names}
    taking_part = [by_name[name] for name in order if name in by_name]
    if not taking_part:
        raise ModelError("the importance holds no scores of any of these tensors.")
    return taking_part


def _normalised(which: str, scores: Scores, names: list[str], partition: SkillUnits, how: str) -> Tensor:
    """Return one value in [0, 1] per unit: Norm of Eq. 13."""
    if isinstance(scores, Tensor):
        if tuple(scores.shape) != (partition.count,):
            raise ModelError(
                f"importance, {which}: found {scores.numel()} values, but there are {partition.count} skill "
                f"units at level {partition.level!r}{_fitting(scores.numel(), partition)}."
            )
        value = scores.detach().float().cpu()
    else:
        spread = _spread(which, scores, names, list(partition.shapes))
        value = partition.reduce(spread, "outer" if how == "outer" and partition.level == "rank" else "mean")
    try:
        return min_max(value)
    except ValueError as error:
        raise ModelError(f"importance, {which}: {error}") from error


def _fitting(count: int, partition: SkillUnits) -> str:
    """Say at which level there would be this number of units."""
    fitting = [
        level
        for level in get_args(Level)
        if SkillUnits.build(partition.names, partition.shapes, level).count == count
    ]
    return f"; it fits level {' or '.join(map(repr, fitting))}" if fitting else ""


def _spread(which: str, scores: State, names: list[str], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Return the scores as one float32 tensor per parameter, in its shape."""
    given = by_file_name(scores)
    spread = []
    for name, shape in zip(names, shapes, strict=True):
        score = given.get(file_name(name))
        if score is None:
            raise ModelError(f"importance, {which}: holds no scores of {name!r}.")
        try:
            spread.append(score.detach().float().cpu().expand(shape))
        except RuntimeError as error:
            raise ModelError(
                f"importance, {which}: the scores of {name!r} have shape {tuple(score.shape)}, expected "
                f"{shape} or a shape that broadcasts to it."
            ) from error
    return spread
