"""The settings of the learners that the tests make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kifuse import ContinualLearner
from tests.runs import make_config

Make = Callable[..., ContinualLearner]
METHOD = {"name": "recurrent-kif", "inner_steps": 2}


def settings_of(model: Path, stream: Path) -> dict[str, Any]:
    """Return settings for a short training on short texts."""
    config = make_config(model, stream, Path("unused"), METHOD).model_dump()
    sections = {name: config[name] for name in ("model", "memory", "training", "evaluation")}
    return {**sections, "data": {"max_input": 64, "max_target": 8}}
