from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, T5ForConditionalGeneration

from tests.tiny import build_llama, build_t5, build_tokenizer


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The published benchmark data, which is no part of the project."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("KIFUSE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no published benchmark data: set KIFUSE_SHARED_DATA or put it at {default}")
    return folder


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
