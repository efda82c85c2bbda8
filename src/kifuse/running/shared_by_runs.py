"""What runs in one process share: the base model, the tasks and their tokens. Results stay bit-identical.

A base model is used again only if it is, bit for bit, what was loaded: its adapter is taken off, its settings
are put back, and checksums of all its tensors are compared. Otherwise the next run loads it again. It also
does so after a run that failed, and if a run changes the base itself: full fine-tuning, merged subspaces
(`osf`), quantised weights, and frozen weights that are kept in bf16 or fp16.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kifuse.config import DataConfig, RunConfig
from kifuse.models.loading import Backbone
from kifuse.running.run_start import open_backbone
from kifuse.streams import open_stream
from kifuse.tasks.task import TaskStream
from kifuse.tasks.token_cache import TokenCache

_ROW = 1 << 16
"""How many numbers go into one checksum."""


class Shared:
    """Hands out what the next run may use again; for `run(..., shared=...)`, one run after another.

    Args:
        keeps: Whether there may be a next run; if not, nothing is kept.
        token_folder: Where token ids are kept for runs in other processes; None: each run keeps its own.
    """

    def __init__(self, *, keeps: bool = True, token_folder: Path | None = None) -> None:
        self.keeps, self.token_folder = keeps, token_folder
        self.tokens = TokenCache() if keeps else None
        self._model: _Kept | None = None
        self._lent: _Kept | None = None
        self._used = False
        self._stream: tuple[str, TaskStream] | None = None

    def stream(self, data: DataConfig, seed: int) -> TaskStream:
        """The tasks of a run; those of the last run are kept.

        Raises:
            DataError: The data is missing or wrong.
        """
        key = f"{seed} {data.model_dump_json()}"
        if self._stream is None or self._stream[0] != key:
            self._stream = None  # so that two are never held at once
            self._stream = (key, open_stream(data, seed))
        return self._stream[1]

    def backbone(self, config: RunConfig, say: Callable[[str], None]) -> Backbone:
        """The model that a configuration names, as it is when it is loaded; it is lent until `give_back`.

        Raises:
            ModelError: It cannot be loaded.
        """
        kept, self._model = self._model, None
        if kept is not None and kept.name == _name(config):
            self._lent = kept
            return kept.backbone
        kept = self._lent = None
        if self._used:
            gc.collect()  # a run that ended leaves cycles, which would hold its model beside the next one
        self._used = True
        backbone = open_backbone(config, say)
        if self.keeps and _stays(config, backbone):
            self._lent = _Kept(_name(config), backbone, _Seal.of(backbone.model))
        return backbone

    def give_back(self, backbone: Backbone, model: Any) -> None:
        """Keep a model for the next run if it is unchanged.

        Args:
            backbone: What `backbone` gave.
            model: What the run made of it: the model with its adapter.
        """
        lent, self._lent = self._lent, None
        if lent is None or lent.backbone is not backbone or not hasattr(model, "unload"):
            return
        base = model.unload()
        if base is backbone.model and lent.seal.restored(base):
            self._model = lent


def _stays(config: RunConfig, backbone: Backbone) -> bool:
    """Whether a run leaves the base model's tensors alone."""
    return (
        config.model.adapter.kind not in ("full", "osf")
        and config.model.quantization == "none"
        and backbone.precision == "fp32"
    )


def _name(config: RunConfig) -> str:
    """All settings that decide which model is loaded, as a text; those of the adapter do not."""
    return config.model.model_dump_json(exclude={"adapter"})


@dataclass
class _Kept:
    """A loaded model, and what it was when it was loaded."""

    name: str
    backbone: Backbone
    seal: _Seal


@dataclass
class _Seal:
    """What a model was: its tensors by checksum, its modules by class, its settings.

    Attributes:
        tensors: Name, type and checksum of every parameter and buffer.
        modules: Name and class of every module, and how many hooks it has.
        settings: Every configuration object of the model with its values.
    """

    tensors: list[tuple[str, str, str]]
    modules: list[tuple[str, type, int]]
    settings: list[tuple[Any, dict[str, Any], Any]]

    @classmethod
    def of(cls, model: Any) -> _Seal:
        """Seal a model that was just loaded."""
        holders = [model, *model.modules()]
        found = [getattr(m, name, None) for m in holders for name in ("config", "generation_config")]
        objects = {id(each): each for each in found if each is not None}.values()
        settings = [(each, dict(vars(each)), each.to_dict()) for each in objects]
        return cls(_checksums(model), _modules(model), settings)

    def restored(self, model: Any) -> bool:
        """Put a model's settings back, and tell whether everything else is as it was."""
        for each, values, _ in self.settings:
            vars(each).clear()
            vars(each).update(values)
        model.eval()
        model.zero_grad(set_to_none=True)
        same_settings = all(each.to_dict() == plain for each, _, plain in self.settings)
        return same_settings and self.modules == _modules(model) and self.tensors == _checksums(model)


def _modules(model: Any) -> list[tuple[str, type, int]]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (name, type(m), sum(len(getattr(m, kind, ())) for kind in hooks)) for name, m in model.named_modules()
    ]


def _checksums(model: Any) -> list[tuple[str, str, str]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, str(tensor.dtype), _checksum(tensor)) for name, tensor in tensors]


@torch.no_grad()
def _checksum(tensor: Tensor) -> str:
    """A hash of a tensor's shape and of sums over its bits; the tensor is read once, on its own device."""
    flat = tensor.detach().contiguous().view(-1)
    words = flat.view(torch.int32) if flat.dtype == torch.float32 else flat.view(torch.uint8)
    whole = len(words) // _ROW * _ROW
    sums = words[:whole].view(-1, _ROW).sum(dim=1, dtype=torch.int64)
    rest = words[whole:].to(torch.int64)
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode("ascii"))
    digest.update(torch.cat([sums, rest]).cpu().numpy().tobytes())
    return digest.hexdigest()
