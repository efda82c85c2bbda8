"""Orthogonal subspace fine-tuning (OSF) with PEFT's tuner, and the step between tasks that PEFT lacks.

Each adapted weight W (out, in) is decomposed into its singular directions,

    W = U_h S_h V_h + U_l S_l V_l,        U_h (out, k), V_h (k, in), U_l (out, r), V_l (r, in),

The k largest directions (h) are frozen; the factors of the other r = min(out, in) - k directions (l) are
trained.

- **Open**: while a task is trained, a layer computes (W + U_l S_l V_l - U_l0 S_l0 V_l0) x. The factors behind
  the minus sign are those that the task started with.
- **Closed**: between tasks, the difference is merged into W, and the layer computes W x and nothing else.
  This W is scored, saved and loaded, so what was learned does not depend on any factors.
- When the layer is opened again, the *updated* W is decomposed, so that its largest directions are frozen.

PEFT's own `unload` gives back the W that was loaded, without anything learned; kifuse never calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kifuse.adapters.base import refuse_start
from kifuse.adapters.full import read_weights, write_weights
from kifuse.adapters.lora import CURRENT, Peft
from kifuse.errors import ModelError

KIND = "osf"

SINCE = (0, 21)
"""First release of PEFT whose layers keep the factors that a task started with."""


class Osf(Peft):
    """Trains the smaller singular directions of the adapted weights; each task decomposes them anew."""

    _fresh = False
    """Whether the factors come from the present weights and were not trained since."""

    @classmethod
    def refuse(cls, settings: Any, method: str) -> None:
        """Refuse another kind of adapter, and a PEFT that is too old."""
        refuse_start(settings, method)
        _refuse_old_peft()
        if settings.kind != KIND:
            raise ModelError(
                f"model.adapter.kind: found {settings.kind!r}, expected {KIND!r}: {method!r} trains the "
                "smaller singular directions of the model's own matrices."
            )

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Decompose the weights.

        Raises:
            ModelError: A weight cannot be decomposed, or PEFT is older than 0.21.
        """
        _refuse_old_peft()
        adapted = super().attach(model, encoder_decoder=encoder_decoder, seed=seed)
        self._fresh = True
        return adapted

    def _config(self, model: Any, kind: str, **shared: Any) -> Any:
        from peft import OSFConfig

        names, share = shared["target_modules"], self.settings.preserve
        _refuse_layers(model, names)
        # freeze one direction if the share would freeze none of some weight
        sizes = [min(module.weight.shape) for _, module in _adapted(model, names)]
        return OSFConfig(effective_rank=share if all(int(size * share) for size in sizes) else 1, **shared)

    def begin_task(self, index: int, seed: int) -> None:
        """Freeze the method's share of each weight's singular directions; see `open`."""
        growth = getattr(self.method, "growth", 0.0)
        self.open(min(1.0, self.settings.preserve + growth * index))

    def open(self, share: float) -> None:
        """Decompose the weights as they are now; the model computes the same as before.

        Factors that an earlier training left, and that were not merged into the weights, are dropped.

        Args:
            share: Share of each weight's singular directions, the largest ones, that is frozen; 0 to 1. At
                least one direction is frozen and at least one is trained.
        """
        fresh, self._fresh = self._fresh, False
        for _, layer in self._layers():
            rank = _frozen(layer, share)
            if fresh and not layer.merged_adapters and layer.effective_rank[CURRENT] == rank:
                continue
            _remove_hooks(layer)
            layer.merged_adapters.clear()
            layer.update_layer(CURRENT, rank, config=self.model.peft_config[CURRENT])

    @torch.no_grad()
    def end_task(self) -> None:
        """Merge what was trained into the weights: W <- W + U_l S_l V_l - U_l0 S_l0 V_l0, in place."""
        self._fresh = False
        for _, layer in self._layers():
            _remove_hooks(layer)
            if not layer.merged_adapters:
                layer.get_base_layer().weight.copy_(_merged(layer))
                # from here on, PEFT leaves the factors out of the forward pass
                layer.merged_adapters.append(CURRENT)

    def frozen(self) -> dict[str, Tensor]:
        """The tensors that restrict how each trained factor may move, by the parameter's name.

        Returns:
            For U_l (out, r): if out > in, U_h (out, k), to which U_l must stay orthogonal; otherwise U_l0
            (out, r), whose columns span everything orthogonal to U_h. For V_l the same holds for rows:
            V_h (k, in) if in > out, otherwise V_l0 (r, in). These are the tensors that PEFT keeps. Empty
            while the layers are closed.
        """
        found: dict[str, Tensor] = {}
        for name, layer in self._layers():
            if layer.merged_adapters:
                continue
            for side, high, low in (
                ("U_low", layer._osf_U_high, layer._osf_U_low_init),
                ("V_low", layer._osf_V_high, layer._osf_V_low_init),
            ):
                found[f"{name}.osf_svd_params.{CURRENT}.{side}"] = (high if CURRENT in high else low)[CURRENT]
        return found

    def learned(self) -> dict[str, nn.Parameter]:
        """The adapted weights W, by their names in the model without factors."""
        return {
            f"{name.removeprefix('base_model.model.')}.weight": layer.get_base_layer().weight
            for name, layer in self._layers()
        }

    def set_learned(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite the adapted weights, and close the layers, whose factors belong to the old weights."""
        self._fresh = False
        super().set_learned(values)
        for _, layer in self._layers():
            _remove_hooks(layer)
            layer.merged_adapters[:] = [CURRENT]

    def save(self, folder: Path) -> None:
        """Write the adapted weights, with all that was learned, in the format of full fine-tuning."""
        values = {
            name: layer.get_base_layer().weight if layer.merged_adapters else _merged(layer)
            for name, (_, layer) in zip(self.learned(), self._layers(), strict=True)
        }
        write_weights(folder, values, self.model, "chosen weights")

    def load(self, folder: Path) -> None:
        """Load saved weights, and close the layers.

        Raises:
            ModelError: The folder holds no such weights, or weights of another model.
        """
        self.set_learned(read_weights(folder, self.learned()))

    def _layers(self) -> Iterator[tuple[str, Any]]:
        from peft.tuners.osf.layer import OSFLayer

        return ((name, m) for name, m in self.model.named_modules() if isinstance(m, OSFLayer))


def _refuse_old_peft() -> None:
    """Refuse a release of PEFT that decomposes weights differently.

    Raises:
        ModelError: PEFT is older than `SINCE`.
    """
    found = version("peft")
    if tuple(map(int, found.split(".")[:2])) < SINCE:
        raise ModelError(
            f"model.adapter.kind: {KIND!r} needs PEFT {'.'.join(map(str, SINCE))} or later, found {found}. "
            "Run: pip install --upgrade peft"
        )


def _adapted(model: nn.Module, names: list[str]) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if any(name == each or name.endswith(f".{each}") for each in names):
            yield name, module


def _refuse_layers(model: nn.Module, names: list[str]) -> None:
    """Refuse weights that cannot be decomposed, or that would lose what is merged into them.

    Raises:
        ModelError: A weight is quantised, is not a linear layer's, is shared with another layer, or is not
            float32.
    """
    where = f"model.adapter.kind: {KIND!r}"
    if getattr(model, "is_quantized", False):
        raise ModelError(
            f"{where} cannot decompose quantised weights. Set model.quantization to 'none', or train "
            "another kind of adapter."
        )
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for p in module.parameters(recurse=False):
            holders.setdefault(id(p), []).append(name)
    for name, module in _adapted(model, names):
        if not isinstance(module, nn.Linear):
            raise ModelError(
                f"model.adapter.target_modules: {name} is a {type(module).__name__}, and {KIND!r} "
                "decomposes the weights of torch's linear layers only. Leave it out."
            )
        others = [other for other in holders[id(module.weight)] if other != name]
        if others:
            raise ModelError(
                f"model.adapter.target_modules: {name} shares its weight with {others[0]}, which would "
                "change with it. Leave it out."
            )
        if module.weight.dtype != torch.float32:
            raise ModelError(
                f"{where} merges small updates into {name}, which is {module.weight.dtype} and would lose "
                "them. Load the model in float32."
            )


def _frozen(layer: Any, share: float) -> int:
    """The number k of frozen directions, rounded down as PEFT does."""
    directions = min(layer.in_features, layer.out_features)
    return max(1, min(int(directions * share), directions - 1))


@torch.no_grad()
def _merged(layer: Any) -> Tensor:
    weight = layer.get_base_layer().weight
    return weight + layer.get_delta_weight(CURRENT).to(weight.dtype)


def _remove_hooks(layer: Any) -> None:
    """Remove PEFT's gradient projection from the factors; `update_layer` puts it on the new ones."""
    for handle in layer.hook_handles:
        handle.remove()
    layer.hook_handles.clear()
