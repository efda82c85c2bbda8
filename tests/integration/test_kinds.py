"""Whole runs that train something else than LoRA, and adapters of a run fused again from what it kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kifuse.config import AdapterConfig
from kifuse.merging import fuse_adapters
from kifuse.models.loading import load_backbone
from kifuse.record.run_record import RunRecord
from kifuse.running.runner import run
from tests.adapters import add_adapter, load_adapter_weights
from tests.runs import METHODS, StopIn, Stopped, adapter, make_config

pytestmark = pytest.mark.usefixtures("quick")

SMALL = {"train_examples": 8, "test_examples": 1, "dev_examples": 1}
KINDS = ["rslora", "dora", "ia3", "full"]


def configured(folder: Path, stream: Path, output: Path, method: dict[str, Any], kind: str, **model: Any):
    return make_config(
        folder,
        stream,
        output,
        method,
        model={"adapter": {"kind": kind, "rank": 2, "alpha": 8, "dropout": 0.0}, **model},
        data=SMALL,
        training={"learning_rate": 1e-3 if kind == "full" else 1e-2},
    )


def adapter_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def trained(model: Any) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("family", "method", "kind"),
    [
        *(("llama", "kiflora", kind) for kind in KINDS),
        *(("t5", "kif", kind) for kind in ("dora", "ia3", "full")),
        *(("t5", "recurrent-kif", kind) for kind in ("dora", "ia3", "full")),
    ],
)
def test_each_kind_trains_fuses_and_is_kept(
    family: str, method: str, kind: str, tiny_stream: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"tiny_folder_{family}")
    record = run(configured(folder, tiny_stream, tmp_path / "run", METHODS[method], kind))
    assert record.status == "finished"
    kinds = {event["kind"] for task in record.tasks[1:] for event in task.events}
    assert ("fusions" if method == "recurrent-kif" else "fusion") in kinds
    first, last = adapter(tmp_path / "run", 1), adapter(tmp_path / "run")
    assert first.keys() == last.keys()
    assert sum(not torch.equal(first[name], last[name]) for name in last) > 0.9 * len(last)

    backbone = load_backbone(str(folder), precision="fp32", device=torch.device("cpu"))
    config = AdapterConfig.model_validate({"kind": kind, "rank": 2, "alpha": 8, "dropout": 0.0})
    model = add_adapter(backbone.model, config, encoder_decoder=family == "t5", seed=9)
    load_adapter_weights(model, tmp_path / "run" / "adapters" / "after-3")
    values = [float(p.detach().sum()) for p in trained(model)]
    assert sorted(values) == sorted(float(t.sum()) for t in last.values())


def test_full_fine_tuning_goes_on_where_it_stopped(
    tiny_folder_t5: Path, tiny_stream: Path, tmp_path: Path
) -> None:
    def config(name: str):
        return configured(tiny_folder_t5, tiny_stream, tmp_path / name, METHODS["kif"], "full")

    run(config("whole"))
    with pytest.raises(Stopped):
        run(config("stopped"), progress=StopIn("weather"))
    run(config("stopped"))
    whole, resumed = adapter(tmp_path / "whole"), adapter(tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_configured_quantization_reaches_the_model(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, asked = importlib.util.find_spec, []

    def absent(name: str, *more: Any) -> Any:
        asked.append(name)
        return None if name == "bitsandbytes" else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    config = configured(
        tiny_folder_llama, tiny_stream, tmp_path / "run", METHODS["kif"], "lora", quantization="8bit"
    )
    with pytest.raises(Exception, match=r"model.quantization: '8bit' needs the package bitsandbytes"):
        run(config)
    assert "bitsandbytes" in asked


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize(
    ("method", "kind", "settings"),
    [
        ({"name": "kif"}, "lora", {}),
        ({"name": "kif", "gamma": 0.4, "quantile": 0.5, "units": "module"}, "full",
         {"gamma": 0.4, "quantile": 0.5}),
        ({"name": "kiflora"}, "lora", {"fusion": "adaptive"}),
        ({"name": "kiflora", "unit_score": "mean", "tau": 0.5}, "dora",
         {"fusion": "adaptive", "unit_score": "mean", "tau": 0.5}),
        ({"name": "kif", "units": "element", "fusion": "adaptive"}, "ia3", {"fusion": "adaptive"}),
    ],
    ids=["kif", "kif-full", "kiflora", "kiflora-dora", "elements-ia3"],
)  # fmt: skip
def test_fusing_kept_adapters_gives_the_run_s_own_bit_for_bit(
    family: str,
    method: dict[str, Any],
    kind: str,
    settings: dict[str, Any],
    tiny_stream: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The model after task 2 as trained, and the run's importance, are all that its fusion was made from."""
    folder = request.getfixturevalue(f"tiny_folder_{family}")
    for name, change in (("fused", {}), ("plain", {"fusion": "none"})):
        with pytest.raises(Stopped):  # two tasks are enough
            run(
                configured(folder, tiny_stream, tmp_path / name, {**method, **change}, kind),
                progress=StopIn("weather"),
            )
    fused, plain = tmp_path / "fused", tmp_path / "plain"
    fuse_adapters(
        fused / "adapters" / "after-1",
        plain / "adapters" / "after-2",
        tmp_path / "out",
        fused / "state" / "after-2" / "method.safetensors",
        **settings,
    )
    found, own, before = adapter_of(tmp_path / "out"), adapter(fused, 2), adapter(plain, 2)
    assert found.keys() == own.keys()
    assert any(not torch.equal(own[name], before[name]) for name in own)
    assert all(torch.equal(found[name], own[name]) for name in own)
    assert RunRecord.load(fused).tasks[1].train_steps
