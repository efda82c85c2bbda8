"""The function that a method gives to `Context.watch`, and the sums that it gets back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

LayerFunction = Callable[[Tensor, Tensor], Tensor]
"""Called as `function(inputs, outputs)` with the real tokens of one forward pass of a layer, `(tokens, in)`
and `(tokens, out)`. It returns a sum over these tokens. The number of tokens may be 0, and the shape of the
sum must not depend on it."""


class LayerSums(Protocol):
    """A function's sums over the real tokens that trained linear layers have seen; see `Context.watch`."""

    @property
    def sums(self) -> list[Tensor | None]:
        """One sum for each parameter, in the order of `params`.

        None stands for a parameter that is not the weight of a linear layer, or whose layer was not called.
        The tensors are float32, or float64 if the function returns that. The next step overwrites them.

        Raises:
            RunError: The step's gradients are not complete, or the block has not ended.
        """
        ...

    @property
    def output_dims(self) -> list[int | None]:
        """Which dimension of each parameter stands for its layer's outputs.

        It is 0, or 1 where the weight is `(in, out)` as in GPT-2. None stands for a parameter that is not the
        weight of a linear layer.
        """
        ...

    def __enter__(self) -> LayerSums:
        """Sum over what `ctx.forward` reads, and not over training."""
        ...

    def __exit__(self, *error: object) -> None:
        """Stop; `sums` stay."""
        ...
