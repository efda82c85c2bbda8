"""How much each output unit of a trained linear layer is used in a step, under a live Trainer.

n_j = sum over the step's tokens of |y_j|, where y is the output of the layer in the forward pass of training.
Only real tokens count: no padding, and no row without a target. Evaluation does not count, nor do the forward
passes that gradient checkpointing runs again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.driving.taps import Taps
from kifuse.errors import RunError
from kifuse.methods.base import Parameters
from kifuse.tasks.collator import IGNORED

CROSS_ATTENTION = {"EncDecAttention", "encoder_attn", "cross_attn", "crossattention"}
"""Names that model families give a decoder's attention to the encoder."""
OF_THE_ENCODER = {"k", "v", "k_proj", "v_proj", "key", "value"}
"""Layers of that attention whose inputs are the encoder's outputs."""


class StepMagnitudes:
    """Computes `Context.magnitudes` in each optimizer step, for a method that needs `magnitudes`.

    Args:
        taps: The taps of a Trainer that is about to train.
        model: The Trainer's model without wrappers.
        params: The trainable parameters.

    Raises:
        RunError: No linear weight is trained, the adapter is DoRA, or the set-up runs no hooks.
    """

    def __init__(self, taps: Taps, model: nn.Module, params: Parameters) -> None:
        trainer = taps.trainer
        if trainer.args.torch_compile:
            raise RunError(
                "activation magnitudes do not work with torch_compile, which runs no hooks; turn it off."
            )
        if any("lora_magnitude_vector" in name for name in params.names):
            raise RunError(
                "activation magnitudes do not work with DoRA, which calls LoRA's layers on what is no text; "
                "use model.adapter.kind 'lora', 'rslora' or 'full'."
            )
        self._trainer, self._model, self._params = trainer, model, params
        encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        owners = _linear_owners(model, params)
        if not owners:
            raise RunError(
                "the method masks output units of trained linear layers, but no weight of one is trained "
                f"({len(params.names)} other tensors are); use LoRA or full fine-tuning."
            )
        sizes = [_units(module) for _, module, _ in owners]
        self._flat = torch.zeros(sum(sizes), dtype=torch.float32, device=params.tensors[0].device)
        self._layers = [
            _Layer(name, module, place, sums, _side(name) if encoder_decoder else "text")
            for (name, module, place), sums in zip(owners, self._flat.split(sizes), strict=True)
        ]
        self._real: _RealTokens | None = None
        self._handles = [layer.module.register_forward_hook(self._hook(layer)) for layer in self._layers]
        # only the inputs of a forward pass tell padding from text
        taps.compute_loss(self._listen)

    def _listen(self, compute_loss: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as usual, and observe the outputs of layers meanwhile."""
        if torch.is_grad_enabled() and self._model.training:
            self._real = _RealTokens(inputs)
        try:
            return compute_loss(model, inputs, *args, **kwargs)
        finally:
            self._real = None

    def _hook(self, layer: _Layer) -> Any:
        @torch.no_grad()
        def add(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._real is not None:
                real = self._real.of(output, layer)
                kept = output.detach().abs().masked_fill(~real[..., None], 0.0)
                layer.sums += kept.flatten(0, -2).sum(0, dtype=torch.float32)
                layer.seen = True

        return add

    def clear(self) -> None:
        """Start a new optimizer step."""
        self._flat.zero_()
        for layer in self._layers:
            layer.seen = False

    def take(self) -> list[Tensor | None]:
        """Return the step's n, over all micro-batches and processes.

        Returns:
            See `Context.magnitudes`; the tensors are overwritten in the next step.

        Raises:
            RunError: A weight has a gradient though its layer was not called as a module.
        """
        if self._trainer.accelerator.num_processes > 1:
            torch.distributed.all_reduce(self._flat)
        found: list[Tensor | None] = [None] * len(self._params.names)
        for layer in self._layers:
            if layer.seen:
                found[layer.place] = layer.sums[:, None] if layer.rows else layer.sums[None]
            elif self._params.tensors[layer.place].grad is not None:
                raise RunError(
                    f"{layer.name}: its weight has a gradient though the layer was not called as a module, "
                    "so that the magnitudes of its output units are not known."
                )
        return found

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Layer:
    """One linear layer, with the place of its weight among the parameters, and the tensor for its sums."""

    def __init__(self, name: str, module: nn.Module, place: int, sums: Tensor, side: str) -> None:
        self.name, self.module, self.place, self.sums, self.side = name, module, place, sums, side
        self.rows = isinstance(module, nn.Linear)
        """Whether an output unit is a row of the weight; else a column."""
        self.seen = False


class _RealTokens:
    """Which positions of a batch hold text of a row that has a target.

    Args:
        inputs: Arguments of the model, with `labels`, and `attention_mask` where there is padding.

    Raises:
        RunError: The mask does not have the shape (rows, positions).
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        ids = next((inputs[key] for key in ("input_ids", "inputs_embeds") if key in inputs), None)
        mask, labels = inputs.get("attention_mask"), inputs.get("labels")
        if ids is None or (mask is not None and mask.ndim != 2):
            found = [f"{key} {tuple(v.shape)}" for key, v in inputs.items() if isinstance(v, Tensor)]
            raise RunError(
                "activation magnitudes leave padding out by an attention_mask of shape (rows, positions) "
                f"beside input_ids or inputs_embeds, but the batches hold {', '.join(found)}."
            )
        text = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device) if mask is None else mask.bool()
        self.rows = torch.ones_like(text[:, 0])
        if labels is not None and labels.ndim > 1:
            # a row without a target only fills up a process that has fewer rows than another one
            self.rows = (labels != IGNORED).any(-1)
        self._masks: dict[str, Tensor] = {"text": text & self.rows[:, None]}
        target = inputs.get("decoder_attention_mask")
        if target is None and labels is not None:
            target = labels != IGNORED
        if target is not None:
            self._masks["target"] = target.bool() & self.rows[:, None] if target.ndim > 1 else target

    def of(self, output: Tensor, layer: _Layer) -> Tensor:
        """The mask of a layer's output, without its last dimension.

        Raises:
            RunError: The output's positions are not those of the batch.
        """
        lead, mask = output.shape[:-1], self._masks.get(layer.side)
        if mask is not None:
            if lead == mask.shape:
                return mask
            if lead == (mask.numel(),):
                return mask.flatten()
            if layer.side == "text" and len(lead) == 2 and lead[0] == len(mask) and lead[1] < mask.shape[1]:
                # a head that computes the logits of the last positions only
                return mask[:, -lead[1] :]
        if lead == self.rows.shape:
            return self.rows  # a head on one vector of each row
        expected = "no mask" if mask is None else f"those of a mask {tuple(mask.shape)}"
        raise RunError(
            f"{layer.name}: the output has shape {tuple(output.shape)}, whose positions are not {expected}, "
            "so that padding cannot be told from text; leave this layer frozen."
        )


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
        if len(found) == 1 and found[0][0] and _units(found[0][1])
    ]


def _units(module: nn.Module) -> int:
    """Output units of a linear layer or of GPT-2's Conv1D; 0 of anything else."""
    if isinstance(module, nn.Linear):
        return module.weight.shape[0]
    return int(module.weight.shape[1]) if type(module).__name__ == "Conv1D" else 0  # type: ignore[union-attr]


def _side(name: str) -> str:
    """Which positions a layer of an encoder-decoder model sees: those of the `text` or of the `target`."""
    parts = name.split(".")
    if "encoder" in parts:
        return "text"
    return "text" if CROSS_ATTENTION & set(parts) and OF_THE_ENCODER & set(parts) else "target"
