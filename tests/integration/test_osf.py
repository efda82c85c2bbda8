"""Orthogonal subspaces in whole runs: what was learned survives the boundary, months and interruptions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from kifuse import ContinualLearner, Task, read_stream
from kifuse.config import AdapterConfig
from kifuse.errors import ModelError
from kifuse.models.loading import load_backbone
from kifuse.running.progress import Progress
from kifuse.running.runner import run
from tests.adapters import add_adapter, learned_weights, open_factors
from tests.runs import METHODS, Stopped, adapter, make_config

pytestmark = pytest.mark.usefixtures("quick")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def make(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path) -> Any:
    """Makes a learner in a folder, or takes it up again."""

    def new(folder: str = "learner", progress: Any = False) -> ContinualLearner:
        config = make_config(tiny_folder_llama, tiny_stream, Path("unused"), METHODS["osf"]).model_dump()
        sections = {name: config[name] for name in ("model", "training", "evaluation")}
        settings = {**sections, "data": {"max_input": 64, "max_target": 8}}
        return ContinualLearner(
            str(tiny_folder_llama), METHODS["osf"], tmp_path / folder, settings=settings, progress=progress
        )

    return new


@pytest.fixture(scope="module")
def tasks(tiny_stream: Path) -> list[Task]:
    return list(read_stream(tiny_stream))


def weights(learner: ContinualLearner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learned_weights(learner.model).items()}


def logits(learner: ContinualLearner) -> Tensor:
    ids = torch.arange(40).view(2, 20) + 7
    with torch.no_grad():
        return learner.model.eval()(input_ids=ids).logits


def test_what_was_learned_is_there_after_the_boundary_and_in_another_process(
    make: Any, tasks: list[Task], tiny_folder_llama: Path
):
    learner = make()
    learner.learn(tasks[0])
    told, learned = learner.evaluate(), logits(learner)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder_llama, attn_implementation="eager").eval()
    with torch.no_grad():
        untouched = plain(input_ids=torch.arange(40).view(2, 20) + 7).logits
    assert (learned - untouched).abs().max() > 1e-2
    # the second task's start, and nothing of its training
    open_factors(learner.model, 0.7)
    torch.testing.assert_close(logits(learner), learned, rtol=1e-4, atol=1e-4)
    assert learner.evaluate() == told
    later = make()
    assert torch.equal(logits(later), learned) and later.evaluate() == told
    plain.load_state_dict(adapter(learner.folder, 1), strict=False)
    with torch.no_grad():
        assert torch.equal(plain(input_ids=torch.arange(40).view(2, 20) + 7).logits, learned)


def test_a_learner_goes_on_and_back_and_on_again_bit_for_bit(make: Any, tasks: list[Task]):
    once, reached = make("once"), []
    start = weights(once)
    for task in tasks:
        once.learn(task)
        reached.append(weights(once))
    assert not any(same(reached[0], each) for each in reached[1:])
    for task in tasks:
        make("monthly").learn(task)
    monthly = make("monthly")
    assert same(weights(monthly), reached[-1])
    monthly.rollback(1)
    assert same(weights(monthly), reached[0])
    monthly.learn(tasks[1])
    assert same(weights(monthly), reached[1])
    monthly.rollback(0)
    assert same(weights(monthly), start)
    monthly.learn(tasks[0])
    assert same(weights(monthly), reached[0])


class _FailAt(Progress):
    """Ends a learning at a step as an error would, with the process going on."""

    def __init__(self) -> None:
        self.at: tuple[str, int] | None = None

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """A step was taken."""
        if (task, step) == self.at:
            raise Stopped


def test_a_task_that_failed_in_its_middle_begins_from_the_task_before(make: Any, tasks: list[Task]):
    whole, progress = make("whole"), _FailAt()
    broken = make("broken", progress)
    whole.learn(tasks[0])
    broken.learn(tasks[0])
    whole.learn(tasks[1])
    progress.at = (tasks[1].name, 2)
    with pytest.raises(Stopped):
        broken.learn(tasks[1])
    progress.at = None
    broken.learn(tasks[1])
    assert same(weights(broken), weights(whole))


def test_the_record_says_what_is_frozen_and_what_is_kept(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    record = run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", METHODS["osf"]))
    events = [next(e for e in task.events if e["kind"] == "subspace") for task in record.tasks]
    # of each layer q_proj (32, 32) and v_proj (16, 32), of which 50, 70 and 90% are frozen
    assert [e["frozen"] for e in events] == [2 * (16 + 8), 2 * (22 + 11), 2 * (28 + 14)]
    assert [e["frozen"] + e["trained"] for e in events] == [96, 96, 96]
    assert all(e["in_frozen"] < 1e-5 for e in events)
    assert {task.kept_parameters for task in record.tasks} == {2 * (32 * 32 + 16 * 32)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encoder_decoders_and_bf16_learn_in_float32_weights(
    tiny_folder_t5: Path, tiny_stream: Path, tmp_path: Path, precision: str
):
    model = {"precision": precision, "adapter": {"kind": "osf", "preserve": 0.25}}
    config = make_config(
        tiny_folder_t5,
        tiny_stream,
        tmp_path / "run",
        METHODS["osf"],
        model={"name": str(tiny_folder_t5), **model},
    )
    record = run(config)
    assert record.status == "finished"
    backbone = load_backbone(str(tiny_folder_t5), precision="fp32", device=torch.device("cpu"))
    fresh = add_adapter(backbone.model, AdapterConfig(kind="osf"), encoder_decoder=True, seed=0)
    before = {name: p.detach().clone() for name, p in learned_weights(fresh).items()}
    reached = [before, *(adapter(tmp_path / "run", k) for k in (1, 2, 3))]
    for first, later in pairwise(reached):
        assert first.keys() == later.keys()
        for name, weight in later.items():
            assert weight.dtype == torch.float32
            assert (weight - first[name]).abs().max() > 1e-4, name
    # digits that bf16 does not have
    assert all((w != w.bfloat16().float()).float().mean() > 0.5 for w in reached[-1].values())


@pytest.mark.parametrize(
    ("method", "kind", "words"),
    [
        ("osf", "lora", r"model\.adapter\.kind: found 'lora', expected 'osf'"),
        ("kif", "osf", r"method\.name: found 'kif', expected 'osf' with model\.adapter\.kind 'osf'"),
        ("sequential", "osf", r"method\.name: found 'sequential', expected 'osf'"),
        ("inclora", "osf", r"model\.adapter\.kind: found 'osf', expected one of lora, rslora"),
    ],
)
def test_a_kind_and_a_method_that_do_not_go_together_are_refused_before_the_model_is_loaded(
    tiny_stream: Path, tmp_path: Path, method: str, kind: str, words: str
):
    config = make_config(
        tmp_path / "no model",
        tiny_stream,
        tmp_path / "run",
        METHODS[method],
        model={"adapter": {"kind": kind}},
    )
    with pytest.raises(ModelError, match=words):
        run(config)
