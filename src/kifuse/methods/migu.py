"""MIGU, magnitude-based gradient updating: in each step only a layer's most active output units learn.

For each trained linear layer and each step, n_j is the sum over the step's tokens of |y_j|, the absolute
output of unit j. A trained linear layer is a LoRA matrix, A or B, or a weight that is itself trained. From
the second task on, the units below the q-quantile of their layer are held back:

    m_j = [n_j >= q-quantile of n],   row j of the weight moves only where m_j = 1.

Exactly ceil((1 - q) n) of n rows change, and more only if several have the threshold's magnitude. Nothing is
kept from task to task.

| symbol | setting |
| --- | --- |
| q | `quantile` (paper: 0.7) |
| what is masked | `mask` |

The paper masks the gradient. But Adam's moments and weight decay also change a row that has no gradient. So
with `mask="update"` (the default) the rows that are held back are restored after the step, bit for bit.
`mask="gradient"` is the paper's rule alone. Padding does not count in n. Only weights of linear layers are
masked: norms, biases and embeddings learn as usual. Gradients are clipped before they are masked.

Paper: arXiv 2406.17245.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import SETTINGS, Context, Method, Need
from kifuse.methods.kept import Unsaved
from kifuse.methods.layer_sums import LayerSums


@final
@dataclass(kw_only=True, config=SETTINGS)
class MIGU(Method):
    """Only the output units with the largest activations learn; each step chooses them anew."""

    quantile: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.7
    mask: Literal["update", "gradient"] = "update"

    _active: Unsaved[bool] = False
    _magnitudes: Unsaved[LayerSums]
    _held: Unsaved[Sequence[tuple[Tensor, Tensor, Tensor]]] = ()

    plain_first_task = True

    @property
    def needs(self) -> frozenset[Need]:
        """The layers' outputs, from which the masks are computed."""
        return frozenset({"layers"})

    def begin_task(self, ctx: Context) -> None:
        """Watch the layers, and turn masking on after the first task, which is ordinary training."""
        self._magnitudes = ctx.watch(magnitude)
        self._active, self._held = not ctx.task.first and self.quantile > 0.0, ()

    @torch.no_grad()
    def on_gradients(self, ctx: Context) -> None:
        """Choose the step's rows; clear the gradients of the others, and copy their values."""
        if not self._active:
            return
        held = held_back(self._magnitudes.sums, self.quantile)
        places = zip(ctx.params.tensors, held, self._magnitudes.output_dims, strict=True)
        masked = [(p, m.unsqueeze(1 - dim)) for p, m, dim in places if m is not None and dim is not None]
        for p, mask in masked:
            if p.grad is not None:
                p.grad.masked_fill_(mask, 0.0)
        self._held = [(p, m, p.detach().clone()) for p, m in masked] if self.mask == "update" else ()

    @torch.no_grad()
    def on_update(self, ctx: Context) -> None:
        """Restore rows that momentum or weight decay changed although they were held back."""
        for p, mask, before in self._held:
            p.copy_(torch.where(mask, before, p))
        self._held = ()


def magnitude(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Compute n_j = sum over tokens of |y_j|, `(out,)`; a `LayerFunction`."""
    return outputs.abs().sum(0, dtype=torch.float32)


def held_back(magnitudes: Sequence[Tensor | None], quantile: float) -> list[Tensor | None]:
    """Mark the output units below the quantile of their layer.

    Args:
        magnitudes: For each layer one number per unit, in any shape; None is passed on.
        quantile: In [0, 1): ceil((1 - quantile) n) of n units are not marked, and more if there are ties.

    Returns:
        Boolean masks in the same shapes.
    """
    by_size: dict[int, list[int]] = {}
    for place, each in enumerate(magnitudes):
        if each is not None:
            by_size.setdefault(each.numel(), []).append(place)
    found: list[Tensor | None] = [None] * len(magnitudes)
    for size, places in by_size.items():
        # subtract a small number, because 0.3 * 10 is computed as slightly more than 3
        kept = max(1, math.ceil((1.0 - quantile) * size - 1e-9))
        together = torch.stack([m.flatten() for place in places if (m := magnitudes[place]) is not None])
        masks = together < together.topk(kept, dim=1).values[:, -1:]
        for place, mask in zip(places, masks, strict=True):
            found[place] = mask.view_as(magnitudes[place])  # type: ignore[arg-type]
    return found
