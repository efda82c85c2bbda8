"""When an earlier start's configuration is that of the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kifuse.running.run_start import config_json, differences
from tests.runs import make_config


@pytest.fixture
def config() -> dict[str, Any]:
    method = {"name": "kif", "gamma": 0.6}
    return config_json(make_config(Path("model"), Path("stream"), Path("run"), method))


def test_a_key_that_an_older_version_did_not_know_is_its_default(config: dict[str, Any]) -> None:
    training = {key: value for key, value in config["training"].items() if key != "report_to"}
    adapter = {key: value for key, value in config["model"]["adapter"].items() if key != "kind"}
    old = {**config, "training": training, "model": {**config["model"], "adapter": adapter}}
    assert differences(old, config) == [] == differences(config, old)
    now = {**config, "model": {**config["model"], "adapter": {**adapter, "kind": "dora"}}}
    assert differences(old, now) == ["model.adapter.kind ('lora' there, 'dora' here)"]


def test_a_section_that_an_older_version_did_not_know_has_its_defaults(config: dict[str, Any]) -> None:
    old = {key: value for key, value in config.items() if key != "evaluation"}
    now = {**config, "evaluation": {**config["evaluation"], "full_matrix": True}}
    found = differences(old, now)
    assert any(each.startswith("evaluation.full_matrix (False there") for each in found)


def test_a_methods_settings_that_are_left_out_are_its_defaults(config: dict[str, Any]) -> None:
    said = {**config, "method": {**config["method"], "quantile": 0.8}}
    assert differences(config, said) == []
    other = {**config, "method": {**config["method"], "quantile": 0.9}}
    assert differences(config, other) == ["method.quantile (0.8 there, 0.9 here)"]


def test_another_method_is_one_difference_and_its_settings(config: dict[str, Any]) -> None:
    found = differences(config, {**config, "method": {"name": "replay"}})
    assert found == ["method.gamma (0.6 there, None here)", "method.name ('kif' there, 'replay' here)"]


def test_what_cannot_be_read_any_more_is_compared_as_it_is(config: dict[str, Any]) -> None:
    old = {**config, "training": {**config["training"], "of_another_time": 1}}
    assert "training.of_another_time (1 there, None here)" in differences(old, config)
    mine = {**config, "method": {"name": "of-my-own", "a": 1}}
    assert differences(mine, {**mine, "method": {"name": "of-my-own", "a": 2}}) == [
        "method.a (1 there, 2 here)"
    ]
