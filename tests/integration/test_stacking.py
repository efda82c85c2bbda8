"""Methods that keep one pair a task: a learner's months, what is taken over, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kifuse import ContinualLearner, Task, read_stream
from kifuse.errors import ModelError, RunError
from kifuse.record.run_record import RunRecord
from kifuse.running.progress import Progress
from kifuse.running.runner import run
from tests.adapters import frozen_tensors, stacked
from tests.runs import METHODS, StopIn, Stopped, adapter, make_config

pytestmark = pytest.mark.usefixtures("quick")

Make = Callable[..., ContinualLearner]


@pytest.fixture
def make(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path) -> Make:
    """Makes a learner in a folder, or takes it up again."""

    def new(folder: str = "learner", progress: Any = False) -> ContinualLearner:
        config = make_config(tiny_folder_llama, tiny_stream, Path("unused"), METHODS["o-lora"]).model_dump()
        sections = {name: config[name] for name in ("model", "training", "evaluation")}
        settings = {**sections, "data": {"max_input": 64, "max_target": 8}}
        return ContinualLearner(
            str(tiny_folder_llama), METHODS["o-lora"], tmp_path / folder, settings=settings, progress=progress
        )

    return new


@pytest.fixture(scope="module")
def tasks(tiny_stream: Path) -> list[Task]:
    return list(read_stream(tiny_stream))


def _all(learner: ContinualLearner) -> dict[str, Tensor]:
    """Trained and stored values."""
    found = {name: p for name, p in learner.model.named_parameters() if "lora_" in name}
    return {name: p.detach().clone() for name, p in found.items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_learner_goes_on_and_back_and_on_again_bit_for_bit(make: Make, tasks: list[Task]):
    once = make("once")
    reached = []
    for task in tasks:
        once.learn(task)
        reached.append(_all(once))
    for task in tasks:
        make("monthly").learn(task)
    monthly = make("monthly")
    assert _same(_all(monthly), reached[-1]) and stacked(monthly.model) == 2
    monthly.rollback(1)
    assert _same(_all(monthly), reached[0]) and stacked(monthly.model) == 0
    monthly.learn(tasks[1])
    assert _same(_all(monthly), reached[1])
    assert _same(_all(make("monthly")), reached[1])
    monthly.rollback(0)
    assert frozen_tensors(monthly.model) == {}
    monthly.learn(tasks[0])
    assert _same(_all(monthly), reached[0])
    # each state stands alone: whoever needs the room deletes earlier ones, and loses only the way back there
    for part in ("adapters", "state"):
        shutil.rmtree(once.folder / part / "after-1")
    once = make("once")
    assert _same(_all(once), reached[2])
    with pytest.raises(RunError, match="no state after any of the first 1 tasks is complete"):
        once.rollback(1)
    assert once.learned == 3
    once.rollback(2)
    assert _same(_all(once), reached[1])
    once.learn(tasks[2])
    assert _same(_all(once), reached[2])


class _FailAt(Progress):
    """Ends a learning at a step as an error would, with the process going on."""

    def __init__(self) -> None:
        self.at: tuple[str, int] | None = None

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """A step was taken."""
        if (task, step) == self.at:
            raise Stopped


@pytest.mark.parametrize("number", [1, 2])
def test_a_task_that_failed_in_its_middle_begins_from_the_task_before(
    make: Make, tasks: list[Task], number: int
):
    whole, progress = make("whole"), _FailAt()
    broken = make("broken", progress)
    for task in tasks[:number]:
        whole.learn(task)
        broken.learn(task)
    whole.learn(tasks[number])
    progress.at = (tasks[number].name, 2)
    with pytest.raises(Stopped):
        broken.learn(tasks[number])
    dirty = dict(broken._engine.model.named_parameters())
    assert not _same({name: dirty[name] for name in _all(whole)}, _all(whole))
    assert stacked(broken._engine.model) == number
    progress.at = None
    # in the same process, with the model as the failure left it
    broken._engine.learn(number + 1, tasks[number], earlier=[])
    assert _same(_all(broken), _all(whole))


@pytest.mark.parametrize("name", ["inclora", "o-lora", "ella"])
def test_the_first_task_is_taken_over_from_a_plain_run(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, name: str
):
    def go(method: str, folder: str, **options: Any) -> RunRecord:
        return run(make_config(tiny_folder_llama, tiny_stream, tmp_path / folder, METHODS[method]), **options)

    go("sequential", "plain")
    alone, helped = go(name, "alone"), go(name, "helped", reuse=tmp_path / "plain")
    assert helped.notes and not alone.notes
    for after in (1, 2, 3):
        assert _same(adapter(tmp_path / "alone", after), adapter(tmp_path / "helped", after))
    kept = [[task.kept_parameters for task in record.tasks] for record in (alone, helped)]
    assert kept[0] == kept[1]


def test_n_lora_trains_its_first_task_itself(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path):
    plain = make_config(tiny_folder_llama, tiny_stream, tmp_path / "plain", METHODS["sequential"])
    run(plain)
    own = make_config(tiny_folder_llama, tiny_stream, tmp_path / "own", METHODS["n-lora"])
    assert run(own, reuse=tmp_path / "plain").notes == []


def test_a_fresh_pair_is_not_orthogonal_to_the_stored_ones(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    """A penalty of exactly 0 from the second task's start would mean that nothing was stored."""
    record = run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", METHODS["o-lora"]))
    first, *later = ([e for e in task.events if e["kind"] == "penalty"] for task in record.tasks)
    assert first == []
    for (event,) in later:
        assert event["steps"][0] == 0 and event["values"][0] > 0
        assert event["weighted"] == [0.5 * value for value in event["values"]]


@pytest.mark.parametrize("kind", ["dora", "ia3", "full"])
def test_kinds_that_do_not_add_up_are_refused_before_the_model_is_loaded(
    tiny_stream: Path, tmp_path: Path, kind: str
):
    config = make_config(
        tmp_path / "no model",
        tiny_stream,
        tmp_path / "run",
        METHODS["inclora"],
        model={"adapter": {"kind": kind}},
    )
    with pytest.raises(
        ModelError, match=rf"model\.adapter\.kind: found '{kind}', expected one of lora, rslora"
    ):
        run(config)


def test_a_run_with_rank_stabilised_adapters_goes_on_bit_for_bit(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    def config(folder: str) -> Any:
        shape = {"rank": 2, "alpha": 8, "dropout": 0.1, "kind": "rslora"}
        return make_config(
            tiny_folder_llama, tiny_stream, tmp_path / folder, METHODS["inclora"], model={"adapter": shape}
        )

    run(config("whole"))
    with pytest.raises(Stopped):
        run(config("stopped"), progress=StopIn("weather"))
    run(config("stopped"))
    assert _same(adapter(tmp_path / "whole"), adapter(tmp_path / "stopped"))


def test_the_product_of_n_lora_that_needs_square_layers_is_refused(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    method = {"name": "n-lora", "product": "AB"}
    with pytest.raises(ModelError, match=r"method 'n-lora': product: found 'AB'.*v_proj.* 32 inputs and 16"):
        run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", method))
