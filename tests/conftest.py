from __future__ import annotations

import gc
import logging
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

# no deadlines, since the machine may be slow
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a file to one process, so that their shared fixtures are made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a newer release than is installed; other tests check that kifuse refuses there."""
    for item in items:
        if reason := lacking(item.nodeid):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Undo what a command with --quiet does to the loggers of its process."""
    own = [logging.getLogger(name) for name in ("kifuse", "transformers")]
    handlers = [list(logger.handlers) for logger in own]
    levels = [(each, each.level) for logger in (*own, logging.root) for each in logger.handlers]
    yield
    for logger, before in zip(own, handlers, strict=True):
        logger.handlers[:] = before
    for handler, level in levels:
        handler.setLevel(level)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of the published benchmark data, which does not belong to the project."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("KIFUSE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no published benchmark data: set KIFUSE_SHARED_DATA or put it at {default}")
    return folder


@pytest.fixture
def no_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the bundled model unavailable, as without a network: tests download nothing."""

    def fail(name: str, say: object = None) -> Path:
        raise ModelError(f"cannot fetch model {name!r}: no network here.")

    monkeypatch.setattr("kifuse.models.tokenizer.bundled_model", fail)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer, which can encode and decode any text."""
    return build_tokenizer("bytes")


@pytest.fixture
def tiny_llama(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return build_llama(len(tiny_tokenizer))


@pytest.fixture
def tiny_t5(tiny_tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    return build_t5(len(tiny_tokenizer))


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Make training of tiny models quick, and add numbers always in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # every Trainer collects garbage at its start, which takes longer than the training here
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        # nothing here has to survive a loss of power, and waiting for the disk takes even longer
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(jinja2.Environment, "compile", compile_once)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder_llama(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Write a decoder-only model and its tokenizer to disk, as a run loads them."""
    return _saved(build_llama(len(tiny_tokenizer)), tiny_tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_folder_t5(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write an encoder-decoder model without dropout and its tokenizer to disk."""
    model = build_t5(len(tiny_tokenizer))
    model.config.dropout_rate = 0.0
    return _saved(model, tiny_tokenizer, tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="session")
def tiny_stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three tasks of twelve training examples to disk."""
    return write_stream(tmp_path_factory.mktemp("stream"))


def _saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    if model.generation_config is not None:
        # as in a chat model: one token ends a text and one ends a turn
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["</s>", "<|end|>"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
