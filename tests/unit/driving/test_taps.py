"""Listening to a Trainer, and the names of other libraries that kifuse relies on."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, OSFConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTTrainer

from kifuse.driving.taps import RELIED_ON, ReliedOn, Taps
from tests.releases import older_than
from tests.tiny import build_llama

SOURCE = Path(inspect.getfile(Taps)).parents[1]


def _counted(trainer: Any) -> tuple[Taps, list[str]]:
    taps, seen = Taps(trainer), []
    for name in ("training_step", "compute_loss", "clip_grad_norm"):

        def around(original: Any, *args: Any, name: str = name) -> Any:
            seen.append(name)
            return original(*args)

        getattr(taps, name)(around)
    return taps, seen


class Stub:
    """Has the three methods, and says what it was given."""

    def __init__(self) -> None:
        self.accelerator = SimpleNamespace(clip_grad_norm_=lambda given: f"clipped {given}")

    def training_step(self, given: str) -> str:
        return f"stepped {given}"

    def compute_loss(self, given: str) -> str:
        return f"lost {given}"


def test_one_release_leaves_everything_as_it_was():
    trainer = Stub()
    own = trainer.compute_loss = lambda given: f"my own {given}"
    clip = trainer.accelerator.clip_grad_norm_
    taps, seen = _counted(trainer)
    assert trainer.training_step("a") == "stepped a" and trainer.compute_loss("b") == "my own b"
    assert trainer.accelerator.clip_grad_norm_("c") == "clipped c"
    assert seen == ["training_step", "compute_loss", "clip_grad_norm"]
    taps.release()
    taps.release()
    assert "training_step" not in vars(trainer) and trainer.compute_loss is own
    assert trainer.accelerator.clip_grad_norm_ is clip


def test_two_taps_of_one_method_come_off_together():
    trainer = Stub()
    taps, _ = _counted(trainer)
    taps.training_step(lambda step, given: f"[{step(given)}]")
    assert trainer.training_step("a") == "[stepped a]"
    taps.release()
    assert trainer.training_step("a") == "stepped a" and "training_step" not in vars(trainer)


def test_who_listens_on_top_of_a_tap_stays_and_the_tap_falls_silent():
    trainer = Stub()
    taps, seen = _counted(trainer)
    below = trainer.training_step
    other = trainer.training_step = lambda given: below(given).upper()
    taps.release()
    assert trainer.training_step is other and trainer.training_step("a") == "STEPPED A" and seen == []


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An object of each kind whose names kifuse relies on."""
    row = {"input_ids": torch.tensor([5, 6]), "labels": torch.tensor([5, 6])}
    found: dict[str, Any] = {"SFTTrainer": SFTTrainer, "source of SFTTrainer": inspect.getsource(SFTTrainer)}

    class Look(TrainerCallback):
        def on_step_begin(
            self, args: Any, state: Any, control: Any, optimizer: Any = None, **kw: Any
        ) -> None:
            found["optimizer"] = optimizer

    def trainer(model: Any, **more: Any) -> Trainer:
        folder = str(tmp_path_factory.mktemp("trainer"))
        args = TrainingArguments(
            folder, use_cpu=True, max_steps=1, report_to=[], disable_tqdm=True, save_strategy="no", **more
        )
        return Trainer(model=model, args=args, train_dataset=[row], callbacks=[Look()])

    lora = get_peft_model(build_llama(40), LoraConfig(target_modules=["q_proj"]))
    found["lora layer"] = lora.base_model.model.model.layers[0].self_attn.q_proj
    osf = get_peft_model(build_llama(40), OSFConfig(target_modules=["q_proj"], effective_rank=2))
    found["osf layer"] = osf.base_model.model.model.layers[0].self_attn.q_proj
    found["trainer"] = found["trainer in training"] = trainer(lora)
    found["accelerator"] = found["trainer"].accelerator
    found["trainer"].train()
    half = trainer(build_llama(40), bf16=True)
    half.train()
    found["model under bf16"] = half.model
    return found


UNDER_DEEPSPEED = {"accelerator under deepspeed", "its deepspeed_engine_wrapped"}
"""Looked for, with DeepSpeed's own names, where its engine runs: tests/contract/test_zero.py."""
HERE = [each for each in RELIED_ON if each.library != "deepspeed" and each.owner not in UNDER_DEEPSPEED]


def test_modules_that_are_said_to_use_a_name_do_so():
    for each in RELIED_ON:
        for module in each.used.split(", "):
            code = (
                (SOURCE / (module.replace(".", "/") + ".py")).read_text("utf-8").partition("\nRELIED_ON:")[0]
            )
            assert any(re.search(rf"\b{name.removeprefix('self.')}\b", code) for name in each.names), module


@pytest.mark.parametrize("each", HERE, ids=lambda each: f"{each.library}, {each.owner}")
def test_the_installed_release_has_every_name_that_kifuse_relies_on(each: ReliedOn, owners: dict[str, Any]):
    if each.library == "lm_eval":
        reason = "the extra lm-eval is not installed"
        model = pytest.importorskip("lm_eval.models.huggingface", reason=reason, exc_type=ImportError)
        owners["HFLM"] = model.HFLM
    if older_than(each.library, each.since):
        pytest.skip(f"kifuse refuses what needs {', '.join(each.names)} before {each.library} {each.since}")
    owner = owners[each.owner]
    missing = [n for n in each.names if (n not in owner if isinstance(owner, str) else not hasattr(owner, n))]
    assert missing == [], f"{each.library} has moved what {each.used} use"


def _private(tree: ast.AST) -> set[str]:
    """Attributes with an underscore in front that a file uses, but does not define."""
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {each.attr for each in attributes if ast.unparse(each.value) == "self"}
    names = {each.attr for each in attributes} - own
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_every_private_name_of_another_library_is_listed():
    listed = {name.removeprefix("self.") for each in RELIED_ON for name in each.names}
    for file in SOURCE.rglob("*.py"):
        name = file.relative_to(SOURCE).as_posix()
        found = _private(ast.parse(file.read_text("utf-8"))) - listed
        unlisted = {each for each in found if not each.startswith("_foreach")} - NAMED_TUPLES
        assert unlisted <= TORCH_AND_PYTHON.get(name, set()), name


NAMED_TUPLES = {"_asdict", "_fields", "_replace"}
"""Public in spite of their underscore: Python documents them so."""

TORCH_AND_PYTHON: dict[str, set[str]] = {
    "answering/merged_adapters.py": {"_forward_hooks", "_forward_pre_hooks"},
    "answering/fast_linear.py": {
        "_forward_pre_hooks",
        "_is_mkldnn_bf16_supported",
        "_linear_pointwise",
        "_reorder_linear_weight",
    },
    "models/memory.py": {"_buffers", "_cdata", "_parameters"},
    "tasks/limited_process.py": {"_exit"},
    "driving/find_trainer.py": {"_getframe"},
}
"""Private names of torch and Python, by the file that may use them."""
