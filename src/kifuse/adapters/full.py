"""Full fine-tuning: all or chosen weights of the model itself are trained, and saved as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kifuse.adapters.base import Adapter, attached
from kifuse.adapters.folder import (
    FULL_FORMAT,
    VERSION,
    WEIGHTS,
    base_name,
    read_adapter,
    refuse_other_tensors,
    write_files,
)
from kifuse.adapters.places import target_modules
from kifuse.errors import ModelError
from kifuse.io.whole_folders import replace_folder


class Full(Adapter):
    """Trains the model's own weights: all of them, or those of `target_modules`.

    See `kifuse.adapters.folder` for how to load them elsewhere.
    """

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Mark the weights to train, and return the model itself, since nothing wraps it."""
        chosen = self.settings.target_modules
        return attached(self, train_weights(model, target_modules(model, chosen) if chosen else None))

    def save(self, folder: Path) -> None:
        """Write the trained weights; tied weights are written once."""
        everything = all(p.requires_grad for p in self.model.parameters())
        write_weights(folder, self.learned(), self.model, "all weights" if everything else "chosen weights")

    def load(self, folder: Path) -> None:
        """Load saved weights in place, so that tied weights stay tied."""
        self.set_learned(read_weights(folder, self.learned()))


def train_weights(model: nn.Module, chosen: Sequence[str] | None) -> nn.Module:
    """Mark the weights that full fine-tuning trains, and freeze everything else.

    Args:
        model: A transformers model; changed in place.
        chosen: Names of modules, whole names or their ends, whose weights are all trained; None trains the
            whole model. A weight that two modules share is trained if either module is chosen.

    Returns:
        The model itself: full fine-tuning wraps nothing.

    Raises:
        ModelError: The weights are quantised, so that no gradient reaches them, or the chosen modules have no
            weights.
    """
    if getattr(model, "is_quantized", False):
        raise ModelError(
            "model.adapter.kind: 'full' cannot train quantised weights. Set model.quantization to 'none', "
            "or train another kind of adapter."
        )
    model.requires_grad_(chosen is None)
    for name, module in model.named_modules() if chosen else ():
        if any(name == each or name.endswith(f".{each}") for each in chosen or ()):
            module.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(f"model.adapter.target_modules: {', '.join(chosen or ())} hold no weights to train.")
    return model


def write_weights(folder: Path, tensors: Mapping[str, Tensor], model: nn.Module, trained: str) -> None:
    """Write weights of a model under their names in it.

    Args:
        folder: Where to write; an existing folder is replaced.
        tensors: The weights by name.
        model: The model; it tells the name of its base.
        trained: Which weights these are, in words.
    """
    config: dict[str, Any] = {
        "format": FULL_FORMAT,
        "version": VERSION,
        "base_model_name_or_path": base_name(model),
        "trained": trained,
        "tensors": len(tensors),
        "load_with": f"model.load_state_dict(safetensors.torch.load_file({WEIGHTS!r}), strict=False)",
    }

    kept = {name: tensor.detach() for name, tensor in tensors.items()}
    replace_folder(folder, lambda partial: write_files(partial, config, kept))


def read_weights(folder: Path, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read saved weights, to be loaded into a model.

    Args:
        folder: A folder that `write_weights` wrote.
        own: The model's own weights, by name.

    Returns:
        The saved weights by name, with the shapes of the model's own.

    Raises:
        ModelError: The folder holds no such weights, or weights of another model.
    """
    saved = read_adapter(folder)
    if not saved.full:
        raise ModelError(
            f"{folder}: holds an adapter ({saved.config['peft_type']}), expected weights of full fine-tuning."
        )
    refuse_other_tensors(
        folder / WEIGHTS,
        {name: tuple(t.shape) for name, t in saved.tensors.items()},
        {name: tuple(p.shape) for name, p in own.items()},
    )
    return saved.tensors
