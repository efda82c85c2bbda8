"""L2P: which prompts an input picks, what they do to the forward pass, and what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.methods.l2p import L2P, Pool, PromptPool
from kifuse.methods.parameters import Parameters
from tests.adapters import add_adapter, on
from tests.padded_rows import ROWS, padded
from tests.reference import l2p
from tests.tiny import build_llama, build_t5
from tests.two_tasks import encoded, learn, load

pytestmark = pytest.mark.usefixtures("quick")
METHOD = L2P(pool=5, length=2, picked=3)
BUILD = {"llama": build_llama, "t5": build_t5}
FAMILIES = pytest.mark.parametrize("family", ["llama", "t5"])


def made(family: str) -> Any:
    """A model that has learned something in its pool."""
    model = add_adapter(
        BUILD[family](64), AdapterConfig(), encoder_decoder=family == "t5", seed=3, method=METHOD
    )
    with torch.no_grad():
        for p in model.prompt_pool.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.3)
    return model.eval()


def pool_of(model: Any) -> PromptPool:
    found = on(model)
    assert isinstance(found, PromptPool)
    return found


@FAMILIES
def test_a_row_picks_what_the_definition_says_whatever_it_is_padded_to(family: str):
    model, more = made(family), {"decoder_input_ids": torch.tensor([[1, 2]] * 3)} if family == "t5" else {}
    pool: Pool = model.prompt_pool
    rows = [model.get_input_embeddings()(torch.tensor(row)).detach() for row in ROWS]
    _, _, expected = l2p.picked(rows, pool.prompts.detach(), pool.keys.detach(), 3)
    for width in (5, 9):
        model(**padded(ROWS, left=family == "llama", to=width), **more)
        torch.testing.assert_close(pool_of(model).alike, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_output_is_that_of_the_frozen_model_behind_the_prompts():
    model, plain = made("llama"), build_llama(64).eval()
    pool: Pool = model.prompt_pool
    embed = plain.get_input_embeddings()
    rows = [embed(torch.tensor(row)).detach() for row in ROWS]
    _, before, _ = l2p.picked(rows, pool.prompts.detach(), pool.keys.detach(), 3)
    mask = padded(ROWS, left=True)["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    found = model(**padded(ROWS, left=True), position_ids=places).logits
    for row, prompt, embedded, got in zip(ROWS, before, rows, found, strict=True):
        wanted = plain(inputs_embeds=torch.cat([prompt, embedded])[None]).logits[0, -len(row) :]
        torch.testing.assert_close(got[-len(row) :], wanted, rtol=1e-4, atol=1e-5)


def test_an_answer_takes_no_part_in_the_picking():
    model = made("llama")
    ids = torch.tensor([[5, 9, 13, 7, 30]])
    labels = torch.tensor([[-100, -100, -100, 7, 30]])
    model(input_ids=ids[:, :3])
    alone = pool_of(model).alike.clone()
    for given in (labels, labels[:, -3:]):
        model(input_ids=ids, labels=None)
        assert not torch.allclose(pool_of(model).alike, alone)
        pool_of(model)._find_own(model, (), {"input_ids": ids, "labels": given})
        model.base_model(input_ids=ids)
        torch.testing.assert_close(pool_of(model).alike, alone)


def test_an_answer_takes_no_part_in_training_either(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The Trainer takes the labels away before the model reads, so that they cannot tell the answer."""
    seen: list[Tensor] = []

    def vectors(self: PromptPool, ids: Tensor, embedded: Tensor, asked: Tensor) -> Tensor:
        seen.extend(row[kept] for row, kept in zip(ids, asked, strict=True))
        return original(self, ids, embedded, asked)

    original = PromptPool.vectors
    monkeypatch.setattr(PromptPool, "vectors", vectors)
    backbone = load(tiny_folder_llama)
    learn(backbone, tiny_stream, METHOD, tmp_path, epochs=1)
    asked = {tuple(e.input_ids) for part in encoded(backbone, tiny_stream)[:2] for e in part}
    assert {tuple(row.tolist()) for row in seen} == asked


@FAMILIES
def test_only_what_was_picked_and_nothing_of_the_model_gets_a_gradient(family: str):
    model = made(family)
    ids = torch.tensor([[5, 9, 13, 7, 30]])
    out = model(input_ids=ids, labels=ids if family == "t5" else torch.tensor([[-100, -100, 13, 7, 30]]))
    (out.loss - pool_of(model).alike.mean()).backward()
    moved = model.prompt_pool.prompts.grad.abs().sum(dim=(1, 2)) > 0
    assert int(moved.sum()) == 3
    assert torch.equal(moved, model.prompt_pool.keys.grad.abs().sum(dim=1) > 0)
    assert [n for n, p in model.named_parameters() if p.grad is not None] == [
        "prompt_pool.prompts",
        "prompt_pool.keys",
    ]


@FAMILIES
def test_generating_picks_once_by_the_prompt(family: str):
    from kifuse.answering.generation import greedy_generate
    from tests.tiny import build_tokenizer

    tokenizer = build_tokenizer("bytes")
    model = add_adapter(
        BUILD[family](len(tokenizer)), AdapterConfig(), encoder_decoder=family == "t5", seed=3, method=METHOD
    ).eval()
    prompts = [tokenizer(text)["input_ids"] for text in ("one harbour", "two", "one harbour more", "six")]
    together = greedy_generate(
        model, tokenizer, prompts, encoder_decoder=family == "t5", max_new_tokens=5, batch_tokens=64
    )
    assert together == [by_hand(model, tokenizer, prompt, family == "t5", 5) for prompt in prompts]


def by_hand(model: Any, tokenizer: Any, prompt: list[int], encoder_decoder: bool, count: int) -> str:
    """The likeliest token, again and again, from the whole input each time."""
    ids, ends = torch.tensor([prompt]), {tokenizer.eos_token_id, model.generation_config.eos_token_id}
    found = [model.generation_config.decoder_start_token_id] if encoder_decoder else []
    begin = len(found)
    for _ in range(count):
        if encoder_decoder:
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([found])).logits
        else:
            # the answer so far as targets, which take no part in the picking
            whole = torch.tensor([prompt + found])
            labels = torch.tensor([[-100] * len(prompt) + found])
            logits = model(input_ids=whole, labels=labels).logits
        token = int(logits[0, -1].argmax())
        if token in ends:
            break
        found.append(token)
    return tokenizer.decode(found[begin:], skip_special_tokens=True).strip()


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # the test's own word
def test_a_cache_that_would_be_wrong_is_refused():
    with pytest.raises(ModelError, match="call the model without a cache, or its generate"):
        made("llama")(torch.tensor([[5, 9]]), past_key_values=DynamicCache())


def test_more_prompts_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"method\.picked: found 9, expected at most method\.pool, 4"):
        L2P(pool=4, picked=9).check(Parameters(nn.Linear(1, 1).named_parameters()))
