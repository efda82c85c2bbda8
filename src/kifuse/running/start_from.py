"""Begins a run or a learner from an adapter made elsewhere: copies it, and puts its hashes on record."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kifuse.adapters.base import Adapter
from kifuse.adapters.elsewhere import FILES
from kifuse.adapters.folder import read_config
from kifuse.config import RunConfig
from kifuse.config.start_from import own_copy, start_of
from kifuse.errors import ModelError, RunError
from kifuse.io.storage import sha256_file
from kifuse.io.whole_folders import check_file, replace_folder
from kifuse.models.loading import Backbone, load_backbone
from kifuse.record.run_record import FILE, RunRecord

KEY = "adapter"
"""Key in a record's `model` for the adapter that the run began from; `files` are SHA-256 by file name."""


def earlier_than_first(config: RunConfig) -> int:
    """How many tasks the adapter that a run begins from stands for: 1, or 0 without one."""
    return int(config.model.adapter.from_ is not None)


def refuse_another_start(config: RunConfig, record: RunRecord) -> bool:
    """Make sure that the adapter that is named is the one that a run began from.

    Returns:
        Whether it is there and is that one, wherever it lies now.

    Raises:
        ModelError: It is another adapter.
        RunError: The copy of it is damaged.
    """
    folder, known = config.model.adapter.from_, record.model.get(KEY, {}).get("files")
    if folder is None or known is None or not folder.is_dir():
        return False
    for name in FILES:
        if folder == own_copy(config.output):
            check_file(folder / name, known[name], FILE)
        elif not (folder / name).is_file() or sha256_file(folder / name) != known[name]:
            raise ModelError(
                f"model.adapter.from: {folder / name} is not the file that {config.output} started from "
                "(SHA-256 differs). Name that adapter, or use a new output folder."
            )
    return True


def attach(
    adapter: Adapter, backbone: Backbone, config: RunConfig, record: RunRecord, say: Callable[[str], None]
) -> Any:
    """Put an adapter on a model, with what was learned elsewhere in it.

    Args:
        adapter: The adapter, which is not on a model yet.
        backbone: The model.
        config: Configuration of the run or learner.
        record: Its record; the adapter's hashes go into it.
        say: Called with lines about the adapter that it begins from.

    Returns:
        The model to train.

    Raises:
        ModelError: The adapter is of another model.
        RunError: The copy of it is damaged.
    """
    model = adapter.attach(
        backbone.model, encoder_decoder=backbone.encoder_decoder, seed=config.training.seed
    )
    folder = start_of(config)
    if folder is None:
        return model
    known = record.model.get(KEY, {}).get("files")
    for name in FILES if known and folder == own_copy(config.output) else ():
        check_file(folder / name, known[name], FILE)
    adapter.start_from(folder)
    if known is None:
        record.model[KEY] = {"files": {name: sha256_file(folder / name) for name in FILES}}
        say(
            f"starts from the adapter in {config.model.adapter.from_}: {config.model.adapter.summary}. It "
            "counts as what was learned before the first task. Its training data is not known here, so a "
            "method that needs examples or importance of earlier tasks has only those of the tasks learned "
            "here."
        )
        made_for, name = read_config(folder).get("base_model_name_or_path"), config.model.name
        if made_for and Path(made_for).name.lower() != Path(name).name.lower():
            say(f"it was made for {made_for} and is used with {name}")
    return model


def keep_start(config: RunConfig) -> None:
    """Copy the adapter that a run begins from into its folder, unless it is there; save the record first.

    Raises:
        OSError: It cannot be written.
    """
    folder, copy = config.model.adapter.from_, own_copy(config.output)
    if folder is None or copy.is_dir():
        return

    def fill(partial: Path) -> None:
        for name in FILES:
            shutil.copyfile(folder / name, partial / name)

    replace_folder(copy, fill)


def weights_as_loaded(config: RunConfig, record: RunRecord, names: Iterable[str]) -> dict[str, Tensor]:
    """Load the model's own weights as they were before any training from its files: no copy is kept.

    Args:
        config: The run's configuration.
        record: The run's record.
        names: Names of the weights.

    Raises:
        RunError: The model was given as an object, or its files do not hold the trained weights.
    """
    model = config.model
    if not record.model.get("given"):
        trust, precision = model.trust_remote_code, model.precision
        fresh = load_backbone(model.name, precision=precision, trust_remote_code=trust).model.state_dict()
        if fresh.keys() >= set(names):
            return {name: fresh[name] for name in names}
    raise RunError(
        f"{config.output}: most weights are trained, and the state before the first task is not kept. Make "
        "a new learner in another folder to start there."
    )


def small_start(model: nn.Module, learned: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Copy the tensors that will be learned, before any training; None if they are most of the model."""
    if 2 * sum(p.numel() for p in learned.values()) > sum(p.numel() for p in model.parameters()):
        return None
    return {name: p.detach().cpu().clone() for name, p in learned.items()}
