"""MoCL: how modules are weighed for each input, what that does to the forward pass, and what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

import kifuse
from kifuse.answering.generation import greedy_generate
from kifuse.config import AdapterConfig
from kifuse.methods.mocl import MoCL
from tests.adapters import add_adapter, on
from tests.padded_rows import ROWS, SAID, logits
from tests.reference import mocl, prefixes
from tests.tiny import build_llama, build_t5, build_tokenizer
from tests.two_tasks import learn, load
from tests.unit.methods.test_l2p import by_hand

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),  # the test's own word
]
BUILD = {"llama": build_llama, "t5": build_t5}
FAMILIES = pytest.mark.parametrize("family", BUILD)
MODULES = pytest.mark.parametrize("module", ["prefix", "lora"])


def stirred(model: Any, method: Any, tasks: int) -> Any:
    """A model that has learned some tasks, each of which has moved everything that trains."""
    draw = torch.Generator().manual_seed(5)
    for index in range(tasks):
        on(model).begin_task(index, seed=0)
        with torch.no_grad():
            for p in on(model).learned().values():
                p.add_(torch.randn(p.shape, generator=draw), alpha=0.3)
        on(model).end_task()
    return model


def made(family: str, module: str, vocabulary: int = 64, tasks: int = 3) -> Any:
    method: Any = MoCL(length=2, module=module)  # pyright: ignore[reportArgumentType]
    config = AdapterConfig(rank=2, alpha=8, dropout=0.0)
    model = BUILD[family](vocabulary)
    adapted = add_adapter(model, config, encoder_decoder=family == "t5", seed=3, method=method)
    return stirred(adapted, method, tasks).eval()


@torch.no_grad()
def merged(plain: PreTrainedModel, model: Any, weights: list[float], scale: float) -> PreTrainedModel:
    """For one input the mixture of LoRA pairs is one weight of each layer: W + s sum_i w_i B_i A_i."""
    for name, part in on(model).parts.items():  # type: ignore[attr-defined]
        if name.endswith(".pairs"):
            layer = plain.get_submodule(name.removesuffix(".pairs"))
            for w, a, b in zip(weights, part.all_of("a"), part.all_of("b"), strict=True):
                layer.weight += scale * w * b @ a  # type: ignore[operator]
    return plain


@torch.no_grad()
def alone(plain: PreTrainedModel, family: str, row: list[int]) -> Tensor:
    more = {"decoder_input_ids": SAID} if family == "t5" else {}
    return plain(input_ids=torch.tensor([row]), **more).logits[0]


@torch.no_grad()
def literal(model: Any, family: str, module: str, row: list[int]) -> Tensor:
    plain = BUILD[family](64).eval()
    embedded = plain.get_input_embeddings()(torch.tensor(row))
    weights = mocl.weights(embedded, model.router.all_of("key"), 8.0)
    assert sum(weights) == pytest.approx(1)
    if module == "lora":
        return alone(merged(plain, model, weights, 4.0), family, row)
    every = model.prefixes.all_of("prefix")
    prefix = sum((w * each for w, each in zip(weights, every, strict=True)), torch.zeros_like(every[0]))
    if family == "llama":
        return prefixes.llama(plain, row, prefix)
    states = prefixes.t5_encoder(plain, row, prefix)[None]
    return plain(encoder_outputs=BaseModelOutput(states), decoder_input_ids=SAID).logits[0]


@FAMILIES
@MODULES
@pytest.mark.parametrize("width", [0, 9])
def test_an_input_is_read_with_the_modules_that_its_own_weights_add_up(family: str, module: str, width: int):
    """Each row as alone: neither the others nor padding change it."""
    model = made(family, module)
    found = logits(model, family, width=width)
    for row, each in zip(ROWS, found, strict=True):
        torch.testing.assert_close(each, literal(model, family, module, row), rtol=1e-4, atol=1e-5)
    assert on(model).taken.total() == 3  # type: ignore[union-attr]


@MODULES
def test_only_the_present_module_and_key_train(module: str):
    model = made("llama", module)
    ids = torch.tensor([[5, 9, 13, 7, 30]])
    out = model(input_ids=ids, labels=torch.tensor([[-100, -100, 13, 7, 30]]))
    (out.loss - on(model).alike.mean()).backward()  # type: ignore[attr-defined]
    moved = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == ({"prefix", "key"} if module == "prefix" else {"a", "b", "key"})
    assert all(p.requires_grad == (p.grad is not None) for p in model.parameters())
    frozen = on(model).frozen()
    assert len(frozen) == len(on(model).learned()) and {len(t) for t in frozen.values()} == {2}


@FAMILIES
@MODULES
def test_answers_are_those_of_each_prompt_alone(family: str, module: str):
    tokenizer = build_tokenizer("bytes")
    model = made(family, module, len(tokenizer))
    prompts = [tokenizer(text)["input_ids"] for text in ("one harbour", "two", "one harbour more", "q")]
    assert min(map(len, prompts)) == 1
    together = greedy_generate(
        model, tokenizer, prompts, encoder_decoder=family == "t5", max_new_tokens=5, batch_tokens=64
    )
    assert together == [by_hand(model, tokenizer, prompt, family == "t5", 5) for prompt in prompts]


@MODULES
def test_beams_are_weighed_by_their_prompt(module: str):
    model = made("t5", module)
    ids = torch.tensor([[5, 9, 13], [40, 41, 42]])
    more: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    both = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
    for row, found in zip(ids, both, strict=True):
        single = model.generate(input_ids=row[None], attention_mask=torch.ones(1, 3), **more)[0]
        assert found[: len(single)].tolist() == single.tolist()


@FAMILIES
@MODULES
def test_a_loaded_adapter_weighs_alike(family: str, module: str, tmp_path: Path):
    model = made(family, module)
    on(model).save(tmp_path / "adapter")
    loaded = kifuse.load_adapter(BUILD[family](64), tmp_path / "adapter")
    for found, wanted in zip(logits(loaded, family), logits(model, family), strict=True):
        assert torch.equal(found, wanted)


@FAMILIES
@MODULES
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_is_the_literal_one(
    family: str,
    module: str,
    accumulation: int,
    request: pytest.FixtureRequest,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Under the real Trainer; accumulated parts of a step add up to it."""
    seen, original = list[tuple[int, float, list[Any]]](), MoCL.loss

    def see(self: MoCL, ctx: Any, model: Any, batch: Any, outputs: Any) -> Tensor:
        found = original(self, ctx, model, batch, outputs)
        keys = model.router.all_of("key").detach()
        inputs, rows = batch.only_part, []
        asked = inputs.get("prompt_mask", inputs["attention_mask"]).bool()
        embed = model.get_input_embeddings()
        for ids, own, (said, gold) in zip(
            inputs["input_ids"], asked, ctx.targets(batch, outputs), strict=True
        ):
            alike = mocl.cosines(embed(ids[own]).detach(), keys)[-1]
            rows.append((said.detach(), gold.tolist(), alike))
        seen.append((len(keys), float(found.detach()), rows))
        return found

    monkeypatch.setattr(MoCL, "loss", see)
    backbone = load(request.getfixturevalue(f"tiny_folder_{family}"))
    method = MoCL(length=2, module=module, pull=0.5)  # pyright: ignore[reportArgumentType]
    learn(backbone, tiny_stream, method, tmp_path, epochs=1, accumulation=accumulation)
    assert {count for count, _, _ in seen} == {1, 2}
    steps = [seen[start : start + accumulation] for start in range(0, len(seen), accumulation)]
    for parts in steps[:2] + steps[-3:-1]:  # the last step of a task is short
        rows = [row for _, _, each in parts for row in each]
        found = sum(value for _, value, _ in parts)
        assert found == pytest.approx(mocl.loss(rows, 0.5), rel=1e-4)
