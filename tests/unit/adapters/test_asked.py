"""Adapters that read the whole prompt: `generate` reads it once and goes on from its cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse.config import AdapterConfig
from kifuse.methods.base import Method
from kifuse.methods.epi import EPI
from kifuse.methods.l2p import L2P
from kifuse.methods.lfpt5 import LFPT5
from kifuse.methods.mocl import MoCL
from kifuse.methods.progprompt import ProgPrompt
from kifuse.methods.sapt import SAPT
from tests.adapters import add_adapter
from tests.padded_rows import ROWS, padded
from tests.tiny import build_llama

METHODS: dict[str, Method] = {
    "l2p": L2P(pool=5, length=2, picked=3),
    "lfpt5": LFPT5(length=3),
    "progprompt": ProgPrompt(length=2),
    "epi": EPI(length=2),
    "mocl, prefix": MoCL(module="prefix", length=2),
    "mocl, lora": MoCL(module="lora"),
    "sapt": SAPT(bottleneck=4),
}


def made(method: Method) -> Any:
    """A model with an adapter that changes what it says."""
    model = add_adapter(build_llama(64), AdapterConfig(), encoder_decoder=False, seed=3, method=method)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=draw), alpha=0.3)
    return model.eval()


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_generate_reads_a_prompt_once_and_says_the_same(name: str, beams: int):
    model, widths = made(METHODS[name]), []
    model.get_input_embeddings().register_forward_hook(lambda _, args, out: widths.append(args[0].shape[1]))
    inputs = padded(ROWS, left=True)

    def answers(*, use_cache: bool) -> Tensor:
        widths.clear()
        plain = {"max_new_tokens": 6, "num_beams": beams, "pad_token_id": 0, "eos_token_id": None}
        return model.generate(**inputs, **plain, use_cache=use_cache)

    whole, again = inputs["input_ids"].shape[1], answers(use_cache=False)
    assert widths[-1] == whole + 5
    assert torch.equal(answers(use_cache=True), again)
    assert set(widths[-5:]) == {1}
    assert len(set(again[:, whole:].flatten().tolist())) > 1  # not one token all over
