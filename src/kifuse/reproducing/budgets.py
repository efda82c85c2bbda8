"""How much a reproduction may cost: the paper's own settings, two CPU cores, or minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kifuse.errors import ConfigError, did_you_mean
from kifuse.recipes.catalog import WRITTEN_FOR


@dataclass(frozen=True)
class Budget:
    """Settings that are changed in every row of a table.

    Attributes:
        name: Its name in the command.
        summary: What it means, in words.
        model: The model if none is named.
        seeds: The seeds if none are named.
        settings: Values by dotted key, in place of the recipes' values. A key that a row of the table varies
            keeps the row's value.
        superni: Values that are different for SuperNI.
    """

    name: str
    summary: str
    model: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    superni: Mapping[str, Any] = field(default_factory=dict)

    def settings_for(self, benchmark: str) -> dict[str, Any]:
        """The values for a benchmark: SuperNI has long instructions and free answers."""
        return {**self.settings, **(self.superni if benchmark == "superni" else {})}


def _answers(longest: int) -> dict[str, int]:
    """Allow the same number of tokens for answers in training and for generated answers."""
    return {"data.max_target": longest, "evaluation.max_new_tokens": longest}


_PLAIN = {
    "model.quantization": "none",
    "model.precision": "auto",
    "model.adapter.rank": 8,
    "model.adapter.alpha": 32,
    "model.adapter.dropout": 0.0,
    "training.accumulation": 1,
    "training.warmup_steps": 0,
    "training.learning_rate": 1e-3,
    "training.scheduler": "linear",
}

BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            "paper",
            "the recipes as they are: 1,000 examples a task, 10 epochs, T5-large; needs a GPU",
            WRITTEN_FOR,
            (42,),
            {},
        ),
        Budget(
            "bench",
            "150 examples a task, 4 epochs, inputs of 100 tokens, 20 kept, SmolLM2-135M; a run of four "
            "tasks takes about an hour on a CPU core",
            "smollm2-135m",
            (0,),
            {
                **_PLAIN,
                "data.train_examples": 150,
                "data.test_examples": 200,
                "data.max_input": 100,
                **_answers(16),
                "memory.per_task": 20,
                "training.epochs": 4,
                "training.batch_size": 8,
            },
            {"data.max_input": 320, **_answers(64)},
        ),
        Budget(
            "smoke",
            "8 examples a task, one epoch, 4 test examples: checks that everything runs; the scores "
            "mean nothing",
            "smollm2-135m",
            (0,),
            {
                **_PLAIN,
                "data.train_examples": 8,
                "data.test_examples": 4,
                "data.max_input": 192,
                **_answers(8),
                "memory.per_task": 2,
                "training.epochs": 1,
                "training.batch_size": 4,
            },
            {"data.max_input": 320, **_answers(16)},
        ),
    )
}


def budget_of(name: str) -> Budget:
    """A budget by its name.

    Raises:
        ConfigError: There is no budget of that name.
    """
    if name not in BUDGETS:
        nearest = did_you_mean(name, BUDGETS)
        raise ConfigError(f"--budget: found {name!r}, expected one of {', '.join(BUDGETS)}.{nearest}")
    return BUDGETS[name]
