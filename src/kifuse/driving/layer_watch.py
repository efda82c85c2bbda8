"""Sums over the tokens that trained linear layers see, under a live Trainer.

A function of a layer's inputs and outputs is summed over the tokens of a step, or of what `Context.forward`
reads. Only real tokens count: no padding, and no row without a target. Evaluation does not count, nor do the
forward passes that gradient checkpointing runs again in the backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.driving.real_tokens import RealTokens, side_of
from kifuse.driving.taps import Taps
from kifuse.errors import RunError
from kifuse.methods.layer_sums import LayerFunction
from kifuse.methods.parameters import Parameters


class LayerWatch:
    """Watches trained linear layers for a method that needs `layers`; see `Context.watch`.

    Args:
        taps: The taps of a Trainer that is about to train.
        model: The Trainer's model without wrappers.
        params: The trainable parameters, as a method sees them.
        own: The same as the model has them, which may be pieces; None: they are the same tensors.

    Raises:
        RunError: No linear weight is trained, the adapter is DoRA, or the set-up runs no hooks.
    """

    def __init__(
        self, taps: Taps, model: nn.Module, params: Parameters, own: Parameters | None = None
    ) -> None:
        trainer = taps.trainer
        if trainer.args.torch_compile:
            raise RunError(
                "the method reads inputs of layers, which does not work with torch_compile, as it runs "
                "no hooks. Turn it off."
            )
        if any("lora_magnitude_vector" in name for name in params.names):
            raise RunError(
                "the method reads inputs of layers, which does not work with DoRA, as it calls LoRA's "
                "layers with other tensors too. Use model.adapter.kind 'lora', 'rslora' or 'full'."
            )
        self.params, self.processes = params, trainer.accelerator.num_processes
        two_sided = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        owners = _linear_owners(model, params if own is None else own)
        self.layers = [
            _Layer(name, module, place, params.tensors[place], two_sided) for name, module, place in owners
        ]
        if not self.layers:
            raise RunError(
                "the method reads inputs of trained linear layers, but no linear layer is trained "
                f"({len(params.names)} other tensors are). Use LoRA or full fine-tuning."
            )
        self.training: RealTokens | None = None
        """The tokens of the micro-batch that is being trained on."""
        self.reading: RealTokens | None = None
        """The tokens of the batch that `Context.forward` is reading."""
        self.readers: list[Watch] = []
        """The watches that count what `Context.forward` reads, and not what is trained on."""
        self._model, self._watches, self._trains = model, list[Watch](), True
        # only the inputs of a forward pass tell padding from text
        taps.compute_loss(self._listen)

    def _listen(self, compute_loss: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as usual, and watch the layers meanwhile."""
        if self._watches and torch.is_grad_enabled() and self._model.training:
            self.training = RealTokens(inputs)
        try:
            return compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.training = None

    @contextlib.contextmanager
    def read(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Watch the layers while the model reads a batch outside of training."""
        self.reading = RealTokens(inputs) if self.readers else None
        try:
            yield
        finally:
            self.reading = None

    def watch(self, function: LayerFunction) -> Watch:
        """See `Context.watch`."""
        found = Watch(self, function)
        if self._trains:
            self._watches.append(found)
            found.hook()
        return found

    def read_only(self, watch: Watch) -> None:
        """Let a watch count what `Context.forward` reads, and no longer what is trained on."""
        self._watches = [each for each in self._watches if each is not watch]
        self.readers.append(watch)

    def clear(self) -> None:
        """Start a new optimizer step."""
        for each in self._watches:
            each.clear()

    def take(self) -> None:
        """Complete the step's sums, over all micro-batches and processes.

        Raises:
            RunError: A weight has a gradient though its layer was not called as a module.
        """
        for each in self._watches:
            each.complete()

    def remove(self) -> None:
        """Take the hooks off the model; from now on only what `Context.forward` reads can be watched."""
        for each in self._watches:
            each.remove()
        self._watches, self._trains = [], False


class Watch:
    """Implements `kifuse.methods.layer_sums.LayerSums`.

    Args:
        owner: The `LayerWatch` that holds the layers.
        function: The function to sum.

    Raises:
        RunError: The function cannot be summed.
    """

    def __init__(self, owner: LayerWatch, function: LayerFunction) -> None:
        self._owner, self._function = owner, function
        tried = [self._tried(layer) for layer in owner.layers]
        kind = reduce(torch.promote_types, (dtype for _, dtype in tried), torch.float32)
        # behind the sums stand marks of the layers called, so that processes add up both at once
        sizes = [*(shape.numel() for shape, _ in tried), len(tried)]
        self._flat = torch.zeros(sum(sizes), dtype=kind, device=owner.layers[0].weight.device)
        *sums, self._calls = self._flat.split(sizes)
        self._into = [piece.view(shape) for piece, (shape, _) in zip(sums, tried, strict=True)]
        self._called = [False] * len(tried)
        self._handles: list[Any] = []
        self._sums: list[Tensor | None] | None = None

    def _tried(self, layer: _Layer) -> tuple[torch.Size, torch.dtype]:
        """Call the function with no tokens, before any step; returns the shape and type of its value."""
        shapes = [(0, layer.weight.shape[dim]) for dim in layer.dims]
        try:
            value = self._value(*(layer.weight.new_zeros(shape) for shape in shapes))
        except Exception as error:
            raise RunError(
                f"{layer.name}: the function given to watch failed on inputs {shapes[0]} and outputs "
                f"{shapes[1]} with {type(error).__name__}: {error}. It must return a sum over tokens, also "
                "when there are no tokens."
            ) from error
        if not isinstance(value, Tensor):
            raise RunError(f"the function given to watch returned {type(value).__name__}, expected a tensor.")
        return value.shape, value.dtype

    @torch.no_grad()
    def _value(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        # the function itself is not computed in the model's mixed precision
        with torch.autocast(outputs.device.type, enabled=False):
            return self._function(inputs, outputs)

    def hook(self) -> None:
        """Put hooks on the layers."""
        hooks = (self._hook(place, layer) for place, layer in enumerate(self._owner.layers))
        pairs = zip(self._owner.layers, hooks, strict=True)
        self._handles = [layer.module.register_forward_hook(h, with_kwargs=True) for layer, h in pairs]

    def _hook(self, place: int, layer: _Layer) -> Any:
        def add(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            real = self._owner.reading if self in self._owner.readers else self._owner.training
            if real is None or self._sums is not None:
                return
            inputs = args[0] if args else kwargs["input" if "input" in kwargs else "x"]
            seen = (real.of(each, output.shape, layer.side, layer.name) for each in (inputs, output))
            value = self._value(*seen)
            into = self._into[place]
            if value.shape != into.shape:
                raise RunError(
                    f"{layer.name}: the function given to watch returned shape {tuple(value.shape)} after "
                    f"{tuple(into.shape)}; it must return a sum over tokens, however many they are."
                )
            into += value
            self._called[place] = True

        return add

    def clear(self) -> None:
        """Set the sums to 0."""
        self._flat.zero_()
        self._called, self._sums = [False] * len(self._called), None

    def complete(self) -> None:
        """Complete the sums of a step, over all processes."""
        if self._owner.processes > 1:
            self._calls.copy_(torch.tensor(self._called))
            torch.distributed.all_reduce(self._flat)
            self._called = [count > 0 for count in self._calls.tolist()]
        for called, layer in zip(self._called, self._owner.layers, strict=True):
            if not called and layer.weight.grad is not None:
                raise RunError(
                    f"{layer.name}: its weight has a gradient, but the layer was not called as a module, so "
                    "its inputs and outputs are not known."
                )
        self._found()

    def _found(self) -> None:
        seen = zip(self._called, self._into, self._owner.layers, strict=True)
        sums = {layer.place: into for called, into, layer in seen if called}
        self._sums = [sums.get(place) for place in range(len(self._owner.params.names))]

    @property
    def sums(self) -> list[Tensor | None]:
        """See `LayerSums.sums`."""
        if self._sums is None:
            raise RunError(
                "what was watched in a step is known in on_gradients and on_update, and what was watched "
                "in a block 'with ctx.watch(function) as watched:' when the block has ended."
            )
        return self._sums

    @property
    def output_dims(self) -> list[int | None]:
        """See `LayerSums.output_dims`."""
        dims = {layer.place: layer.dims[1] for layer in self._owner.layers}
        return [dims.get(place) for place in range(len(self._owner.params.names))]

    def __enter__(self) -> Watch:
        self.remove()
        self.clear()
        self._owner.read_only(self)
        self.hook()
        return self

    def __exit__(self, *error: object) -> None:
        self._owner.readers.remove(self)
        self.remove()
        self._found()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Layer:
    """One linear layer, with the place of its weight among the parameters."""

    def __init__(self, name: str, module: nn.Module, place: int, weight: Tensor, two_sided: bool) -> None:
        self.name, self.module, self.place = name, module, place
        self.side = side_of(name) if two_sided else "text"
        self.weight = weight
        self.dims = (1, 0) if isinstance(module, nn.Linear) else (0, 1)
        """The dimensions of the weight that stand for inputs and outputs."""


def _linear_owners(model: nn.Module, params: Parameters) -> list[tuple[str, nn.Module, int]]:
    """Find linear layers with a trained weight of their own: name, module, place among the parameters."""
    places = {id(p): place for place, p in enumerate(params.tensors)}
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for key, p in module.named_parameters(recurse=False):
            if id(p) in places:
                owners.setdefault(places[id(p)], []).append((name if key == "weight" else "", module))
    return [
        (*found[0], place)
        for place, found in sorted(owners.items())
        if len(found) == 1 and found[0][0] and _is_linear(found[0][1])
    ]


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, or GPT-2's Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
