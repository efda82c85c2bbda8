"""SAPT: the attention over pairs, what it does to the forward pass, and what holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kifuse
from kifuse.answering.generation import greedy_generate
from kifuse.config import AdapterConfig
from kifuse.driving.method_loss import key_of
from kifuse.methods.sapt import SAPT, held
from kifuse.methods.texts import Noted
from kifuse.models.loading import Backbone
from kifuse.running.runner import run
from tests.adapters import add_adapter, on
from tests.reference import sapt
from tests.runs import METHODS, adapter, make_config
from tests.tiny import build_llama, build_tokenizer
from tests.two_tasks import encoded, learn, load
from tests.unit.methods.test_l2p import by_hand
from tests.unit.methods.test_mocl import BUILD, FAMILIES, ROWS, alone, logits, merged, stirred

pytestmark = pytest.mark.usefixtures("quick")


def made(family: str, vocabulary: int = 64, tasks: int = 3) -> Any:
    method = SAPT(bottleneck=4)
    config = AdapterConfig(rank=2, alpha=8, dropout=0.0)
    t5 = family == "t5"
    model = add_adapter(BUILD[family](vocabulary), config, encoder_decoder=t5, seed=3, method=method)
    return stirred(model, method, tasks).eval()


def attention_of(model: Any, e: list[float]) -> list[float]:
    """a(x) of an input whose e is given."""
    router = model.router
    parts = (router.down.weight, router.up.weight, router.norm.weight, router.norm.bias)
    return sapt.attention(e, *(each.detach() for each in parts), router.all_of("key").detach())


@FAMILIES
@pytest.mark.parametrize("width", [0, 9])
def test_an_input_is_read_with_the_pairs_that_its_own_attention_adds_up(family: str, width: int):
    """Each row as alone: neither the others nor padding change it."""
    model = made(family)
    found = logits(model, family, width=width)
    for row, each, weights in zip(ROWS, found, on(model).weights, strict=True):  # type: ignore[attr-defined]
        plain = BUILD[family](64).eval()
        wanted = attention_of(model, sapt.largest(plain.get_input_embeddings()(torch.tensor(row)).detach()))
        assert sum(wanted) == pytest.approx(1)
        assert weights.tolist() == pytest.approx(wanted, rel=1e-4)
        literal = alone(merged(plain, model, wanted, 4.0), family, row)
        torch.testing.assert_close(each, literal, rtol=1e-4, atol=1e-5)


def test_with_one_task_it_is_plain_lora():
    model = made("llama", tasks=1)
    plain = merged(build_llama(64).eval(), model, [1.0], 4.0)
    for row, found in zip(ROWS, logits(model, "llama"), strict=True):
        torch.testing.assert_close(found, alone(plain, "llama", row), rtol=1e-4, atol=1e-5)


def test_only_the_present_pair_key_and_the_projection_train():
    model = made("llama")
    before = {name: t.clone() for name, t in on(model).frozen().items()}
    ids = torch.tensor([[5, 9, 13, 7, 30]])
    out = model(input_ids=ids, labels=ids)
    (out.loss + on(model).weights[0, 0]).backward()  # type: ignore[attr-defined]
    moved = {n.rpartition("layers")[2] for n, p in model.named_parameters() if p.grad is not None}
    assert {"router.key", "router.down.weight", "router.up.weight", "router.norm.bias"} < moved
    assert all(p.requires_grad == (p.grad is not None) for p in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in on(model).frozen().items())


def test_the_attention_is_held_where_it_was_and_nowhere_else():
    a = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])
    assert held(a[:1], a[:1]).tolist() == pytest.approx([0.0], abs=1e-6)
    assert float(held(a[1:], torch.tensor([[0.3, 0.2, 0.5]]))) == pytest.approx(0.6931, abs=1e-3)


@FAMILIES
def test_answers_are_those_of_each_prompt_alone(family: str):
    tokenizer = build_tokenizer("bytes")
    model = made(family, len(tokenizer))
    prompts = [tokenizer(text)["input_ids"] for text in ("one harbour", "two", "one harbour more", "q")]
    together = greedy_generate(
        model, tokenizer, prompts, encoder_decoder=family == "t5", max_new_tokens=5, batch_tokens=64
    )
    assert together == [by_hand(model, tokenizer, prompt, family == "t5", 5) for prompt in prompts]


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest, quick: None) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_holds_the_attention_to_its_mean_over_the_earlier_task(
    backbone: Backbone, accumulation: int, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Under the real Trainer: parts of a step add up to the loss of its rows and of all kept inputs."""
    first, _, memory = encoded(backbone, tiny_stream)
    embed = backbone.model.get_input_embeddings()
    of_first, of_memory = (
        [sapt.largest(embed(torch.tensor(e.input_ids)).detach()) for e in part] for part in (first, memory)
    )
    averages, seen, original, end = list[list[float]](), list[Any](), SAPT.loss, SAPT.end_task

    def see(self: SAPT, ctx: Any, model: Any, batch: Any, outputs: Any) -> Tensor:
        found = original(self, ctx, model, batch, outputs)
        apart = 0.0
        if averages:
            apart = sapt.reflection([(averages[0], [attention_of(model, e) for e in of_memory])])
        said = [(each.detach(), gold) for each, gold in ctx.targets(batch, outputs)]
        seen.append((ctx.task.index, float(found.detach()), apart, said))
        return found

    def see_end(self: SAPT, ctx: Any) -> None:
        if ctx.task.first:
            averages.append(sapt.average([attention_of(ctx.trainer.model, e) for e in of_first]))
        end(self, ctx)

    monkeypatch.setattr(SAPT, "loss", see)
    monkeypatch.setattr(SAPT, "end_task", see_end)
    method = SAPT(bottleneck=4, reflection=2.0)
    keys = [key_of(e, encoder_decoder=backbone.encoder_decoder) for e in memory]
    method.noted = Noted(dict.fromkeys(keys, "first"))
    _, done = learn(backbone, tiny_stream, method, tmp_path, epochs=1, accumulation=accumulation)
    assert done.replayed == len(memory) == 5
    (event,) = [each for each in done.events if each["kind"] == "kept inputs"]
    assert event["inputs"] == 5 and "unknown" not in event
    assert method.state().values["averages"]["first"] == averages[0] == [1.0]
    later = [each for each in seen if each[0] == 1]
    apart = [each[2] for each in later]
    assert max(apart) > 1e-4 and max(apart) - min(apart) > 1e-5
    for start in range(0, 2 * accumulation, accumulation):
        parts = later[start : start + accumulation]
        rows = [row for _, _, _, each in parts for row in each]
        each = [torch.nn.functional.cross_entropy(a, gold, reduction="none") for a, gold in rows]
        wanted = float(torch.cat(each).mean()) + 2.0 * parts[0][2]
        assert sum(value for _, value, _, _ in parts) == pytest.approx(wanted, rel=1e-4)


@FAMILIES
def test_a_loaded_adapter_attends_alike(family: str, tmp_path: Path):
    model = made(family)
    on(model).save(tmp_path / "adapter")
    loaded = kifuse.load_adapter(BUILD[family](64), tmp_path / "adapter")
    for found, wanted in zip(logits(loaded, family), logits(model, family), strict=True):
        assert torch.equal(found, wanted)


def test_a_run_keeps_earlier_pairs_and_says_how_tasks_attend(
    tiny_folder_t5: Path, tiny_stream: Path, tmp_path: Path
):
    config = make_config(tiny_folder_t5, tiny_stream, tmp_path / "run", METHODS["sapt"])
    record = run(config)
    assert record.method.data_class == "real replay"
    averages = [e["average"] for t in record.tasks for e in t.events if e["kind"] == "attention"]
    assert [len(each) for each in averages] == [1, 2, 3]
    assert all(sum(each) == pytest.approx(1) for each in averages)
    held_on = [e["inputs"] for t in record.tasks for e in t.events if e["kind"] == "kept inputs"]
    assert held_on == [3, 6]
    kept = [adapter(config.output, after) for after in (1, 2, 3)]
    for name in kept[0]:
        stem, _, last = name.rpartition(".")
        if f"{stem}.past_{last}" in kept[2]:
            assert torch.equal(kept[2][f"{stem}.past_{last}"][0], kept[0][name])


def test_without_reflection_nothing_is_kept():
    method = SAPT(reflection=0.0)
    assert (method.old_data, method.data_class) == ("none", "replay-free")
    assert "by task" not in method.needs
