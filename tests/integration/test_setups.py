"""The table of Trainers and set-ups in docs/your-own-script.md says what is so, cell by cell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from kifuse.errors import RunError
from tests.months import method_of, same, weights

pytest.importorskip("trl", reason="TRL is an optional extra: pip install 'kifuse[trl]'")
from tests.setups import SETUPS, OwnRows

pytestmark = pytest.mark.usefixtures("quick")
PAGE = Path(__file__).parents[2] / "docs" / "your-own-script.md"
METHODS: dict[str, dict[str, Any]] = {
    "`kif`": {"name": "kif", "fusion": "none"},
    "`replay`": {"name": "replay"},
    "`recurrent-kif`": {"name": "recurrent-kif", "inner_steps": 1},
    "`ewc`, `ogd`": {"name": "ewc"},
    "`kif`, `fisher: per_example`": {"name": "kif", "order": "second", "fisher": "per_example"},
    "`der++`": {"name": "der++", "tokens": 5},
    "`lwf`, `asft`": {"name": "lwf"},
    "`vr-mcl`": {"name": "vr-mcl"},
}
"""By the heading of the table's column: a method of the kind."""


def table() -> Iterator[tuple[str, str, str]]:
    """Set-up, column and cell, of each cell."""
    lines = PAGE.read_text("utf-8").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| Trainer and set-up |"))
    headings = [part.strip() for part in lines[start].split("|")[2:-1]]
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        name, *cells = [part.strip() for part in line.split("|")[1:-1]]
        yield from ((name, *pair) for pair in zip(headings, cells, strict=True))


CELLS = list(table())


def why(mark: str) -> str:
    """What the refusal says that a mark in the table stands for: the quoted words behind it."""
    found = re.search(rf"^- {re.escape(mark)}: \"(.+?)\"", PAGE.read_text("utf-8"), re.MULTILINE)
    assert found, mark
    return found[1]


class Steps(TrainerCallback):
    """Counts the steps that were begun."""

    begun = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun += 1


class Moved(TrainerCallback):
    """Counts the steps in which the optimizer moved."""

    steps = 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1


def learned(
    setup: str, folder: Path, *callbacks: Any, memory: OwnRows | None = None
) -> dict[str, torch.Tensor]:
    trainer = SETUPS[setup](folder, list(callbacks))
    if memory is not None:
        memory.trainer = trainer
    trainer.train()
    return weights(trainer.model)


def test_the_table_has_all_set_ups_and_methods():
    assert list(dict.fromkeys(setup for setup, _, _ in CELLS)) == list(SETUPS)
    assert list(dict.fromkeys(column for _, column, _ in CELLS)) == list(METHODS)


LAYERS = [
    (setup, settings, cell)
    for setup, column, cell in CELLS
    for of, settings in (("`kif`", {"name": "migu"}), ("`ewc`, `ogd`", {"name": "gpm", "examples": 3}))
    if column == of
]
"""Methods that look into layers, by the column that the page says they share."""
NO_LAYERS = {
    ("the same with prompt tuning", "migu"): "no linear layer is trained",
    ("the same with prompt tuning", "gpm"): "no linear layer is trained",
    ("`GRPOTrainer`", "migu"): "with input_ids or inputs_embeds",
}


@pytest.mark.parametrize(("setup", "settings", "cell"), LAYERS)
def test_what_looks_into_layers_works_where_the_page_says(
    setup: str, settings: dict[str, Any], cell: str, tmp_path: Path
):
    callback, moved = method_of(settings).callback(), Moved()
    hidden = NO_LAYERS.get((setup, settings["name"]))
    if cell != "yes" or hidden:
        with pytest.raises(RunError, match=re.escape(hidden or why(cell.removeprefix("no ")))):
            learned(setup, tmp_path, callback, moved)
        assert not moved.steps
        return
    found = learned(setup, tmp_path, callback, moved)
    assert moved.steps == 1 and all(bool(torch.isfinite(value).all()) for value in found.values())


@pytest.mark.parametrize(("setup", "column", "cell"), CELLS)
def test_each_cell_of_the_table_is_so(setup: str, column: str, cell: str, tmp_path: Path):
    """Works: a step of a later task is trained, and by a method without strength as without the callback."""
    method, steps, memory = method_of(METHODS[column]), Steps(), None
    if method.old_data != "none" and "kept" not in method.needs:
        memory = OwnRows()
    callback = method.callback(**({} if memory is None else {"memory": memory}))
    if cell != "yes":
        with pytest.raises(RunError, match=re.escape(why(cell.removeprefix("no ")))):
            learned(setup, tmp_path, callback, steps, memory=memory)
        assert not steps.begun
        return
    found = learned(setup, tmp_path, callback, steps, memory=memory)
    assert steps.begun == 1 and not any(callback.guard.bad.values())
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    if column == "`kif`":
        assert same(found, learned(setup, tmp_path / "plain"))
    elif memory is not None and method.old_data == "steps":
        assert callback.context.replayed
