"""Recurrent-KIF under the real Trainer against Algorithm 1 written out, round by round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse.config import TrainingConfig
from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from kifuse.running.one_task import train_task
from tests.parity.literal import Values, loss_of, memory_batches, task_batches, trainable
from tests.reference.recurrent import Round, recurrent_kif
from tests.two_tasks import adapted, encoded, load

pytestmark = pytest.mark.usefixtures("quick")
RATE, DECAY, EPOCHS, SEED = 1e-3, 0.01, 2, 7
TASK = 1

PAPER: dict[str, Any] = {}
PUBLISHED: dict[str, Any] = {"both": (0.4, 0.6), "neither": (0.5, 0.5), "importance": "uncertainty"}


@pytest.fixture(scope="module")
def backbone(tiny_folder_llama: Path, quick: None) -> Backbone:
    return load(tiny_folder_llama)


def _driven(backbone: Backbone, stream: Path, settings: dict[str, Any], folder: Path) -> dict[int, Values]:
    """The trainable values after every step, fusions done, of a task learned under the Trainer."""
    mine = adapted(backbone)
    _, current, memory = encoded(mine, stream)
    reached: dict[int, Values] = {}

    def keep(step: int, steps: int, loss: float | None, passes: int) -> None:
        reached.setdefault(step, trainable(mine))

    train_task(
        mine.model,
        mine,
        build_method("recurrent-kif", settings),
        TrainingConfig(
            learning_rate=RATE,
            epochs=EPOCHS,
            batch_size=4,
            seed=SEED,
            scheduler="constant",
            weight_decay=DECAY,
            max_grad_norm=0.0,
        ),
        index=TASK,
        name="second",
        current=current,
        memory=memory,
        folder=folder,
        listener=keep,
    )
    return reached


def _literal(
    backbone: Backbone, stream: Path, inner: int, outer: int, once: bool = False, **options: Any
) -> tuple[list[Round], list[int]]:
    """The rounds by Algorithm 1, or all of them as one, and the steps at which they end."""
    mine = adapted(backbone)
    _, current, memory = encoded(mine, stream)
    seed = SEED * 1000 + TASK
    steps = task_batches(current, epochs=EPOCHS, seed=seed)
    near = [steps[start : start + inner] for start in range(0, len(steps), inner)]
    drawn = memory_batches(memory, outer * len(near), seed=seed)
    far = [drawn[i * outer : (i + 1) * outer] for i in range(len(near))]
    if once:
        near, far, inner = [steps], [drawn], len(steps)
    rounds = recurrent_kif(
        trainable(mine),
        loss_of(mine),
        near,
        far,
        rate_in=RATE,
        weight_decay=DECAY,
        optimizer="adamw",
        **options,
    )
    ends = [min((i + 1) * inner, len(steps)) for i in range(len(near))]
    return rounds, ends


@pytest.mark.parametrize("variant", ["paper", "published"])
@pytest.mark.parametrize("optimizer", ["shared", "own"])
@pytest.mark.parametrize("moments", ["keep", "reset"])
# six steps: three rounds of two, or one of four and a short one of two
@pytest.mark.parametrize(("inner", "outer"), [(2, 1), (4, 2)])
def test_every_round_ends_where_the_algorithm_ends(
    backbone: Backbone,
    tiny_stream: Path,
    tmp_path: Path,
    variant: str,
    optimizer: str,
    moments: str,
    inner: int,
    outer: int,
):
    settings = {
        "inner_steps": inner,
        "outer_steps": outer,
        "outer_optimizer": optimizer,
        "moments": moments,
        "fusion": variant,
        "score": "uncertainty" if variant == "published" else "smoothed",
    }
    options = {**(PUBLISHED if variant == "published" else PAPER), "forget_moments": moments == "reset"}
    if variant == "published":
        settings.update(alpha_inner=0.85, alpha_outer=0.15)
    if optimizer == "own":
        settings["outer_lr"] = 2e-3
    options.update(share_optimizer=optimizer == "shared", rate_out=2e-3)
    rounds, ends = _literal(backbone, tiny_stream, inner, outer, **options)
    reached = _driven(backbone, tiny_stream, settings, tmp_path)
    assert ends[-1] == max(reached) == 6 and len(rounds) >= 2
    for round_, step in zip(rounds, ends, strict=True):
        torch.testing.assert_close(reached[step], round_.theta_next, rtol=1e-4, atol=2e-6)
        # what the tolerance would hide
        moved = max(
            float((round_.theta_next[n] - round_.theta_start[n]).abs().max()) for n in round_.theta_next
        )
        assert moved > 1e-3


def _module(name: str) -> str:
    return name.rpartition(".lora_")[0]


def _layer(name: str) -> str:
    return name.split(".layers.")[1].split(".")[0]


SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "static outer importance": ({"outer_importance": "static"}, {"static_outer": True}),
    "no masks": ({"masks": "none"}, {"masks": "none"}),
    "one weight for all": ({"masks": "global"}, {"masks": "global"}),
    "soft masks": ({"masks": "soft", "tau": 0.4}, {"masks": "soft", "tau": 0.4}),
    "without sharing": ({"share": False, "quantile": 0.5}, {"share": False, "fraction": 0.5}),
    "second order": ({"importance": "second"}, {"importance": "second"}),
    "magnitude": ({"importance": "magnitude"}, {"importance": "magnitude"}),
    "last step": ({"smoothing": False}, {"importance": "last"}),
    "a share of the importance": ({"threshold": "share", "importance_share": 0.7}, {"carry": 0.7}),
    "by module": ({"scope": "module"}, {"group_of": _module}),
    "a share of each layer": ({"threshold": "share", "scope": "layer"}, {"carry": 0.9, "group_of": _layer}),
    "one fusion": ({"rounds": "one"}, {}),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_ends_where_the_algorithm_ends(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, name: str
):
    settings, options = SWITCHES[name]
    once = "rounds" in settings
    rounds, ends = _literal(backbone, tiny_stream, 2, 2, once, rate_out=RATE, share_optimizer=True, **options)
    reached = _driven(backbone, tiny_stream, {"inner_steps": 2, "outer_steps": 2, **settings}, tmp_path)
    assert len(rounds) == (1 if once else 3)
    for round_, step in zip(rounds, ends, strict=True):
        torch.testing.assert_close(reached[step], round_.theta_next, rtol=1e-4, atol=2e-6)


def test_gradient_importance_and_other_averages(backbone: Backbone, tiny_stream: Path, tmp_path: Path):
    settings = {"inner_steps": 2, "outer_steps": 2, "importance": "gradient", "quantile": 0.5}
    options = {"importance": "gradient", "fraction": 0.5, "alpha1": 0.3, "alpha2": 0.8, "rate_out": RATE}
    rounds, ends = _literal(backbone, tiny_stream, 2, 2, share_optimizer=True, **options)
    reached = _driven(backbone, tiny_stream, {**settings, "alpha_inner": 0.3, "alpha_outer": 0.8}, tmp_path)
    for round_, step in zip(rounds, ends, strict=True):
        torch.testing.assert_close(reached[step], round_.theta_next, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("rounds", ["many", "one"])
def test_a_memory_step_is_taken_at_the_rate_of_the_step_before_it(
    backbone: Backbone, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: str
):
    """A linear schedule has reached 0 after the last step: a memory step at that rate would do nothing.

    A single fusion takes the same memory steps at the same rates, so that it is no weaker for its schedule.
    """
    rates: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    mine = adapted(backbone)
    _, current, memory = encoded(mine, tiny_stream)
    train_task(
        mine.model,
        mine,
        build_method("recurrent-kif", {"inner_steps": 3, "outer_steps": 2, "rounds": rounds}),
        TrainingConfig(learning_rate=6e-3, epochs=EPOCHS, batch_size=4, scheduler="linear"),
        index=TASK,
        name="second",
        current=current,
        memory=memory,
        folder=tmp_path,
    )
    inner = [6e-3, 5e-3, 4e-3, 3e-3, 2e-3, 1e-3]
    if rounds == "many":
        assert rates == pytest.approx([*inner[:3], 4e-3, 4e-3, *inner[3:], 1e-3, 1e-3])
    else:
        assert rates == pytest.approx([*inner, 4e-3, 4e-3, 1e-3, 1e-3])
