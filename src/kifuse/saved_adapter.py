"""Puts a saved adapter on a model outside of any run, so that the learned model can be served."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kifuse.adapters.folder import CONFIG, is_full, read_adapter, read_config, refuse_sizes
from kifuse.adapters.foreign import put_on
from kifuse.adapters.full import read_weights
from kifuse.adapters.kinds import new_adapter
from kifuse.errors import ModelError
from kifuse.method_catalog import METHODS
from kifuse.registry import OWN, build_method


def load_adapter(model: Any, folder: str | Path, *, task: int | None = None) -> Any:
    """Put a saved adapter on a model.

    Args:
        model: A transformers model like the adapter's base; changed in place.
        folder: `adapters/after-<k>` of a run or a learner, `after-<k>/adapter` of a callback's `state_dir`,
            or a folder that a Trainer with a callback saved. A standard PEFT adapter is loaded as well; saved
            weights of the model itself replace the model's weights.
        task: For a method whose class is "task id given": the number, from 1, of the learned task whose
            inputs the model shall answer; set `adapter_on(model).told` to choose another task later, from 0.

    Returns:
        The model, which answers with what was learned.

    Raises:
        ModelError: The folder holds no adapter, an adapter of another model, or one of a method that is not
            registered, because no code is run just because a folder names it; or its method cannot be told a
            task.
    """
    place = Path(os.path.expanduser(folder))
    config = read_config(place)
    if task is not None and (config.get("peft_type") or is_full(config)):
        raise ModelError(f"task: found {task}, expected none: {place} holds one adapter for all tasks.")
    if config.get("peft_type"):
        return put_on(model, place, config)
    if is_full(config):
        own = dict(model.named_parameters())
        saved = read_adapter(place).tensors
        values = read_weights(place, {name: p for name, p in own.items() if name in saved})
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)
        return model.eval()
    wanted = config.get("method")
    name = next((name for name, entry in METHODS.items() if entry.target == wanted), None)
    if name is None:
        raise ModelError(
            f"{place}: was learned by the method {wanted!r}, which is not known here. Import its file and "
            "call kifuse.register first."
        )
    method_settings, settings = (_section(place, config, key) for key in ("method_settings", "settings"))
    if wanted not in OWN:  # the meaning of the settings of a user's own method is not known here
        sizes = {**method_settings, "rank": settings.get("rank")}
        refuse_sizes(place / CONFIG, sizes, [t.shape for t in read_adapter(place).tensors.values()])
    encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    try:
        method = build_method(name, method_settings)
        adapter = new_adapter(SimpleNamespace(**settings), method)
        made = adapter.attach(model, encoder_decoder=encoder_decoder, seed=0)
        adapter.load(place)
    except ModelError:
        raise
    except Exception as error:  # any kind of error, raised at malformed settings
        raise ModelError(f"{place}: cannot be put on this model: {type(error).__name__}: {error}") from error
    if task is not None:
        if method.data_class != "task id given" or task < 1:
            raise ModelError(
                f"task: found {task}, expected a number from 1 for a method whose class is 'task id given'; "
                f"{name!r} with these settings is {method.data_class!r}."
            )
        adapter.told = task - 1
    return made.eval()


def _section(folder: Path, config: dict[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key)
    if not isinstance(found, dict):
        raise ModelError(f"{folder / CONFIG}: {key}: found {found!r}, expected keys and values.")
    return found
