"""The tokenizer of a model, without the model's weights."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from kifuse.errors import ModelError, did_you_mean
from kifuse.models.bundled import bundled_model
from kifuse.models.catalog import BUNDLED, is_model_folder, model_names
from kifuse.models.model_folder import check_config


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer and the facts that belong to it.

    Attributes:
        tokenizer: The tokenizer, with a padding and an end token.
        encoder_decoder: Whether its model is T5-like (True) or decoder-only (False).
        source: Where it was loaded from: a folder or a hub id.
    """

    tokenizer: Any
    encoder_decoder: bool
    source: str


def load_tokenizer(
    name: str, *, trust_remote_code: bool = False, say: Callable[[str], None] = lambda _: None
) -> LoadedTokenizer:
    """Load the tokenizer of a model.

    Args:
        name: `smollm2-135m`, a hub id, or a folder.
        trust_remote_code: Run code from the hub; only when the user asks.
        say: Called with one line about the present work.

    Raises:
        ModelError: There is no such model, or its tokenizer has no end token.
    """
    from transformers import AutoConfig, AutoTokenizer

    name = checked_name(name)
    source = str(bundled_model(name, say)) if name in BUNDLED else name
    options = {"trust_remote_code": trust_remote_code, "local_files_only": not _can_ask(source)}
    if is_model_folder(source):
        check_config(name, Path(source))
    try:
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # for a damaged folder, libraries raise errors of any kind
        raise ModelError(cannot_load(name, error)) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model.name: the tokenizer of {name!r} has no end token, so an output could not end."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LoadedTokenizer(tokenizer, bool(getattr(config, "is_encoder_decoder", False)), source)


def _can_ask(source: str) -> bool:
    """Whether the hub's address can be resolved; without a network each request to it takes half a minute."""
    from huggingface_hub import constants

    if is_model_folder(source) or getproxies():
        return True
    try:
        return bool(socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None))
    except OSError:
        return False


def checked_name(name: str) -> str:
    """Return a model's name with `~` expanded.

    A name that cannot be a model is refused before the hub is asked, which takes long without a network.

    Raises:
        ModelError: The name cannot be a model.
    """
    name = os.path.expanduser(name)
    if name in BUNDLED or is_model_folder(name):
        return name
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model.name: {name}: no such folder. Expected a folder with a model in it.")
    near = "" if "/" in name else did_you_mean(name, model_names())
    if near:
        raise ModelError(f"model.name: {name!r} is neither a folder nor a model of 'kifuse ls models'.{near}")
    return name


def cannot_load(name: str, error: Exception) -> str:
    """Say that a model cannot be loaded, and why."""
    # for a setting that fails its check, the second line gives the reason
    lines = [line.strip() for line in str(error).strip().splitlines()]
    first = " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__
    first = repr(error) if isinstance(error, KeyError) else first
    if "trust_remote_code" in str(error):
        return (
            f"model.name: {name!r} comes with Python code, which runs only if you allow it. If you trust "
            "its authors: model.trust_remote_code: true in a configuration, trust_remote_code=True for "
            "ContinualLearner.load."
        )
    if is_model_folder(name):
        return f"model.name: {name}: not a model folder that transformers can load: {first}"
    return (
        f"model.name: cannot load {name!r}: {first} Expected a folder, a hub id or one of "
        f"{', '.join(model_names())}."
    )
