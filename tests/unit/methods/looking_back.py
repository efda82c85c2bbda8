"""Train a task by hand with a method that looks at single examples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.reference import ewc
from tests.unit.methods.by_hand import Batch, ByHand, loss


class LookingBack(ByHand):
    """An example is a row of a batch. Its log-likelihood is minus its squared error, times 3.

    Its 'logit' is that of `logit`, the sum of the outputs' squares.
    """

    def examples(self) -> list[Batch]:
        """The rows of all batches of the task."""
        return [(x[i : i + 1], y[i : i + 1]) for x, y in self.current for i in range(len(x))]

    def _named(self) -> dict[str, Tensor]:
        return dict(zip(self.params.names, self.params.tensors, strict=True))

    def squared_gradients(self, count: int | None = None) -> list[Tensor]:
        """See `kifuse.methods.context.Context`."""
        chosen = self.examples()[:count]
        found = ewc.fisher(self.params.tensors, [lambda e=e: -3 * loss(self._named(), e) for e in chosen])
        return [f.float() for f in found]

    def logit(self, example: Batch) -> Tensor:
        """Compute what takes the place of an example's logit; it is not linear in any parameter."""
        return loss(self._named(), (example[0], torch.zeros_like(example[1])))

    def logit_gradients(self, count: int | None = None) -> Iterator[Tensor]:
        """See `kifuse.methods.context.Context`."""
        for example in self.examples()[:count]:
            grads = torch.autograd.grad(self.logit(example), self.params.tensors)
            yield torch.cat([g.flatten() for g in grads]).float()
