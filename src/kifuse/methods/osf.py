"""OSF, orthogonal subspace fine-tuning: only the smaller singular directions of the weights learn.

    W = U_h S_h V_h + U_l S_l V_l

At the start of each task every adapted matrix, which contains all that was learned so far, is decomposed
anew. Its k largest singular directions (h) are frozen, because earlier tasks and pretraining depend on them.
The factors of the other directions (l) are trained, and must not move into the frozen directions:

    grad U_l <- grad U_l - U_h U_h^T grad U_l,        grad V_l <- grad V_l - grad V_l V_h^T V_h.

At the end of the task they are merged into W. The adapter of kind `osf` does the decomposition and the merge
(`kifuse.adapters.osf`).

| symbol | setting |
| --- | --- |
| k / min(out, in) of the first task | `model.adapter.preserve` |
| how much it grows with each task, up to 1 | `growth` |
| what is projected | `project` |

Projected gradients are enough for SGD. AdamW scales each coordinate separately, so its step leaves the
allowed subspace. With `project="update"` (the default) the factors are projected once more after each step,
so that U_h^T U_l = 0 and V_l V_h^T = 0. `project="gradient"` is the paper's rule alone.

The paper computes k from the similarity of a layer's inputs and outputs, which only square matrices have. Its
released code has a fixed schedule instead; `growth` has that form.

Paper: arXiv 2504.07097.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, final

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import (
    SETTINGS,
    Context,
    Fraction,
    Method,
)
from kifuse.methods.parameters import Parameters

FACTORS = ("U_low", "S_low", "V_low")


class _Layer(NamedTuple):
    """The trained factors U_l (out, r) and V_l (r, in) of a matrix, and the tensors that limit them."""

    u: Tensor
    v: Tensor
    u_kept: Tensor
    v_kept: Tensor


@final
@dataclass(kw_only=True, config=SETTINGS)
class OSF(Method):
    """Small singular directions learn, large ones are frozen; each task computes them anew."""

    growth: Fraction = 0.0
    project: Literal["update", "gradient"] = "update"

    adapter = "osf"
    plain_first_task = False

    def check(self, params: Parameters) -> None:
        """Refuse any trained parameter that is not a factor of the kind `osf`.

        Raises:
            ValueError: Another parameter is trained.
        """
        for name in params.names:
            if name.rpartition(".")[2] not in FACTORS:
                raise ValueError(
                    f"model.adapter.kind: OSF trains factors of singular directions, but {name} is trained; "
                    "use kind osf."
                )

    def begin_task(self, ctx: Context) -> None:
        """Refuse any trained parameter that is not a factor of the kind `osf`.

        Raises:
            ValueError: See `check`.
        """
        self.check(ctx.params)

    @torch.no_grad()
    def on_update(self, ctx: Context) -> None:
        """Project the factors after the optimizer's step."""
        if self.project == "update":
            for layer in _layers(ctx.params):
                # the columns of V_l^T are its rows
                _project(layer.u, layer.u_kept, starts=_u_starts(layer))
                _project(layer.v.mT, layer.v_kept.mT, starts=_v_starts(layer))

    @torch.no_grad()
    def end_task(self, ctx: Context) -> None:
        """Record the number of frozen directions, and how much of the factors lies in them."""
        trained = [layer.u.shape[1] for layer in _layers(ctx.params)]
        directions = [min(len(layer.u), layer.v.shape[1]) for layer in _layers(ctx.params)]
        outside = [
            part
            for layer in _layers(ctx.params)
            for part in (
                _outside(layer.u, layer.u_kept, starts=_u_starts(layer)),
                _outside(layer.v.mT, layer.v_kept.mT, starts=_v_starts(layer)),
            )
        ]
        ctx.event(
            "subspace",
            frozen=sum(directions) - sum(trained),
            trained=sum(trained),
            in_frozen=float(torch.stack(outside).max()),
        )


def _layers(params: Parameters) -> Iterator[_Layer]:
    factors = dict(params.pairs)
    for name, u in factors.items():
        if name.endswith("U_low"):
            other = f"{name.removesuffix('U_low')}V_low"
            yield _Layer(u, factors[other], params.frozen[name], params.frozen[other])


def _u_starts(layer: _Layer) -> bool:
    """Whether U_l0 is kept instead of U_h: there are at most as many outputs as inputs, and U is square."""
    return len(layer.u) <= layer.v.shape[1]


def _v_starts(layer: _Layer) -> bool:
    return layer.v.shape[1] <= len(layer.u)


def _project(factor: Tensor, kept: Tensor, *, starts: bool) -> None:
    """Remove the part of a factor's columns that lies in the frozen directions, in place.

    Args:
        factor: F, `(rows, r)`.
        kept: U_h, `(rows, k)`, or with `starts` U_l0, `(rows, r)`, which is orthogonal to U_h.
        starts: Whether `kept` is U_l0.
    """
    if starts:
        # (U_h U_l0) is square and orthogonal, so that 1 - U_h U_h^T = U_l0 U_l0^T
        factor.copy_(kept + kept @ (kept.mT @ (factor - kept)))
    else:
        factor.sub_(kept @ (kept.mT @ factor))


def _outside(factor: Tensor, kept: Tensor, *, starts: bool) -> Tensor:
    """Compute ||U_h U_h^T F|| / ||F||, the share of a factor's norm in the frozen directions."""
    inside = factor.detach().clone()
    _project(inside, kept, starts=starts)
    return (factor - inside).norm() / factor.norm()
