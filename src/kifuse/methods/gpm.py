"""GPM, gradient projection memory: no step may change what a layer makes of earlier tasks' inputs.

After a task, the inputs x of each trained linear layer are read from some of the task's examples. The
directions that hold a share eps of their squared length join an orthonormal basis M (Eq. 5, 8 and 9, see
`kifuse.knowledge.input_directions`). From the second task on, the gradient of a weight `(out, in)` loses its
part in M:

    g <- g - g M M^T,

so that a step leaves W x as it is for every x in the span of M.

| symbol | setting |
| --- | --- |
| n_s, examples of a task that are read | `examples` |
| eps in the first task, and what each later task adds to it | `threshold`, `growth` |
| what is projected | `project` |

The paper takes steps of SGD. Adam scales each coordinate and adds weight decay, which leads out of the
allowed space again. With `project="update"` (the default) the gradient is projected, and then what the
optimizer has made of it: theta <- theta_0 + (theta - theta_0) (I - M M^T), where theta_0 are the weights at
the start of the task. `project="gradient"` is the paper's rule alone.

Paper: arXiv 2103.09762 (ICLR 2021). `threshold` and `growth` are its values for 10-split CIFAR-100.
"""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.knowledge.input_directions import extended, products
from kifuse.methods.base import SETTINGS, Context, Fraction, Method, Need, NotNegative, TaskInfo
from kifuse.methods.kept import Kept, OfTask
from kifuse.methods.shown import Event, Series, Shown

TAKEN = Series(
    "taken",
    "Directions taken",
    "The share of each layer's input directions that later tasks cannot use.",
    unit="share (0 to 1)",
)
BASES = Event(
    "bases",
    (
        "{taken:.0%} of the input directions taken",
        "{free} tensor(s) not protected",
        "{overflowed} layer(s) not read: their inputs are not finite",
    ),
)


@final
@dataclass(kw_only=True, config=SETTINGS)
class GPM(Method):
    """Steps orthogonal to the inputs that each layer had in earlier tasks."""

    examples: Annotated[int, Field(ge=1)] = 100
    threshold: Fraction = 0.97
    growth: NotNegative = 0.003
    project: Literal["update", "gradient"] = "update"

    _bases: Kept[dict[str, Tensor] | None] = None
    _input_dims: Kept[dict[str, int] | None] = None
    _start: OfTask[list[Tensor] | None] = None

    shown = Shown((TAKEN,), (BASES,))

    @property
    def needs(self) -> frozenset[Need]:
        """The task's examples, and what layers see of them."""
        return frozenset({"layers", "examples"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """Forward passes over the examples that are read: a third of a step's work each."""
        return min(self.examples, task.examples) // (3 * task.batch_size)

    def begin_task(self, ctx: Context) -> None:
        """Remember the parameters before the task.

        Raises:
            ValueError: The bases are of another model.
        """
        bases, shapes = self._bases or {}, dict(zip(ctx.params.names, ctx.params.shapes, strict=True))
        for name, basis in bases.items():
            if name not in shapes or shapes[name][self._input_dim(name)] != len(basis):
                raise ValueError(f"{name}: found no weight with {len(basis)} inputs; it is of another model.")
        self._start = ctx.params.clone() if bases and self.project == "update" else None

    @torch.no_grad()
    def on_gradients(self, ctx: Context) -> None:
        """Project the gradient: g <- g - g M M^T."""
        for name, p in ctx.params.pairs:
            if p.grad is not None and name in (self._bases or {}):
                p.grad.copy_(self._beside(name, p.grad))

    @torch.no_grad()
    def on_update(self, ctx: Context) -> None:
        """Project what the optimizer has made of it: theta <- theta_0 + (theta - theta_0) (I - M M^T)."""
        for (name, p), start in zip(ctx.params.pairs, self._start or (), strict=False):
            if name in (self._bases or {}):
                p.copy_(start + self._beside(name, p - start))

    def _beside(self, name: str, tensor: Tensor) -> Tensor:
        """Return the part of a weight's gradient or change that is orthogonal to its layer's basis."""
        basis, transposed = (self._bases or {})[name], self._input_dim(name) == 0
        rows = tensor.float().mT if transposed else tensor.float()
        # where all directions are taken, Adam would make a step of the rounding error
        full = basis.shape[0] == basis.shape[1]
        rows = torch.zeros_like(rows) if full else rows - rows @ basis @ basis.mT
        return rows.mT if transposed else rows

    def _input_dim(self, name: str) -> int:
        return (self._input_dims or {})[name]

    @torch.no_grad()
    def end_task(self, ctx: Context) -> None:
        """Add the directions of the layers' inputs on the task's examples."""
        share = min(1.0, self.threshold + self.growth * ctx.task.index)
        with ctx.watch(products) as seen:
            for batch in ctx.task_examples(self.examples):
                ctx.forward(batch)
        bases, dims, overflowed = dict(self._bases or {}), dict(self._input_dims or {}), 0
        for name, found, dim in zip(ctx.params.names, seen.sums, seen.output_dims, strict=True):
            if found is None or dim is None:
                continue
            if not bool(found.isfinite().all()):
                overflowed += 1
                continue
            basis = extended(bases.get(name), found, share)
            if basis.shape[1]:
                bases[name], dims[name] = basis, 1 - dim
        self._bases, self._input_dims = bases or None, dims or None
        taken = [bases[n].shape[1] / len(bases[n]) if n in bases else 0.0 for n in ctx.params.names]
        ctx.measure(taken=torch.tensor(taken))
        told = {"overflowed": overflowed} if overflowed else {}
        ctx.event("bases", taken=sum(taken) / max(1, len(bases)), free=len(taken) - len(bases), **told)
