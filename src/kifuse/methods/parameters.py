"""The trainable parameters of a model, in the form that methods get them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn


class Parameters:
    """The trainable parameters of a model, in one fixed order.

    Args:
        named: `(name, parameter)` pairs, as from `model.named_parameters()`; frozen ones are left out.
        frozen: See the attribute.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], frozen: Mapping[str, Tensor] | None = None
    ) -> None:
        pairs = [(name, p) for name, p in named if p.requires_grad]
        self.frozen: dict[str, Tensor] = dict(frozen or {})
        """Tensors that the adapter keeps from earlier tasks and does not train, by the name of the parameter
        that each belongs to; empty for most adapters. See `Stack.frozen` and `Osf.frozen` in
        `kifuse.adapters`."""
        self.names: tuple[str, ...] = tuple(name for name, _ in pairs)
        self.tensors: list[nn.Parameter] = [p for _, p in pairs]

    @property
    def pairs(self) -> Iterable[tuple[str, nn.Parameter]]:
        """`(name, parameter)` of each parameter."""
        return zip(self.names, self.tensors, strict=True)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each parameter."""
        return [tuple(p.shape) for p in self.tensors]

    @property
    def count(self) -> int:
        """Number of scalars over all parameters."""
        return sum(p.numel() for p in self.tensors)

    @property
    def grads(self) -> list[Tensor | None]:
        """The gradient of each parameter, with the parameter's shape; None if it has none."""
        return [p.grad for p in self.tensors]

    def clone(self) -> list[Tensor]:
        """Detached copies of all values."""
        return [p.detach().clone() for p in self.tensors]

    @torch.no_grad()
    def means(self, values: Sequence[Tensor]) -> Tensor:
        """The mean of each parameter's values, for `Context.measure`.

        Args:
            values: One tensor per parameter, each broadcastable to the parameter's shape (booleans too).

        Returns:
            float32 `(parameters,)`.
        """
        return torch.stack(
            [v.detach().float().expand(p.shape).mean() for v, p in zip(values, self.tensors, strict=True)]
        )

    @torch.no_grad()
    def moved_from(self, previous: Sequence[Tensor]) -> Tensor:
        """The distance of each parameter from earlier values, as the mean over its scalars.

        For `Context.measure`.

        Args:
            previous: One tensor per parameter, of its shape; each is compared on its own device.

        Returns:
            float32 `(parameters,)`.
        """
        pairs = zip(self.tensors, previous, strict=True)
        return torch.stack([(p.to(old.device) - old).abs_().float().mean() for p, old in pairs])

    @torch.no_grad()
    def assign(self, values: Sequence[Tensor]) -> None:
        """Overwrite all values in place, so that optimizer and model keep their references."""
        torch._foreach_copy_([p.data for p in self.tensors], list(values))
