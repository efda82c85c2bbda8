"""What every method promises, whatever it does to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Trainer

import kifuse
from kifuse.record.run_record import RunRecord
from kifuse.record.score_matrix import needed_cells
from kifuse.registry import build_method, method_names
from kifuse.running import engine
from kifuse.running import run_start as opening
from kifuse.running.runner import run
from kifuse.running.snapshot import load_state, save_state
from tests.runs import METHODS, PressCtrlC, StopIn, Stopped, adapter, make_config

pytestmark = pytest.mark.usefixtures("quick")
EVERY = pytest.mark.parametrize("name", METHODS)
STACKING = {"inclora", "o-lora", "n-lora", "ella"}
"""Methods that keep one pair of LoRA factors a task."""
MERGING = {"osf"}
"""Methods that train factors of the model's own weights, which are what a run keeps."""
OWN_ADAPTER = {"epi", "l2p", "lfpt5", "mocl", "moe-lora", "progprompt", "sapt"}
"""Methods whose adapter is none of PEFT's."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class Outcome:
    """A finished run, the model it trained, and what each task's training was handed."""

    folder: Path
    record: RunRecord
    model: nn.Module
    weights_before: dict[str, Tensor]
    hooks_before: int
    handed: list[dict[str, Any]] = field(default_factory=list)


Finished = Callable[[str], Outcome]
Runs = Callable[..., Outcome]


def _hooks(model: nn.Module) -> int:
    on_modules = sum(len(getattr(module, kind)) for module in model.modules() for kind in HOOKS)
    return on_modules + sum(
        len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()
    )


@pytest.fixture(scope="module")
def start(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path_factory: pytest.TempPathFactory, quick: None
) -> Runs:
    """Runs a method, and watches the seams between the runner, the model and the training of a task."""

    def go(method: dict[str, Any], folder: Path | None = None, **sections: Any) -> Outcome:
        folder = folder or tmp_path_factory.mktemp("runs") / "run"
        config = make_config(tiny_folder_llama, tiny_stream, folder, method, **sections)
        seen: dict[str, Any] = {}
        handed: list[dict[str, Any]] = []

        def load(*args: Any, **kwargs: Any) -> Any:
            backbone = original_load(*args, **kwargs)
            weights = {key: value.clone() for key, value in backbone.model.state_dict().items()}
            seen.update(model=backbone.model, weights=weights, hooks=_hooks(backbone.model))
            return backbone

        def train(*args: Any, **kwargs: Any) -> Any:
            handed.append({key: kwargs[key] for key in ("index", "current", "mixed", "memory")})
            return original_train(*args, **kwargs)

        original_load, original_train = opening.load_backbone, engine.train_task
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opening, "load_backbone", load)
            patch.setattr(engine, "train_task", train)
            record = run(config)
        return Outcome(folder, record, seen["model"], seen["weights"], seen["hooks"], handed)

    return go


@pytest.fixture(scope="module")
def finished(start: Runs) -> Finished:
    """One run of each method, made when first asked for."""
    made: dict[str, Outcome] = {}

    def get(name: str) -> Outcome:
        if name not in made:
            made[name] = start(METHODS[name])
        return made[name]

    return get


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _kept(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("after-")) for path in (folder / "adapters").iterdir())


def test_every_registered_method_is_under_contract():
    assert {settings["name"] for settings in METHODS.values()} == set(method_names())


@EVERY
def test_a_run_learns_every_task_and_scores_every_cell(finished: Finished, name: str):
    record = finished(name).record
    assert record.status == "finished"
    joint = METHODS[name]["name"] == "joint"
    cells = [(3, 0), (3, 1), (3, 2)] if joint else needed_cells(3)
    assert sorted((s.after, s.task) for s in record.scores) == sorted(cells)
    trained = record.tasks[-1:] if joint else record.tasks
    assert all(task.train_steps and task.loss for task in trained)


@EVERY
def test_training_moves_the_adapter(finished: Finished, name: str):
    before, *others = [adapter(finished(name).folder, k) for k in _kept(finished(name).folder)]
    start = finished(name).weights_before
    # B of LoRA begins as 0, the model's own weights as they are loaded
    assert any(
        not torch.equal(tensor, start.get(key, torch.zeros_like(tensor)))
        for key, tensor in before.items()
        if "lora_A" not in key
    )
    for after in others:
        assert not _same(before, after)
        before = after


@EVERY
def test_the_adapter_loads_outside_of_a_run(finished: Finished, name: str, tiny_folder_llama: Path):
    outcome = finished(name)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder_llama, attn_implementation="eager")
    if METHODS[name]["name"] in MERGING:
        assert plain.load_state_dict(adapter(outcome.folder), strict=False).unexpected_keys == []
        loaded = plain.eval()
    elif METHODS[name]["name"] in OWN_ADAPTER:
        loaded = kifuse.load_adapter(plain, outcome.folder / "adapters" / "after-3")
    else:
        loaded = PeftModel.from_pretrained(plain, str(outcome.folder / "adapters" / "after-3")).eval()
    tokens = torch.arange(40).view(2, 20) + 7
    with torch.no_grad():
        expected = outcome.model.eval()(input_ids=tokens).logits
        found = loaded(input_ids=tokens).logits
    if METHODS[name]["name"] in STACKING:
        # one sum over all ranks there, two here
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(found, expected)


@EVERY
def test_the_base_model_stays_as_it_was(finished: Finished, name: str):
    outcome = finished(name)
    own = ("lora_", "osf_", "experts.", "pairs.", "prefixes.", "prompt_pool.", "router.", "soft_prompts.")
    found = {
        key.replace(".base_layer", ""): value
        for key, value in outcome.model.state_dict().items()
        if not any(each in key for each in own)
    }
    learned = adapter(outcome.folder) if METHODS[name]["name"] in MERGING else {}
    assert _same(found, {**outcome.weights_before, **learned})
    trained = [key for key, p in outcome.model.named_parameters() if p.requires_grad]
    assert all(any(each in key for each in own) for key in trained)


@EVERY
def test_no_hook_and_no_gradient_is_left_on_the_model(finished: Finished, name: str):
    outcome = finished(name)
    # prompts: what is asked is found out, they are put before the input and cut off; four layers add experts,
    # or have prefixes or pairs
    own = {
        "epi": 7,
        "l2p": 3,
        "lfpt5": 3,
        "mocl": 7,
        "mocl, of lora": 6,
        "moe-lora": 4,
        "progprompt": 3,
        "sapt": 6,
    }
    own = own.get(name, own.get(METHODS[name]["name"], 0))
    assert _hooks(outcome.model) == outcome.hooks_before + own
    assert all(p.grad is None for p in outcome.model.parameters())


@EVERY
def test_the_state_survives_a_round_trip_through_files(finished: Finished, name: str, tmp_path: Path):
    saved = finished(name).folder / "state" / "after-3"
    settings = dict(METHODS[name])
    method = build_method(settings.pop("name"), settings)
    memory = load_state(saved, method)
    save_state(tmp_path / "again", method, memory)
    for file in ("method.json", "method.safetensors", "memory.json"):
        assert (tmp_path / "again" / file).read_bytes() == (saved / file).read_bytes()


def test_another_seed_is_another_run(finished: Finished, start: Runs):
    other = start(METHODS["kif"], training={"seed": 1})
    assert not _same(adapter(finished("kif").folder), adapter(other.folder))


@EVERY
def test_a_run_that_is_stopped_ends_as_the_one_of_its_seed_that_was_not(
    finished: Finished,
    name: str,
    tiny_folder_llama: Path,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Once by Ctrl-C in the middle of a task, which saves it, and once by the end of the process."""
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", METHODS[name])
    whole, joint = finished(name), METHODS[name]["name"] == "joint"
    if not joint:
        pressing = PressCtrlC("fruit", 2)
        with pytest.raises(KeyboardInterrupt):
            run(config, progress=pressing)
        assert any("stopped and saved after step 2" in line for line in pressing.said)
    taken = _count_steps(monkeypatch)
    stopping = StopIn("all tasks" if joint else "weather")
    with pytest.raises(Stopped):
        run(config, progress=stopping)
    if not joint:
        assert any("fruit: going on after step 2" in line for line in stopping.said)
        fruit = whole.record.tasks[1]
        # two of its steps were taken before, and one of the next task is here
        assert len(taken) <= (fruit.train_steps or 0) - 2 + (fruit.extra_forward_backward or 0) + 1
    record = run(config)
    assert record.status == "finished"
    for after in _kept(whole.folder):
        assert _same(adapter(whole.folder, after), adapter(tmp_path / "run", after))
    assert _predictions(whole.folder) == _predictions(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint").exists()
    for one, other in zip(whole.record.tasks, record.tasks, strict=True):
        same = {"seconds_train"}
        assert one.model_dump(exclude=same) == other.model_dump(exclude=same)


def _count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    taken: list[int] = []
    original = Trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", counted)
    return taken


@EVERY
def test_a_method_is_handed_the_old_data_of_its_class_only(finished: Finished, name: str):
    outcome = finished(name)
    for given in outcome.handed:
        old = len(given["mixed"]) + len(given["memory"])
        if outcome.record.method.data_class == "real replay":
            assert old == 3 * given["index"]
        else:
            assert old == 0
    kept = outcome.record.memory["examples"]
    assert kept == (9 if outcome.record.method.data_class == "real replay" else 0)
    replayed = sum(task.replayed_examples or 0 for task in outcome.record.tasks)
    assert bool(replayed) == (outcome.record.method.data_class == "real replay")


@pytest.mark.parametrize(
    ("settings", "exact"),
    [
        ({"name": "kif", "fusion": "none", "orthogonality": 0.0}, True),
        ({"name": "kif", "fusion": "average", "average": 0.0}, True),
        ({"name": "kiflora", "fusion": "none", "orthogonality": 0.0}, True),
        ({"name": "ewc", "penalty": 0.0}, True),
        ({"name": "lwf", "strength": 0.0}, True),
        ({"name": "ogd", "basis": 0}, True),
        ({"name": "gpm", "threshold": 0.0, "growth": 0.0}, True),
        ({"name": "migu", "quantile": 0.0}, True),
        # the task ends before the first day, and before the first merge
        ({"name": "forever", "day_steps": 100}, True),
        ({"name": "aimmerging", "interval": 100}, True),
        # theta_b + (theta_Q - theta_b) is theta_Q up to rounding
        ({"name": "recurrent-kif", "inner_steps": 2, "outer_steps": 0, "quantile": 0.0}, False),
    ],
)
def test_without_strength_a_method_is_plain_training(
    finished: Finished, start: Runs, settings: dict[str, Any], exact: bool
):
    plain, found = finished("sequential").folder, start(settings).folder
    for after in (1, 2, 3):
        expected, reached = adapter(plain, after), adapter(found, after)
        if exact:
            assert _same(reached, expected)
        for key in expected:
            torch.testing.assert_close(reached[key], expected[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "o-lora", "orthogonality": 0.0},
        {"name": "n-lora", "strength": 0.0},
        {"name": "ella", "strength": 0.0},
    ],
    ids=lambda settings: settings["name"],
)
def test_without_strength_a_stacking_method_is_inclora(
    finished: Finished, start: Runs, settings: dict[str, Any]
):
    plain, found = finished("inclora").folder, start(settings).folder
    for after in (1, 2, 3):
        assert _same(adapter(found, after), adapter(plain, after))


@pytest.mark.parametrize("name", sorted(STACKING))
def test_a_stacking_method_keeps_earlier_pairs_bit_identical_and_says_how_it_grows(
    finished: Finished, name: str
):
    outcome = finished(name)
    pairs = [adapter(outcome.folder, after) for after in (1, 2, 3)]
    for before, after in pairwise(pairs):
        for key, stored in before.items():
            dim = 0 if "lora_A" in key else 1
            assert torch.equal(after[key].narrow(dim, 0, stored.shape[dim]), stored)
    sizes = [sum(t.numel() for t in each.values()) for each in pairs]
    assert (
        [task.kept_parameters for task in outcome.record.tasks] == sizes == [sizes[0] * k for k in (1, 2, 3)]
    )


@pytest.mark.parametrize(
    "name",
    [
        "joint",
        "replay",
        "kif",
        "inclora",
        "o-lora",
        "ella",
        "recurrent-kif",
        "recurrent-kif, own optimizer",
        "ewc",
        "lwf",
        "ogd",
        "gpm",
        "migu",
        "slao",
        "forever",
        "aimmerging",
        "vr-mcl",
    ],
)
def test_on_a_single_task_a_method_is_plain_training(start: Runs, name: str, alone: Outcome):
    found = start(METHODS[name], data={"order": ["colour"]})
    assert _same(adapter(found.folder, 1), adapter(alone.folder, 1))


@pytest.fixture(scope="module")
def alone(start: Runs) -> Outcome:
    return start(METHODS["sequential"], data={"order": ["colour"]})


def _predictions(folder: Path) -> dict[str, str]:
    root = folder / "predictions"
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in sorted(root.rglob("*.jsonl"))}
