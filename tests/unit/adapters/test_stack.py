"""One pair a task: what is frozen, what stays as it is, and what is on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from kifuse.adapters.stack import STACKABLE, Stack
from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.methods.inclora import IncLoRA
from tests.adapters import (
    KINDS,
    add_stack,
    frozen_tensors,
    grow,
    load_adapter_weights,
    on,
    save_adapter,
    stacked,
)
from tests.tiny import build_llama
from tests.unit.adapters.test_kinds import BUILD, VOCABULARY, logits, made, moved, trained

pytestmark = pytest.mark.usefixtures("quick")
EACH = pytest.mark.parametrize(("family", "kind"), [("llama", "lora"), ("t5", "lora"), ("llama", "rslora")])


def grown(family: str, kind: str = "lora", tasks: int = 3) -> Any:
    """A model that has learned some tasks, each moving its pair."""
    model = moved(made(family, kind, method=IncLoRA()))
    for task in range(1, tasks):
        grow(model, seed=task)
        moved(model)
    return model


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@EACH
def test_the_outputs_stay_as_they_are_while_the_stack_grows(family: str, kind: str):
    model = moved(made(family, kind, method=IncLoRA()))
    for task in (1, 2, 3):
        before = logits(model, family)
        grow(model, seed=task)
        torch.testing.assert_close(logits(model, family), before, rtol=1e-6, atol=3e-6)
        assert stacked(model) == task
        moved(model)
        assert (logits(model, family) - before).abs().max() > 1e-3


@EACH
def test_the_stored_pairs_are_those_that_were_trained(family: str, kind: str):
    model = moved(made(family, kind, method=IncLoRA()))
    history: list[dict[str, Tensor]] = []
    for task in (1, 2):
        history.append(copies(trained(model)))
        grow(model, seed=task)
        moved(model)
    past = frozen_tensors(model)
    assert past.keys() == trained(model).keys() == history[0].keys()
    for name, stored in past.items():
        dim = 0 if "lora_A" in name else 1
        assert torch.equal(stored, torch.cat([each[name] for each in history], dim=dim))
        assert not stored.requires_grad


def test_a_fresh_pair_starts_as_peft_starts_one():
    model = grown("llama", tasks=1)
    before = dict(trained(model))
    grow(model, seed=7)
    after = trained(model)
    assert all(after[name] is p for name, p in before.items())
    for name, p in after.items():
        if "lora_B" in name:
            assert not p.any()
        else:
            bound = 1 / math.sqrt(p.shape[1])
            assert bound / 2 < p.abs().max() <= bound
    first = copies(after)
    again, other = grown("llama", tasks=1), grown("llama", tasks=1)
    grow(again, seed=7)
    grow(other, seed=8)
    for name, p in first.items():
        assert torch.equal(trained(again)[name], p)
        assert torch.equal(trained(other)[name], p) == ("lora_B" in name)


def test_growing_draws_no_random_number_of_training():
    model = grown("llama", tasks=1)
    state = torch.get_rng_state()
    grow(model, seed=7)
    assert torch.equal(torch.get_rng_state(), state)


def test_old_pairs_come_out_of_real_steps_bit_identical():
    model = grown("llama")
    before = copies(frozen_tensors(model))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(3):
        model.train()(input_ids=torch.arange(3, 27).view(2, 12)).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = frozen_tensors(model)
    assert all(torch.equal(after[name], value) and value.grad is None for name, value in before.items())


def test_old_pairs_have_no_dropout():
    model = moved(made("llama", "lora", dropout=0.9, method=IncLoRA()))
    grow(model, seed=1)
    ids = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        # B of the new pair is 0, so that its dropout does nothing yet
        assert torch.equal(model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


@EACH
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_folder_is_one_standard_adapter(family: str, kind: str, tasks: int, tmp_path: Path):
    model = grown(family, kind, tasks)
    save_adapter(model, tmp_path / "kept")
    config = json.loads((tmp_path / "kept" / "adapter_config.json").read_text("utf-8"))
    assert config["r"] == 2 * tasks
    loaded = PeftModel.from_pretrained(BUILD[family](VOCABULARY), str(tmp_path / "kept"))
    torch.testing.assert_close(logits(loaded, family), logits(model, family), rtol=1e-5, atol=1e-5)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged, family), logits(model, family), rtol=1e-4, atol=1e-4)


@EACH
def test_the_scale_of_a_task_stays_that_of_its_rank(family: str, kind: str, tmp_path: Path):
    model = grown(family, kind)
    one = 8 / math.sqrt(2) if kind == "rslora" else 4.0
    for layer in model.modules():
        if hasattr(layer, "lora_A") and layer.scaling:
            assert layer.scaling == {"default": one, "past": one}
    save_adapter(model, tmp_path / "kept")
    config = json.loads((tmp_path / "kept" / "adapter_config.json").read_text("utf-8"))
    assert not config["use_rslora"]
    assert config["lora_alpha"] / config["r"] == pytest.approx(one, rel=1e-12)


@EACH
@pytest.mark.parametrize("other", [1, 2, 4])
def test_a_stack_comes_back_bit_identical_whatever_the_model_held(
    family: str, kind: str, other: int, tmp_path: Path
):
    model = grown(family, kind)
    expected, past, current = logits(model, family), copies(frozen_tensors(model)), copies(trained(model))
    save_adapter(model, tmp_path / "kept")
    found = grown(family, kind, other)
    load_adapter_weights(found, tmp_path / "kept")
    assert stacked(found) == 2
    for mine, theirs in ((frozen_tensors(found), past), (trained(found), current)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert torch.equal(logits(found, family), expected)
    save_adapter(found, tmp_path / "again")
    kept, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("kept", "again"))
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


def test_an_adapter_of_one_task_comes_back_with_nothing_stored(tmp_path: Path):
    plain = moved(made("llama", "lora"))
    save_adapter(plain, tmp_path / "kept")
    model = grown("llama")
    load_adapter_weights(model, tmp_path / "kept")
    assert stacked(model) == 0 and frozen_tensors(model) == {}
    assert torch.equal(logits(model, "llama"), logits(plain, "llama"))


def test_what_was_stored_can_be_dropped():
    model = grown("llama")
    names = [name for name, _ in made("llama", "lora").named_parameters()]
    on(model).restart({name: p.detach() for name, p in made("llama", "lora").named_parameters()})
    assert [name for name, _ in model.named_parameters()] == names
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
    assert stacked(model) == 0
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize("kind", sorted({*KINDS} - {*STACKABLE}))
def test_kinds_that_do_not_add_up_are_refused(kind: str):
    with pytest.raises(
        ModelError, match=rf"model.adapter.kind: found '{kind}', expected one of lora, rslora"
    ):
        Stack.refuse(AdapterConfig.model_validate({"kind": kind}), "inclora")


def test_an_adapted_embedding_is_refused():
    config = AdapterConfig(rank=2, alpha=8, dropout=0.0, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ModelError, match=r"embed_tokens is not a linear layer, and IncLoRA can stack"):
        add_stack(build_llama(VOCABULARY), config, encoder_decoder=False, seed=0)
    made("t5", "lora", method=IncLoRA())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 3}, "holds an adapter of rank 3, expected an adapter whose rank is a multiple of 2"),
        ({"target_modules": ["k_proj"]}, "made for another model or other modules"),
        ({"kind": "ia3"}, "holds no LoRA adapter"),
    ],
)
def test_another_adapter_is_refused(wrong: dict[str, Any], message: str, tmp_path: Path):
    save_adapter(made("llama", **{"kind": "lora", **wrong}), tmp_path / "kept")
    with pytest.raises(ModelError, match=message):
        load_adapter_weights(grown("llama"), tmp_path / "kept")


def test_weights_of_full_fine_tuning_are_refused(tmp_path: Path):
    save_adapter(made("t5", "full"), tmp_path / "kept")
    with pytest.raises(ModelError, match="holds no LoRA adapter"):
        load_adapter_weights(grown("t5"), tmp_path / "kept")


def test_before_the_second_task_nothing_is_stored():
    model = made("t5", "lora", method=IncLoRA())
    assert frozen_tensors(model) == {} and stacked(model) == 0
