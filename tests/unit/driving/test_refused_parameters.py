"""A method that cannot work with what is trained says so before the first step, in every way of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from kifuse.driving.refusals import refuse_shards
from kifuse.errors import ModelError, RunError
from kifuse.methods.slao import SLAO
from kifuse.methods.vr_mcl import VRMCL
from kifuse.running.runner import run
from tests.months import BROUGHT, OWN, make_trainer, method_of, new_model, rows
from tests.runs import TASKS, make_config
from tests.tiny import build_llama

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("kind", ["dora", "ia3", "full"])
def test_in_a_run(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, kind: str):
    adapter = {"kind": kind, "rank": 2, "alpha": 8, "dropout": 0.0}
    config = make_config(
        tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "slao"}, model={"adapter": adapter}
    )
    with pytest.raises(ModelError, match="SLAO merges LoRA pairs and nothing else"):
        run(config)


def test_in_one_s_own_trainer(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    config = LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(build_llama(len(tiny_tokenizer)), config)
    data = rows(tiny_tokenizer, TASKS[0])
    trainer = make_trainer(tiny_tokenizer, model, tmp_path, data, [SLAO().callback()])
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    with pytest.raises(RunError, match="SLAO merges LoRA pairs and nothing else"):
        trainer.train()
    now = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.equal(p, b) for p, b in zip(now, before, strict=True))


def test_two_adapters_at_once(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    model = new_model(tiny_tokenizer)
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    trainer = make_trainer(
        tiny_tokenizer, model, tmp_path, rows(tiny_tokenizer, TASKS[0]), [VRMCL().callback()]
    )
    with pytest.raises(RunError, match=r"default\.weight and .*other\.weight are both trained"):
        trainer.train()


def test_gradients_at_other_weights_in_one_s_own_trainer(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    data = rows(tiny_tokenizer, TASKS[0])
    model = new_model(tiny_tokenizer)
    trainer = make_trainer(
        tiny_tokenizer, model, tmp_path, data, [VRMCL().callback()], gradient_checkpointing=True
    )
    with pytest.raises(RunError, match="gradient_checkpointing"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "why", "way"),
    [
        (
            OWN["on-policy-repair"],
            "OnPolicyRepair lets .* have different lengths",
            "Use plain data parallelism",
        ),
        (
            OWN["vr-mcl, second order"],
            "VRMCL .* outside of what torch can",
            "Use second_order: false, or one",
        ),
        (BROUGHT["o-lora"], "OLoRA gives .* cut the tensors once", "Use plain data parallelism"),
    ],
)
def test_a_model_in_pieces_is_refused_for_a_reason_of_principle(settings: dict[str, Any], why: str, way: str):
    with pytest.raises(RunError, match=f"fsdp, deepspeed: .*{why}.* {way}"):
        refuse_shards(method_of(settings))


@pytest.mark.parametrize(
    "name", ["ewc", "ogd", "gpm", "lwf", "der++", "vr-mcl", "kif, single examples", "migu"]
)
def test_methods_that_keep_the_processes_in_step_are_not_refused(name: str):
    refuse_shards(method_of(OWN[name]))
