from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from hypothesis import settings
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
)

from kifuse.errors import ModelError
from tests.quick import compile_once
from tests.releases import lacking
from tests.runs import write_stream
from tests.tiny import build_llama, build_t5, build_tokenizer

# the machine may be slow
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a file to one process, so that what they share is made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a newer release than is installed; other tests say that it is refused there."""
    for item in items:
        if reason := lacking(item.nodeid):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The published benchmark data, which is no part of the project."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("KIFUSE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no published benchmark data: set KIFUSE_SHARED_DATA or put it at {default}")
    return folder


@pytest.fixture
def no_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the bundled model impossible to have, as without a network: tests fetch nothing."""

    def fail(name: str, say: object = None) -> Path:
        raise ModelError(f"cannot fetch model {name!r}: no network here.")

    monkeypatch.setattr("kifuse.models.tokenizer.bundled_model", fail)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text round-trips."""
    return build_tokenizer("bytes")


@pytest.fixture
def tiny_llama(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return build_llama(len(tiny_tokenizer))


@pytest.fixture
def tiny_t5(tiny_tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    return build_t5(len(tiny_tokenizer))


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Makes training of tiny models quick, and the order of its sums always the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # every Trainer collects garbage as it starts, which takes longer than the training here
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        # nothing here survives a loss of power, and waiting for the disk takes longer still
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(jinja2.Environment, "compile", compile_once)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder_llama(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A decoder-only model and its tokenizer on disk, as a run loads them."""
    return _saved(build_llama(len(tiny_tokenizer)), tiny_tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_folder_t5(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """An encoder-decoder model without dropout, and its tokenizer, on disk."""
    model = build_t5(len(tiny_tokenizer))
    model.config.dropout_rate = 0.0
    return _saved(model, tiny_tokenizer, tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="session")
def tiny_stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of twelve training examples on disk."""
    return write_stream(tmp_path_factory.mktemp("stream"))


def _saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    if model.generation_config is not None:
        # as of a chat model: at the end of a text and at the end of a turn
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["</s>", "<|end|>"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
