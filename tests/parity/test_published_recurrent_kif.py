"""`rkif-published-code` under the real Trainer against the published loop written out, step by step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kifuse.models.loading import Backbone
from kifuse.recipes import fill_recipe
from kifuse.tasks.encoding import Encoded
from tests.parity.driven import SEED, SIZE, TASK, driven
from tests.parity.literal import Values, loss_of, memory_batches, task_batches, trainable
from tests.reference.published_recurrent import published_task
from tests.two_tasks import adapted, encoded, load

pytestmark = pytest.mark.usefixtures("quick")
# eight steps: two rounds of three, and two steps that the code leaves unfused
RATE, WARMUP, EPOCHS, Q, M, ACCUMULATION = 2e-3, 2, 4, 3, 2, 4
TRAINING: dict[str, Any] = {
    "learning_rate": RATE,
    "epochs": EPOCHS,
    "scheduler": "linear",
    "warmup_steps": WARMUP,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return load(request.getfixturevalue(f"tiny_folder_{request.param}"))


def _recipe(model: str, **settings: Any) -> dict[str, Any]:
    """The method's section of the recipe, for rounds that fit into a few steps."""
    section = yaml.safe_load(fill_recipe("rkif-published-code", model=model).text)["method"]
    return {**section, "inner_steps": Q, "outer_steps": M, **settings}


def _examples(backbone: Backbone, stream: Path) -> list[Encoded]:
    """Two batches of the task, of examples with answers of one length.

    The code takes the mean over the parts of a step of their means, kifuse the mean over its tokens: with
    answers of one length these are the same.
    """
    _, current, _ = encoded(backbone, stream)
    [(length, _)] = Counter(len(example.target_ids) for example in current).most_common(1)
    alike = [example for example in current if len(example.target_ids) == length]
    return (2 * alike)[: 2 * SIZE]


@pytest.fixture(scope="module")
def published(backbone: Backbone, tiny_stream: Path) -> dict[bool, list[Values]]:
    """The parameters after every step of the published loop: in full precision, and as in fp16 (True)."""
    mine = adapted(backbone)
    seed = SEED * 1000 + TASK
    batches = task_batches(_examples(mine, tiny_stream), epochs=EPOCHS, seed=seed, size=SIZE)
    part = SIZE // ACCUMULATION
    steps = [[batch[start : start + part] for start in range(0, SIZE, part)] for batch in batches]
    memory = memory_batches(encoded(mine, tiny_stream)[2], M * len(steps), seed=seed, size=SIZE)
    return {
        half: published_task(
            trainable(mine),
            loss_of(mine),
            steps,
            iter(memory),
            rate=RATE,
            warmup=WARMUP,
            accumulation=ACCUMULATION,
            inner_steps=Q,
            outer_steps=M,
            half=half,
        )
        for half in (False, True)
    }


def _apart(
    expected: list[Values], backbone: Backbone, stream: Path, settings: dict[str, Any], folder: Path
) -> float:
    """How far kifuse is from the published loop, at most over the steps, relative to the way of the task."""
    examples = _examples(backbone, stream)
    reached, _ = driven(backbone, stream, settings, folder, examples=examples, **TRAINING)
    assert list(reached) == list(range(1, len(expected) + 1))
    gone = _distance(expected[-1], trainable(adapted(backbone)))
    return max(_distance(reached[step], values) / gone for step, values in enumerate(expected, start=1))


def _distance(one: Values, other: Values) -> float:
    return float(torch.cat([(one[name] - other[name]).flatten() for name in one]).norm())


@pytest.mark.parametrize("model", ["t5-large", "llama-2-7b"])
def test_the_recipe_takes_every_step_of_the_published_code(
    backbone: Backbone, published: dict[bool, list[Values]], tiny_stream: Path, tmp_path: Path, model: str
):
    """T5's recipe is that of full precision, LLaMA's that of fp16, whose outer steps move nothing."""
    expected = published[model == "llama-2-7b"]
    assert _apart(expected, backbone, tiny_stream, _recipe(model), tmp_path) < 1e-6


@pytest.mark.parametrize("backbone", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("setting", "default"),
    [
        ("reading", "before"),
        ("outer_lr", None),
        ("outer_loss_weight", 1.0),
        ("last_round", "fused"),
        ("fusion", "paper"),
        ("score", "smoothed"),
    ],
)
def test_no_factor_of_the_recipe_can_be_left_out(
    backbone: Backbone,
    published: dict[bool, list[Values]],
    tiny_stream: Path,
    tmp_path: Path,
    setting: str,
    default: Any,
):
    without = _recipe("t5-large", **{setting: default})
    found = _apart(published[False], backbone, tiny_stream, without, tmp_path)
    # python -m pytest -s shows how much each of them matters
    print(f"\n{setting}: {found:.1%} of the way")
    assert found > 1e-3
