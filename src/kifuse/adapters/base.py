"""What is trained of a model, and how it meets the forward pass: the interface of every adapter.

A method says which adapter it trains (`Method.adapter`). Most train whatever `model.adapter.kind` names; one
that changes the forward pass brings an adapter class of its own, in its own file.

| call | when |
| --- | --- |
| `attach` | once, when the model has been loaded |
| `begin_task` | before the optimizer of a task is made |
| `before_batch` | before the forward pass of each micro-batch of a training |
| `end_task` | after its last step, before anything is scored or saved |
| `save`, `load` | between tasks |
| `restart` | the model is to be as it was before its first task |
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
"""Settings of `model.adapter` that are saved with an adapter that only kifuse knows."""


class Adapter:
    """Base of every adapter. As it stands it keeps the model's trainable parameters.

    Args:
        settings: The section `model.adapter`: `rank`, `alpha`, `dropout`, `target_modules` and more.
        method: The method that trains it, whose settings an adapter of its own may read; None without one.
    """

    plain_generation: ClassVar[bool] = False
    """Whether generation is left to the model's own `generate`, since the forward pass depends on the whole
    input. Evaluation then computes every prompt from its first token, and keeps no cache of its own."""

    reads: ClassVar[frozenset[str]] = frozenset()
    """Arguments of the forward pass that the adapter takes out: `prompt_mask` `(rows, tokens)` is 1 at the
    tokens of a decoder-only model's input that are asked, 0 at those of the answer and of padding."""

    told: int | None = None
    """0-based index of the task that the inputs to come are of; None: not known. Only ever set for a method
    whose class is "task id given"."""

    taken: Counter[int] | None = None
    """Of an adapter that finds out itself which task an input is of: how many inputs were read as of each, by
    its 0-based index. Whoever counts empties it."""

    model: Any
    """What `attach` gave."""

    def __init__(self, settings: Any, method: Any = None) -> None:
        self.settings, self.method, self.model = settings, method, None

    @classmethod
    def refuse(cls, settings: Any, method: str) -> None:
        """Refuse settings that the adapter cannot work with, before a model is loaded.

        Args:
            settings: The section `model.adapter`.
            method: The method's name, for the message.

        Raises:
            ModelError: It cannot.
        """
        refuse_start(settings, method)

    def attach(self, model: Any, *, encoder_decoder: bool, seed: int) -> Any:
        """Make ready what is trained, and freeze everything else.

        Args:
            model: A transformers model; changed in place.
            encoder_decoder: The kind of model.
            seed: Of everything that is drawn.

        Returns:
            The model to train, which is `model` itself or wraps it.
        """
        raise NotImplementedError

    def start_from(self, folder: Path) -> None:
        """Take a LoRA adapter that was made elsewhere as what was learned before the first task.

        Args:
            folder: Of a PEFT adapter with the kind, rank, alpha and layers of the settings.

        Raises:
            ModelError: It is of another model; or this class of adapter cannot.
        """
        raise ModelError(f"model.adapter.from: {type(self).__name__} cannot begin from an adapter.")

    def begin_task(self, index: int, seed: int) -> None:
        """Get ready for a task; what the model computes stays as it is, or a task's own part comes into it.

        Args:
            index: 0-based position of the task; what was learned elsewhere before it counts as one.
            seed: Of the run.
        """

    def before_batch(self, batch: Mapping[str, Any]) -> None:
        """See a micro-batch of a training before its forward pass, which may not be given the labels.

        Args:
            batch: As the Trainer has it, with `labels`.
        """

    def end_task(self) -> None:
        """Make final what was trained; what the model computes must stay as it is."""

    def frozen(self) -> dict[str, Tensor]:
        """What is kept of earlier tasks and not trained, by names of trained parameters; for methods.

        Adapters that a method brings itself give it names of its own.
        """
        return {}

    def learned(self) -> dict[str, nn.Parameter]:
        """What holds all that was learned on a first task, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def set_learned(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite what `learned` names, in place.

        Args:
            values: By name.
        """
        with torch.no_grad():
            for name, weight in self.learned().items():
                weight.copy_(values[name])

    def restart(self, values: Mapping[str, Tensor]) -> None:
        """Make the model what it was before its first task.

        Args:
            values: What `learned` named then.
        """
        self.set_learned(values)

    def save(self, folder: Path) -> None:
        """Write what was learned; the folder appears under its name only when complete.

        Args:
            folder: Where; replaced if it is there.
        """
        write_own(folder, self.description(), self.learned(), self.model)

    def description(self) -> dict[str, Any]:
        """What `kifuse.load_adapter` needs to put a saved adapter on a model again; for JSON."""
        kind = type(self.method)
        own = {name: getattr(self.settings, name) for name in SETTINGS if hasattr(self.settings, name)}
        return {
            "adapter": type(self).__name__,
            "settings": own,
            "method": f"{kind.__module__}:{kind.__qualname__}",
            "method_settings": self.method.settings(),
        }

    def load(self, folder: Path) -> None:
        """Put what was saved back.

        Args:
            folder: What `save` wrote, of an adapter with the same settings.

        Raises:
            ModelError: The folder holds no adapter, or another one.
        """
        found, own = self.read_own(folder), self.learned()
        refuse_other_tensors(
            found.weights,
            {key: tuple(t.shape) for key, t in found.tensors.items()},
            {key: tuple(p.shape) for key, p in own.items()},
        )
        self.set_learned(found.tensors)

    def read_own(self, folder: Path) -> AdapterFolder:
        """Read what an adapter of this class saved.

        Raises:
            ModelError: The folder holds no adapter, or one of another class.
        """
        found, name = read_adapter(folder), type(self).__name__
        if found.config.get("adapter") != name:
            held = found.config.get("adapter") or found.config.get("peft_type") or found.config.get("format")
            raise ModelError(f"{folder}: holds an adapter of {held}, expected one of {name}.")
        return found


def refuse_start(settings: Any, method: str) -> None:
    """Refuse to begin from a LoRA adapter that was made elsewhere, for what is trained otherwise.

    Raises:
        ModelError: The settings name one.
    """
    folder = getattr(settings, "from_", None)
    if folder is not None:
        raise ModelError(
            f"model.adapter.from: {method!r} trains no LoRA that could go on from the adapter in {folder}. "
            "Merge it into its base (PEFT's merge_and_unload, then save_pretrained) and name that folder as "
            "the model, or take another method."
        )


def adapter_on(model: nn.Module) -> Adapter | None:
    """The adapter that `attached` put on a model; None where there is none."""
    return vars(model).get("kifuse_adapter")


def attached(adapter: Adapter, model: Any) -> Any:
    """Remember on a model which adapter it has, for `adapter_on`; returns the model."""
    adapter.model = model
    vars(model)["kifuse_adapter"] = adapter
    return model
