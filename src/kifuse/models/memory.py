"""Estimates the memory that training needs on a device from shapes alone: without weights or a device.

The model runs one forward pass on tensors that have shapes and types but no numbers. Tensors that are saved
for the backward pass are counted as they are saved, each piece of memory once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.adapters.kinds import add_empty_adapter
from kifuse.models.loading import Precision, Quantization, empty_model, shrink_frozen

QUANTISED = {"none": None, "8bit": 1.0, "4bit": 0.5 + 4 / 64}
"""Bytes per number in a quantised linear layer; 4 bits have a float32 scale for each 64 numbers (NF4)."""

TRAINED = 16
"""Bytes per trained number: value, gradient and Adam's two moments, all in float32."""

COPIES = {"KIF": 3, "Recurrent-KIF": 4}
"""Number of float32 copies of the trained weights that the papers' methods keep on the device."""


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes on each device, with plain data parallelism.

    Attributes:
        frozen: Bytes of weights that are not trained, embeddings included.
        trainable: How many numbers are trained; a count, not bytes.
        activations: Bytes that a forward pass saves for its backward pass, the loss included.
    """

    frozen: int
    trainable: int
    activations: int

    @property
    def trained(self) -> int:
        """Bytes of trained values with their gradients and Adam's moments."""
        return TRAINED * self.trainable

    def total(self, copies: int = 0) -> int:
        """The sum of all parts.

        Args:
            copies: Float32 copies of the trained weights that a method keeps; see `COPIES`.
        """
        return self.frozen + self.trained + 4 * copies * self.trainable + self.activations


def memory_needs(
    name: str,
    adapter: Any,
    *,
    rows: int,
    tokens: int,
    target: int,
    precision: Precision = "bf16",
    quantization: Quantization = "none",
    checkpointing: bool = False,
    trust_remote_code: bool = False,
) -> MemoryNeeds:
    """Count the memory that training needs, only from a model's `config.json`.

    Args:
        name: As in `load_backbone`; a folder needs only a `config.json`.
        adapter: As in `add_adapter`.
        rows: Examples that one device computes at once.
        tokens: Tokens of each example, padding included; for an encoder-decoder model those of the encoder.
        target: Tokens of each example that count in the loss; for an encoder-decoder model those of the
            decoder.
        precision: Precision of the matrix products.
        quantization: Quantization of the frozen linear layers.
        checkpointing: Gradient checkpointing: layers are computed again in the backward pass.
        trust_remote_code: Run model code from the hub; only when the user asks.

    Raises:
        ModelError: There is no such model, or the adapter cannot be put on it.
    """
    model, encoder_decoder = empty_model(name, trust_remote_code=trust_remote_code)
    return needs_of(
        add_empty_adapter(model, adapter, encoder_decoder=encoder_decoder),
        encoder_decoder,
        rows=rows,
        tokens=tokens,
        target=target,
        precision=precision,
        quantization=quantization,
        checkpointing=checkpointing,
    )


def needs_of(
    model: nn.Module,
    encoder_decoder: bool,
    *,
    rows: int,
    tokens: int,
    target: int,
    precision: Precision,
    quantization: Quantization = "none",
    checkpointing: bool = False,
) -> MemoryNeeds:
    """Do the same for a model without weights, on the meta device, with its adapter; the model is used up."""
    shrink_frozen(model, precision)
    frozen = _frozen_bytes(model, QUANTISED[quantization])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.train()
    with _shapes_only(model):
        inputs = _inputs(encoder_decoder, rows, tokens, target)
        saved = saved_bytes(model, inputs, target, precision, checkpointing=checkpointing)
    return MemoryNeeds(frozen, trainable, saved)


def saved_bytes(
    model: nn.Module, inputs: dict[str, Any], target: int, precision: Precision, *, checkpointing: bool
) -> int:
    """Count the bytes that a forward pass saves for its backward pass, with real tensors or shapes only.

    With checkpointing this is the input of each layer, everything saved outside of layers, and the most that
    one layer saves when it is computed again.

    Args:
        model: The model, in train mode.
        inputs: The inputs of its forward pass.
        target: Number of positions that count in the loss.
        precision: Precision of the matrix products.
        checkpointing: Whether layers are computed again.
    """
    held = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, tuple[Tensor, str]] = {}
    entered: list[int] = []
    inside: list[str] = []

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in held:
            # detach it from its graph, which holds this function and would never be freed
            saved.setdefault(place, (tensor.detach(), inside[-1] if inside else ""))
        return tensor

    handles = _watch_layers(model, entered, inside) if checkpointing else []
    device = inputs["input_ids"].device.type
    reduced = precision != "fp32"
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(device, torch.bfloat16, enabled=reduced),
        ):
            logits = model(**inputs).logits
            logits = logits[:, -target:].reshape(-1, logits.shape[-1]).float()
            labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            # the result must stay alive, or the memory of what it saved may be reused for something else
            loss = nn.functional.cross_entropy(logits, labels)
    finally:
        for handle in handles:
            handle.remove()
    layers: dict[str, int] = {}
    for tensor, layer in saved.values():
        layers[layer] = layers.get(layer, 0) + tensor.untyped_storage().nbytes()
    del loss
    outside = layers.pop("", 0)
    if not checkpointing:
        return outside + sum(layers.values())
    return outside + sum(entered) + max(layers.values(), default=0)


def _watch_layers(model: nn.Module, entered: list[int], inside: list[str]) -> list[Any]:
    """Note the size of each checkpointed layer's input, and which layer is running."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else kwargs["hidden_states"]
            entered.append(first.numel() * first.element_size())
            inside.append(name)

        return hook

    def leave(*_: Any) -> None:
        inside.pop()

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)]
    return [
        handle
        for name, layer in layers
        for handle in (
            layer.register_forward_pre_hook(enter(name), with_kwargs=True),
            layer.register_forward_hook(leave),
        )
    ]


def _frozen_bytes(model: nn.Module, quantised: float | None) -> int:
    """Bytes of weights that are not trained, tied ones once; an output layer is not quantised."""
    total, seen = 0.0, set()
    for name, module in model.named_modules():
        small = quantised if type(module) is nn.Linear and "lm_head" not in name else None
        for p in module.parameters(recurse=False):
            if not p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                total += p.numel() * (small if small is not None and p.ndim == 2 else p.element_size())
    return round(total)


def _inputs(encoder_decoder: bool, rows: int, tokens: int, target: int) -> dict[str, Any]:
    ids = torch.ones(rows, tokens, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    if encoder_decoder:
        inputs["decoder_input_ids"] = torch.ones(rows, target, dtype=torch.long)
    else:
        # as in training batches: the logits of a prompt are not computed
        inputs["logits_to_keep"] = target + 1
    return inputs


@contextmanager
def _shapes_only(model: nn.Module) -> Iterator[None]:
    """Replace a meta model's tensors by CPU tensors without numbers, so that autocast works on them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    made: dict[int, Any] = {}
    with FakeTensorMode():
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for name, old in list(table.items()):
                    if old is None:
                        continue
                    if id(old) not in made:
                        new: Any = torch.empty(old.shape, dtype=old.dtype)
                        made[id(old)] = (
                            nn.Parameter(new, old.requires_grad) if table is module._parameters else new
                        )
                    table[name] = made[id(old)]
        yield
