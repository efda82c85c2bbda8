"""The shapes of what a model would train, without its weights, and their description as skill units."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, T5Config

from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.knowledge import Level, SkillUnits
from kifuse.models.loading import load_backbone
from kifuse.models.outline import level_sizes, outline, unit_rows
from tests.adapters import KINDS, add_adapter

LEVELS = get_args(Level)


def settings(kind: str, **more: Any) -> AdapterConfig:
    return AdapterConfig.model_validate({"kind": kind, "rank": 2, **more})


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_outline_is_that_of_the_loaded_model(kind: str, family: str, request: pytest.FixtureRequest):
    folder = str(request.getfixturevalue(f"tiny_folder_{family}"))
    found = outline(folder, settings(kind))
    backbone = load_backbone(folder, precision="fp32", device=torch.device("cpu"))
    assert found.parameters == sum(p.numel() for p in backbone.model.parameters())
    model = add_adapter(backbone.model, settings(kind), encoder_decoder=family == "t5", seed=0)
    expected = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    assert list(found.tensors) == expected
    assert found.trainable == sum(prod(shape) for _, shape in expected)


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize("level", LEVELS)
def test_rows_and_sizes_are_those_of_the_partition(
    level: Level, kind: str, family: str, request: pytest.FixtureRequest
):
    found = outline(str(request.getfixturevalue(f"tiny_folder_{family}")), settings(kind)).tensors
    units = SkillUnits.build([name for name, _ in found], [shape for _, shape in found], level)
    rows = unit_rows(found, level)
    assert sum(row.total for row in rows) == units.count
    sizes = sorted(size for row in rows for size in [row.size] * row.total)
    assert sizes == sorted(units.sizes.tolist())
    summary = level_sizes(found, level)
    assert (summary.count, summary.smallest, summary.largest) == (units.count, sizes[0], sizes[-1])
    assert summary.median == sizes[(len(sizes) - 1) // 2]


def test_layers_of_equal_structure_are_one_row(tiny_folder_t5: Path):
    rows = unit_rows(outline(str(tiny_folder_t5), settings("lora")).tensors, "rank")
    assert [(row.stack, row.layers, row.units, row.size, row.total) for row in rows] == [
        ("encoder.block", (0, 1), 2, 64, 4),
        ("encoder.block", (0, 1), 2, 64, 4),
        *[("decoder.block", (0, 1), 2, 64, 4)] * 4,
    ]
    assert rows[0].tensors == (
        ("layer.0.SelfAttention.q.lora_A", (2, 32)),
        ("layer.0.SelfAttention.q.lora_B", (32, 2)),
    )


def test_a_layer_that_differs_has_a_row_of_its_own(tiny_folder_t5: Path):
    found = outline(str(tiny_folder_t5), settings("full")).tensors
    rows = unit_rows(found, "layer")
    places = [(row.stack, row.layers) for row in rows]
    # only the first layer of each side has the bias of relative positions
    assert places == [
        ("", ()),
        ("encoder.block", (0,)),
        ("encoder.block", (1,)),
        ("", ()),
        ("decoder.block", (0,)),
        ("decoder.block", (1,)),
        ("", ()),
    ]


def test_a_large_model_needs_its_config_alone(tmp_path: Path):
    LlamaConfig().save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    found = outline(str(tmp_path), AdapterConfig())
    assert found.parameters == 6_738_415_616  # LLaMA-7B
    assert found.trainable == 32 * 2 * 2 * 8 * 4096
    assert level_sizes(outline(str(tmp_path), settings("full")).tensors, "element").count == 6_738_415_616


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (T5Config(vocab_size=32128, d_model=1024, d_ff=4096, num_layers=24, num_heads=16), 737_668_096),
        (GPT2Config(), 124_439_808),
    ],
    ids=["t5-large", "gpt2"],
)
def test_tied_weights_are_counted_once(config: Any, parameters: int, tmp_path: Path):
    config.save_pretrained(tmp_path)
    assert outline(str(tmp_path), AdapterConfig()).parameters == parameters


def test_nothing_random_is_left_behind(tiny_folder_llama: Path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    outline(str(tiny_folder_llama), AdapterConfig())
    assert torch.equal(torch.rand(3), expected)


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="not a model folder"):
        outline(str(tmp_path), AdapterConfig())
    with pytest.raises(ModelError, match=r"Did you mean 'smollm2-135m'"):
        outline("smollm2-136m", AdapterConfig())
