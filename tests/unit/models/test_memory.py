"""The memory that training needs, counted on shapes, is what real tensors take."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kifuse.adapters.kinds import add_adapter
from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.models.loading import load_backbone, shrink_frozen
from kifuse.models.memory import COPIES, TRAINED, MemoryNeeds, _inputs, memory_needs, saved_bytes

ROWS, TOKENS, TARGET = 3, 20, 4
ADAPTER = AdapterConfig(rank=2, dropout=0.0)


@pytest.fixture(params=["llama", "t5"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_folder_{request.param}")


def real_model(folder: Path, precision: Any) -> tuple[nn.Module, bool]:
    backbone = load_backbone(str(folder), precision=precision, device=torch.device("cpu"))
    # what a GPU would use; on a CPU kifuse loads the plain one
    backbone.model.set_attn_implementation("sdpa")
    model = add_adapter(backbone.model, ADAPTER, encoder_decoder=backbone.encoder_decoder, seed=0)
    shrink_frozen(model, precision)
    return model.train(), backbone.encoder_decoder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_counted_on_shapes_it_is_what_real_tensors_take(folder: Path, precision: Any) -> None:
    model, encoder_decoder = real_model(folder, precision)
    inputs = _inputs(encoder_decoder, ROWS, TOKENS, TARGET)
    inputs["attention_mask"][0, 0] = 0  # attention without padding would take less
    real = saved_bytes(model, inputs, TARGET, precision, checkpointing=False)
    frozen = {id(p): p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad}
    found = memory_needs(str(folder), ADAPTER, rows=ROWS, tokens=TOKENS, target=TARGET, precision=precision)
    assert found.activations == real > 0
    assert found.frozen == sum(frozen.values())
    assert found.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_checkpointing_keeps_what_enters_layers_and_one_layer_at_work(tiny_folder_llama: Path) -> None:
    options: dict[str, Any] = {"rows": ROWS, "tokens": 200, "target": TARGET, "precision": "fp32"}
    plain = memory_needs(str(tiny_folder_llama), ADAPTER, **options)
    less = memory_needs(str(tiny_folder_llama), ADAPTER, checkpointing=True, **options)
    model: Any = real_model(tiny_folder_llama, "fp32")[0]
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    inputs = _inputs(False, ROWS, 200, TARGET)
    inputs["attention_mask"][0, 0] = 0
    # torch's checkpoint keeps what layers save from these hooks
    outside = saved_bytes(model, inputs, TARGET, "fp32", checkpointing=False)
    layers, hidden = 2, ROWS * 200 * 32 * 4
    expected = outside + layers * hidden + (plain.activations - outside) / layers
    assert less.activations == pytest.approx(expected, rel=0.05)
    assert less.activations < 0.75 * plain.activations
    assert (less.frozen, less.trainable) == (plain.frozen, plain.trainable)


def test_quantised_layers_take_fewer_bytes_and_embeddings_do_not(tiny_folder_llama: Path) -> None:
    options: dict[str, Any] = {"rows": 1, "tokens": 8, "target": 2}
    sizes = [
        memory_needs(str(tiny_folder_llama), ADAPTER, quantization=how, **options).frozen
        for how in ("none", "8bit", "4bit")
    ]
    model, _ = real_model(tiny_folder_llama, "fp32")
    linear = sum(
        m.weight.numel()
        for n, m in model.named_modules()
        if type(m) is nn.Linear and "lora" not in n and "lm_head" not in n
    )
    assert sizes[0] - sizes[1] == linear  # two bytes, then one
    assert sizes[1] - sizes[2] == pytest.approx(linear * (1 - 0.5625), abs=1)


def test_the_sum_counts_moments_and_a_methods_copies() -> None:
    needs = MemoryNeeds(frozen=1000, trainable=10, activations=500)
    assert needs.trained == 10 * TRAINED
    assert needs.total() == 1000 + 160 + 500
    assert needs.total(COPIES["Recurrent-KIF"]) == needs.total() + 160


def test_more_rows_need_more_and_the_model_stays_as_it_is(folder: Path) -> None:
    sizes = [
        memory_needs(str(folder), copy.copy(ADAPTER), rows=rows, tokens=16, target=2) for rows in (1, 2, 4)
    ]
    steps = [b.activations - a.activations for a, b in itertools.pairwise(sizes)]
    assert steps[1] == pytest.approx(2 * steps[0], rel=0.02)
    assert len({(each.frozen, each.trainable) for each in sizes}) == 1


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        memory_needs(str(tmp_path / "nothing"), ADAPTER, rows=1, tokens=8, target=2)
