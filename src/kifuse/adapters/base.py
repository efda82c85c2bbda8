"""The interface of every adapter: the part of a model that is trained, and how it changes the forward pass.

A method names the adapter that it trains (`Method.adapter`). Most methods train whatever `model.adapter.kind`
names. A method that changes the forward pass brings its own adapter class, in its own file.

| call | when |
| --- | --- |
| `attach` | once, when the model has been loaded |
| `begin_task` | before the optimizer of a task is made |
| `before_batch` | before the forward pass of each training micro-batch |
| `end_task` | after the last step of a task, before anything is scored or saved |
| `save`, `load` | between tasks |
| `restart` | when the model must return to its state before its first task |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kifuse.adapters.folder import AdapterFolder, read_adapter, refuse_other_tensors, write_own
from kifuse.errors import ModelError

SETTINGS = ("rank", "alpha", "dropout", "target_modules")
"""Settings of `model.adapter` that are saved with an adapter that only kifuse can load."""


class Adapter:
    """Base of every adapter. On its own, this class saves and loads the model's trainable parameters.

    Args:
        settings: The section `model.adapter`: `rank`, `alpha`, `dropout`, `target_modules` and more.
        method: The method that trains the adapter; the adapter may read the method's settings. None without
            one.
    """

    plain_generation: ClassVar[bool] = False
    """Whether the model's own `generate` must be used, because the forward pass depends on the whole input.
    Evaluation then computes every prompt from its first token and keeps no cache of its own."""

    reads: ClassVar[frozenset[str]] = frozenset()
    """Arguments of the forward pass that the adapter takes out. `prompt_mask` `(rows, tokens)` is 1 at the
    prompt tokens of a decoder-only model's input, and 0 at the tokens of the answer and of the padding."""

    told: int | None = None
    """0-based index of the task that the next inputs belong to; None when it is not known. It is set only for
    a method whose class is "task id given"."""

    taken: Counter[int] | None = None
    """For an adapter that decides itself which task an input belongs to: how many inputs it assigned to each
    task, by the task's 0-based index. The code that counts sets it and empties it."""

    model: Any
    """The model that `attach` returned."""

    def __init__(self, settings: Any, method: Any = None) -> None:
        self.settings, self.method, self.model = settings, method, None

    @classmethod
    def refuse(cls, settings: Any, method: str) -> None:
        """Refuse settings that the adapter cannot work with, before a model is loaded.

        Args:
            settings: The section `model.adapter`.
            method: The method's name, for the message.

        Raises:
            ModelError: The adapter cannot work with the settings.
        """
        refuse_start(settings, method)

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Prepare the parameters to train, and freeze everything else.

        Args:
            model: A transformers model; changed in place.
            encoder_decoder: Whether the model is an encoder-decoder model.
            seed: Seed of all random draws.

        Returns:
            The model to train: `model` itself, or a model that wraps it.
        """
        raise NotImplementedError

    def start_from(self, folder: Path) -> None:
        """Load a LoRA adapter that was made elsewhere as the start of the first task.

        Args:
            folder: Folder of a PEFT adapter with the kind, rank, alpha and layers of the settings.

        Raises:
            ModelError: The adapter belongs to another model, or this class of adapter cannot start from one.
        """
        raise ModelError(
            f"model.adapter.from: {type(self).__name__} cannot start from an adapter. Leave the key out."
        )

    def begin_task(self, index: int, seed: int) -> None:
        """Prepare for a task. The model computes the same as before, unless the task adds a part of its own.

        Args:
            index: 0-based position of the task; an adapter that was trained elsewhere before it counts as one
                task.
            seed: Seed of the run.
        """

    def before_batch(self, batch: Mapping[str, Any]) -> None:
        """Look at a training micro-batch before its forward pass, which may not be given the labels.

        Args:
            batch: The batch as the Trainer holds it, with `labels`.
        """

    def end_task(self) -> None:
        """Finish the training of a task; the model must compute the same as before."""

    def frozen(self) -> dict[str, Tensor]:
        """Tensors kept from earlier tasks and not trained, by names of trained parameters.

        Methods use them. Adapters that a method brings itself choose their own names.
        """
        return {}

    def learned(self) -> dict[str, nn.Parameter]:
        """The parameters that hold everything learned on a first task, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def set_learned(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite the parameters that `learned` returns, in place.

        Args:
            values: The new values, by name.
        """
        with torch.no_grad():
            for name, weight in self.learned().items():
                weight.copy_(values[name])

    def restart(self, values: Mapping[str, Tensor]) -> None:
        """Return the model to its state before its first task.

        Args:
            values: The values that `learned` had at that time.
        """
        self.set_learned(values)

    def save(self, folder: Path) -> None:
        """Write what was learned; the folder appears under its name only when it is complete.

        Args:
            folder: Where to write; an existing folder is replaced.
        """
        write_own(folder, self.description(), self.learned(), self.model)

    def description(self) -> dict[str, Any]:
        """The facts that `kifuse.load_adapter` needs to put a saved adapter on a model again; for JSON."""
        kind = type(self.method)
        own = {name: getattr(self.settings, name) for name in SETTINGS if hasattr(self.settings, name)}
        return {
            "adapter": type(self).__name__,
            "settings": own,
            "method": f"{kind.__module__}:{kind.__qualname__}",
            "method_settings": self.method.settings(),
        }

    def load(self, folder: Path) -> None:
        """Load what `save` wrote.

        Args:
            folder: A folder that `save` wrote, for an adapter with the same settings.

        Raises:
            ModelError: The folder holds no adapter, or a different one.
        """
        found, own = self.read_own(folder), self.learned()
        refuse_other_tensors(
            found.weights,
            {key: tuple(t.shape) for key, t in found.tensors.items()},
            {key: tuple(p.shape) for key, p in own.items()},
        )
        self.set_learned(found.tensors)

    def read_own(self, folder: Path) -> AdapterFolder:
        """Read the folder that an adapter of this class saved.

        Raises:
            ModelError: The folder holds no adapter, or an adapter of another class.
        """
        found, name = read_adapter(folder), type(self).__name__
        if found.config.get("adapter") != name:
            held = found.config.get("adapter") or found.config.get("peft_type") or found.config.get("format")
            raise ModelError(f"{folder}: holds an adapter of {held}, expected one of {name}.")
        return found


def refuse_start(settings: Any, method: str) -> None:
    """Refuse to start from a LoRA adapter that was made elsewhere, for adapters that are not LoRA.

    Raises:
        ModelError: The settings name one.
    """
    folder = getattr(settings, "from_", None)
    if folder is not None:
        raise ModelError(
            f"model.adapter.from: {method!r} has no LoRA that could start from the adapter in {folder}. "
            "Merge the adapter into its base model (PEFT's merge_and_unload, then save_pretrained) and "
            "name that folder as the model, or use another method."
        )


def adapter_on(model: nn.Module) -> Adapter | None:
    """The adapter that `attached` put on a model; None where there is none."""
    return vars(model).get("kifuse_adapter")


def attached(adapter: Adapter, model: Any) -> Any:
    """Note on a model which adapter it has, for `adapter_on`; returns the model."""
    adapter.model = model
    vars(model)["kifuse_adapter"] = adapter
    return model
