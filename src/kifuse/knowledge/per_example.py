"""Squared gradients of single examples, from one backward pass of their batch (KIF Eq. 9, F).

The weight gradient of a linear layer is a sum over examples j and positions t of outer products,
g = sum_j g_j with g_j = sum_t dL/dy_jt x_jt^T. The ordinary forward and backward pass computes both factors
anyway, so sum_j g_j^2 costs one more product of them per layer and no second pass.

The loss of a training step is a sum over its examples (target tokens divided by the step's token count), so
g_j is the *share* of example j in the step's gradient: sum_j g_j = g, over micro-batches too. A single
example in a step gives sum_j g_j^2 = g^2. A padded position has no gradient and adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 1 << 24  # scalars of single examples' gradients that are held at once


class SquaredGradients:
    """Sum over examples of the squared gradient of each example, for the weights of linear layers.

    Hooks on the layers that own the parameters see every backward pass until `remove` is called. An example
    is a row of the batch: the first dimension of the model's input and of each layer's.

    Args:
        model: The model whose forward pass is called.
        params: Trainable parameters; the sums come in this order. Weights and biases of `nn.Linear` (LoRA's A
            and B are such layers) and of the transposed `Conv1D` of GPT-2.
        shapes: Their whole shapes, where the parameters are pieces; None for their own.

    Raises:
        ValueError: A parameter belongs to another kind of module, or to several modules.
    """

    def __init__(
        self, model: nn.Module, params: Sequence[nn.Parameter], shapes: Sequence[Sequence[int]] | None = None
    ) -> None:
        whole = [torch.Size(shape) for shape in (shapes or [p.shape for p in params])]
        sizes = [shape.numel() for shape in whole]
        device = params[0].device if params else None
        self._params = list(params)
        self._flat = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
        pieces = self._flat.split(sizes)
        self._sums = [piece.view(shape) for piece, shape in zip(pieces, whole, strict=True)]
        by_id = {id(p): view for p, view in zip(params, self._sums, strict=True)}
        self._layers = [_Layer(name, module, owned) for name, module, owned in _owners(model, params, by_id)]
        self._rows: int | None = None
        self._backward = False
        self._handles = [model.register_forward_pre_hook(self._new_pass, with_kwargs=True)]
        for layer in self._layers:
            hook = self._forward_hook(layer)
            self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))

    def sums(self, grads: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """Return the sums since the last `clear`: float32 views of one buffer, in the parameters' shapes.

        Args:
            grads: The gradients of the parameters; None for those that lie on them.

        Raises:
            ValueError: A layer has a gradient that the hooks did not see, or whose examples are not the rows
                of the batch.
        """
        self._finish()
        found = [p.grad for p in self._params] if grads is None else grads
        moved = {id(p) for p, grad in zip(self._params, found, strict=True) if grad is not None}
        for layer in self._layers:
            layer.check(moved)
        return self._sums

    @property
    def flat(self) -> Tensor:
        """All sums as one float32 vector, of which `sums` gives views; scale or reduce it in place."""
        return self._flat

    def clear(self) -> None:
        """Reset all sums, for the next optimizer step."""
        self._flat.zero_()
        for layer in self._layers:
            layer.clear()

    def remove(self) -> None:
        """Remove all hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _new_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note the number of examples in the batch, before a forward pass of the whole model."""
        self._finish()
        self._backward = False
        tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim > 0)
        first = next(tensors, None)
        self._rows = None if first is None else first.shape[0]

    def _forward_hook(self, layer: _Layer) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
            # a call during the backward pass comes from gradient checkpointing, which repeats an earlier call
            layer.calls += not self._backward
            if not output.requires_grad:
                return
            x = (args[0] if args else next(iter(kwargs.values()))).detach()
            if x.ndim < 2 or (self._rows is not None and x.shape[0] != self._rows):
                layer.strange = True
                return

            def take(grad: Tensor) -> None:
                self._backward = True
                layer.take(x, grad.detach())

            output.register_hook(take)

        return hook

    def _finish(self) -> None:
        """Square the gradients that still wait, for layers with a call that got no gradient."""
        for layer in self._layers:
            layer.square()
            layer.calls = 0


class _Layer:
    """One linear layer: what its calls in the current pass left behind, and where their squares are added."""

    def __init__(self, name: str, module: nn.Module, owned: Mapping[str, Tensor]) -> None:
        self.name = name
        self.module = module
        self.weight, self.bias = owned.get("weight"), owned.get("bias")
        self.ids = {id(module.get_parameter(key)) for key in owned}
        self.transposed = not isinstance(module, nn.Linear)
        self.calls = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything except the number of calls in the present forward pass."""
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.seen = self.strange = False

    def check(self, moved: Set[int]) -> None:
        """Refuse a gradient that the hooks did not see as rows of the batch; `moved` has the ids of those."""
        if self.strange:
            raise ValueError(
                f"{self.name}: the examples are not the rows of its input, so their gradients cannot be "
                "computed separately. Use fisher: batch."
            )
        if not self.seen and self.ids & moved:
            raise ValueError(
                f"{self.name}: its weight has a gradient, but the layer was not called as a module, so the "
                "examples' gradients cannot be computed separately. Use fisher: batch."
            )

    @torch.no_grad()
    def take(self, x: Tensor, grad: Tensor) -> None:
        """Add one call: inputs (rows, ..., in), gradients of the outputs (rows, ..., out)."""
        self.seen = True
        wide = torch.promote_types(x.dtype, torch.float32)
        rows = len(x)
        self.waiting.append(
            (x.reshape(rows, -1, x.shape[-1]).to(wide), grad.reshape(rows, -1, grad.shape[-1]).to(wide))
        )
        # an example's gradient must be summed over all calls of the layer before it is squared
        if len(self.waiting) >= self.calls:
            self.square()

    @torch.no_grad()
    def square(self) -> None:
        """Sum each example's gradient over the waiting calls, and add its square."""
        if not self.waiting:
            return
        inputs, outputs = self.waiting[0]
        if len(self.waiting) > 1:
            inputs = torch.cat([x for x, _ in self.waiting], 1)
            outputs = torch.cat([grad for _, grad in self.waiting], 1)
        self.waiting = []
        if self.transposed:
            inputs, outputs = outputs, inputs
        if self.weight is not None:
            at_once = max(1, _MOST // self.weight.numel())
            for x, g in zip(inputs.split(at_once), outputs.split(at_once), strict=True):
                # g_j = sum_t g_jt x_jt^T
                self.weight.add_(torch.bmm(g.mT, x).square_().sum(0))
        if self.bias is not None:
            grads = inputs if self.transposed else outputs
            self.bias.add_(grads.sum(1).square_().sum(0))


def _owners(
    model: nn.Module, params: Sequence[nn.Parameter], by_id: Mapping[int, Tensor]
) -> list[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Find the layers that own the parameters.

    Returns:
        For each layer its name, the module, and the tensors to which the sums of its `weight` and `bias` are
        added.

    Raises:
        ValueError: See `SquaredGradients`.
    """
    found: dict[int, str] = {}
    strange: list[str] = []
    layers: list[tuple[str, nn.Module, dict[str, Tensor]]] = []
    for name, module in model.named_modules():
        owned = {key: by_id[id(p)] for key, p in module.named_parameters(recurse=False) if id(p) in by_id}
        if not owned:
            continue
        if not _is_linear(module):
            strange += [f"{name}.{key} ({type(module).__name__})" for key in owned]
            continue
        for key in owned:
            p = id(module.get_parameter(key))
            if p in found:
                raise ValueError(
                    f"{name}.{key} is the same parameter as {found[p]}: the gradients of single examples "
                    "are not known for a shared weight. Use fisher: batch."
                )
            found[p] = f"{name}.{key}"
        layers.append((name, module, owned))
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise ValueError(
            "the gradients of single examples are known for linear layers only, but these parameters are "
            f"trainable too: {', '.join(strange[:3])}{more}. Freeze them, or use fisher: batch."
        )
    if len(found) < len(by_id):
        raise ValueError(f"found {len(found)} of the {len(by_id)} parameters in the model, expected all.")
    return layers


def _is_linear(module: nn.Module) -> bool:
    """Whether a module computes x W^T + b, or is GPT-2's Conv1D, x W + b."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
