"""Knowledge identification: how much the loss depends on each trainable scalar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kifuse.knowledge.chunks import Chunk, Window, chunk_size, cut, split
from kifuse.knowledge.selection import Scope, masks, scope_groups
from kifuse.knowledge.skill_units import FINER_THAN, SkillUnits

Order = Literal["first", "second", "gradient", "magnitude"]


def sensitivity(
    weight: Tensor, grad: Tensor, *, order: Order = "first", fisher: Tensor | None = None
) -> Tensor:
    """Estimate how much the loss would change if each scalar were removed (KIF Eq. 8-9).

    Args:
        weight: Parameter at the value where the gradient was taken.
        grad: Gradient of the loss, same shape.
        order: ``first`` is ``|w g|`` (Eq. 8), ``second`` is ``|w g - F w^2 / 2|`` (Eq. 9),
            ``gradient`` is ``|g|`` and ``magnitude`` is ``|w|``.
        fisher: Diagonal F of the Fisher information for ``second``, same shape; None takes ``grad**2``.

    Returns:
        Non-negative tensor of the parameter's shape, at least float32.
    """
    _check_order(order)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight, grad = weight.detach().to(dtype), grad.detach().to(dtype)
    if fisher is not None:
        fisher = fisher.detach().to(dtype)
    return _sensitivity_into(torch.empty_like(weight), weight, grad, order, fisher)


class ImportanceTracker:
    """Running importance of every trainable scalar over the steps of a task (KIF Eq. 10-12).

    The state is held in flat float32 buffers, one or two scalars for each trainable scalar. It is processed
    in chunks of limited size: an update takes a few operations for each chunk, whatever the number of
    parameters, needs almost no extra memory, and reads nothing back from the device.

    Args:
        params: Trainable parameters; only their shapes and the first one's device are used.
        order: Kind of sensitivity, see `sensitivity`.
        alpha1: Weight of the past in the smoothed sensitivity, in [0, 1).
        alpha2: Weight of the past in the smoothed uncertainty, in [0, 1); unused without uncertainty.
        smoothing: Average over the steps. Without it only the last step counts, and there is no uncertainty,
            because the last value never differs from itself.
        uncertainty: Multiply the smoothed sensitivity by its smoothed variation.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        order: Order = "first",
        alpha1: float = 0.85,
        alpha2: float = 0.85,
        smoothing: bool = True,
        uncertainty: bool = True,
    ) -> None:
        _check_order(order)
        for name, value in (("alpha1", alpha1), ("alpha2", alpha2)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name}: found {value}, expected a number of at least 0 and below 1.")
        if not params:
            raise ValueError("Importance needs at least one trainable parameter; found none.")
        self.order: Order = order
        self.smoothing = smoothing
        self.uncertainty = uncertainty and smoothing
        self._share1 = 1.0 - alpha1 if smoothing else 1.0
        self._share2 = 1.0 - alpha2
        self._shapes = [tuple(param.shape) for param in params]
        self._sizes = [param.numel() for param in params]
        self._device = params[0].device
        total = sum(self._sizes)
        self._ibar = self._buffer(total)
        self._ubar = self._buffer(total) if self.uncertainty else None
        self._chunks = cut(self._sizes, chunk_size(total, self._device))
        self._windows: list[list[Window]] = []
        for _ in range(2):  # one for the sensitivity, one for its second factor or the deviation
            self._add_window()
        self._steps = torch.zeros((), dtype=torch.int64, device=self._device)
        self._skipped = torch.zeros_like(self._steps)

    @property
    def steps(self) -> int:
        """Number of steps that were counted since the last reset (reads from the device)."""
        return int(self._steps)

    @property
    def skipped(self) -> int:
        """Number of steps skipped as non-finite over the tracker's whole life (reads from the device)."""
        return int(self._skipped)

    @torch.no_grad()
    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        *,
        fisher: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Add one optimizer step; call this before the optimizer changes the parameters.

        A step with a non-finite gradient (or one so large that its square overflows float32) changes only the
        number of skipped steps.

        Args:
            params: Parameters, in the constructor's order, at the value where the gradient was taken.
            grads: Full accumulated gradient of the step; None means zero.
            fisher: Diagonal Fisher information for the second order; None takes the squared gradient.
        """
        rows: list[Sequence[Tensor | None]] = [params, grads]
        if fisher is not None and self.order == "second":
            rows.append(fisher)
            if len(self._windows) < len(rows):
                self._add_window()
        for row in rows:
            if len(row) != len(self._sizes):
                raise ValueError(
                    f"Found {len(row)} tensors, expected one for each of {len(self._sizes)} parameters."
                )
        finite = torch.isfinite(self._bounds(rows)).all()
        taken = finite.to(torch.float32)
        for chunk, *windows in zip(self._chunks, *self._windows, strict=True):
            latest = self._latest(windows, rows)
            latest.masked_fill_(~finite, 0.0)  # with a share of 0 below, the state stays bit-identical
            self._take_in(chunk, latest, windows[1].flat, taken)
        self._steps += finite
        self._skipped += ~finite

    def _latest(self, windows: Sequence[Window], rows: Sequence[Sequence[Any]]) -> Tensor:
        """Compute the step's sensitivity over a chunk, in the first window."""
        if self.order in ("first", "second") and len(rows) == 2:
            windows[0].load(rows[1])
            return _size_of_change(windows[0].multiply(rows[0]), self.order)
        loaded = [window.load(row) for window, row in zip(windows, rows, strict=False)]
        return _sensitivity_into(loaded[0], loaded[0], loaded[1], self.order, (*loaded, None)[2])

    def _bounds(self, rows: Sequence[Sequence[Tensor | None]]) -> Tensor:
        """Bound each parameter's sensitivities from above, `(parameters,)`: |w g| <= ||w|| ||g||, and so on.

        The bound is NaN or infinite where a weight or gradient is, so that checking the bound is enough.
        """
        weight, grad, *fisher = (self._norms(row) for row in rows)
        bound = weight * grad
        if self.order == "second":
            return bound + (fisher[0] * weight.square() if fisher else bound.square())
        # |w| alone would hide a non-finite gradient, |g| alone a non-finite weight
        return bound + weight + grad

    def _norms(self, row: Sequence[Tensor | None]) -> Tensor:
        present = [tensor.detach() for tensor in row if tensor is not None]
        # the norm of a float16 tensor would itself be float16, and infinite beyond 65504
        half = any(tensor.dtype == torch.float16 for tensor in present)
        wide = torch.float32 if half and all(t.dtype != torch.float64 for t in present) else None
        found = iter(torch._foreach_norm(present, 2, dtype=wide) if present else ())
        zero = torch.zeros((), device=self._device)
        return torch.stack([zero if t is None else next(found).to(zero) for t in row])

    def _take_in(self, chunk: Chunk, latest: Tensor, scratch: Tensor, taken: Tensor) -> None:
        """Smooth a chunk's sensitivity and its variation (Eq. 10-11); if `taken` is 0, nothing changes."""
        ibar = self._ibar[chunk.low : chunk.high]
        ibar.lerp_(latest, taken * self._share1)
        if self._ubar is not None:
            deviation = torch.sub(latest, ibar, out=scratch).abs_()
            self._ubar[chunk.low : chunk.high].lerp_(deviation, taken * self._share2)

    def scores(self, *, last: bool = False) -> list[Tensor]:
        """Return the importance of every scalar: Ibar * Ubar (Eq. 12), or Ibar without uncertainty.

        Args:
            last: Whether the tracker is not needed any more, so that its own memory may hold the scores.

        Returns:
            One float32 tensor per parameter, of its shape; new unless `last`.
        """
        if not last:
            flat = self.flat_scores()
            return self._views(flat.clone() if flat is self._ibar else flat)
        if self._ubar is not None:
            self._ibar *= self._ubar
        self._ubar, self._windows = None, []
        return self._views(self._ibar)

    def flat_scores(self) -> Tensor:
        """Return the importance of every scalar in one row, `(scalars,)`; do not write to it.

        Without uncertainty this is the tracker's own memory, which the next update changes.
        """
        return self._ibar if self._ubar is None else self._ibar * self._ubar

    def reset(self) -> None:
        """Clear the importance and the number of steps, but not the number of skipped steps."""
        self._ibar.zero_()
        if self._ubar is not None:
            self._ubar.zero_()
        self._steps.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the running importance and the counts."""
        return {name: tensor.clone() for name, tensor in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned for parameters of the same shapes and the same settings.

        Raises:
            ValueError: If an entry is missing, unknown or of another size.
        """
        own = self._state()
        if set(state) != set(own):
            raise ValueError(f"Importance state: found entries {sorted(state)}, expected {sorted(own)}.")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                found, expected = tuple(state[name].shape), tuple(tensor.shape)
                raise ValueError(f"Importance state, {name}: found shape {found}, expected {expected}.")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def _state(self) -> dict[str, Tensor]:
        """The tensors that make up the state, by name."""
        state = {"ibar": self._ibar, "steps": self._steps, "skipped": self._skipped}
        return state if self._ubar is None else {**state, "ubar": self._ubar}

    def _add_window(self) -> None:
        widest = max((chunk.high - chunk.low for chunk in self._chunks), default=0)
        buffer = self._buffer(widest)
        self._windows.append([Window(chunk, buffer, self._shapes) for chunk in self._chunks])

    def _buffer(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float32, device=self._device)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Cut a flat buffer into views of the parameters' shapes."""
        return split(flat, self._shapes)


def min_max(x: Tensor) -> Tensor:
    """Scale values linearly to [0, 1]; all zeros when they are all equal.

    Args:
        x: Finite floating tensor of any shape.

    Returns:
        New tensor of the same shape and dtype.

    Raises:
        ValueError: If a value is not finite.
    """
    if x.numel() == 0:
        return x.clone()
    low, high = torch.aminmax(x)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ValueError("Found a non-finite importance, expected finite numbers; was the loss finite?")
    span = high - low
    if bool(span == 0):
        return torch.zeros_like(x)
    if not bool(torch.isfinite(span)):  # the range overflows the dtype, though its ends do not
        return min_max(x / 4)
    return ((x - low) / span).clamp_(0.0, 1.0)


def cumulative(previous: Tensor | None, current: Tensor, beta: float = 0.7) -> Tensor:
    """Update the importance kept between tasks (KIF Eq. 13).

    Args:
        previous: Cumulative importance of the earlier tasks, ``(units,)``; None on the first task.
        current: Importance for the task just learned, ``(units,)``.
        beta: Weight of the earlier tasks, in [0, 1].

    Returns:
        ``beta * Norm(previous) + (1 - beta) * Norm(current)``, or ``current`` on the first task.
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta: found {beta}, expected a number between 0 and 1.")
    if previous is None:
        return current.clone()
    return beta * min_max(previous) + (1.0 - beta) * min_max(current)


def important_units(
    units: SkillUnits,
    values: Tensor,
    *,
    fraction: float | None = None,
    share: float | None = None,
    scope: Scope = "global",
) -> Tensor:
    """Mark the important units: those above the threshold of their scope (KIF Eq. 15).

    Args:
        units: The partition.
        values: Importance of each unit, ``(units.count,)``.
        fraction: At most this fraction of a scope's units is important; see `top_fraction_threshold` for
            ties.
        share: The fewest units that carry this share of a scope's total importance are important; see
            `share_threshold`. Exactly one of `fraction` and `share` is given.
        scope: The units that share a threshold: all units, or those of one linear or transformer layer. A
            tensor outside the layers is a scope of its own.

    Returns:
        Boolean ``(units.count,)``.

    Raises:
        ValueError: If a scope holds at most one unit of this level, or for the reasons given in `masks`.
    """
    if tuple(values.shape) != (units.count,):
        raise ValueError(f"Found values of shape {tuple(values.shape)}, expected ({units.count},).")
    if scope == "global":
        return masks([values], fraction=fraction, share=share)[0]
    if units.level not in FINER_THAN.get(scope, ()):
        raise ValueError(
            f"scope: found {scope!r}, which holds no more than one unit of level {units.level!r}."
        )
    shapes = dict(zip(units.names, units.shapes, strict=True))
    groups = scope_groups(list(units.blocks), [shapes[name] for name in units.blocks], scope)
    parts = [values[block] for block in units.blocks.values()]
    return torch.cat(masks(parts, fraction=fraction, share=share, groups=groups))


def _check_order(order: str) -> None:
    """Refuse an unknown kind of sensitivity."""
    if order not in get_args(Order):
        raise ValueError(f"order: found {order!r}, expected one of {', '.join(get_args(Order))}.")


def _sensitivity_into(
    out: Tensor, weight: Tensor, grad: Tensor, order: Order, fisher: Tensor | None
) -> Tensor:
    """Compute the sensitivity into ``out``, which may be ``weight`` itself."""
    if order == "magnitude":
        return torch.abs(weight, out=out)
    if order == "gradient":
        return torch.abs(grad, out=out)
    if order == "second" and fisher is not None:
        slope = torch.addcmul(grad, fisher, weight, value=-0.5)
        return torch.mul(weight, slope, out=out).abs_()
    return _size_of_change(torch.mul(weight, grad, out=out), order)


def _size_of_change(change: Tensor, order: Order) -> Tensor:
    """Turn w g into its absolute value, or into that of w g - (w g)^2 / 2, in place."""
    if order == "second":  # F = g^2 turns F w^2 into (w g)^2
        change.addcmul_(change, change, value=-0.5)
    return change.abs_()
