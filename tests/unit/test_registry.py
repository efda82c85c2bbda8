"""Names lead to methods; wrong names and settings are explained."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import field
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from kifuse import own_method, registry
from kifuse.errors import ConfigError
from kifuse.method_catalog import METHODS, Entry
from kifuse.methods.base import Method
from kifuse.registry import build_method, check_settings, method_entry, method_names


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class Toy:
    units: Literal["matrix", "rank"] = "matrix"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.7
    rate: Annotated[float, Field(gt=0)] | None = None
    steps: Annotated[int, Field(ge=1)] = 8
    smooth: bool = True
    _state: Any = field(default=None, init=False)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    module = ModuleType("toy_method")
    module.Toy = Toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_method", module)
    entry = Entry("toy_method:Toy", "A toy.", "replay-free", preset={"units": "rank"})
    monkeypatch.setitem(METHODS, "toy", entry)
    return "toy"


def test_the_names_are_those_of_the_papers() -> None:
    kif = ["kif", "kiflora", "kif-m", "kiflora-m", "tasl", "weight-ensemble", "ema", "recurrent-kif"]
    assert method_names()[:11] == ["sequential", "joint", "replay", *kif]


@pytest.mark.parametrize("name", method_names())
def test_every_method_can_be_made_with_its_defaults(name: str) -> None:
    made = build_method(name)
    for key, value in METHODS[name].preset.items():
        assert getattr(made, key) == value


def test_a_preset_holds_unless_the_user_says_otherwise(toy: str) -> None:
    assert build_method(toy).units == "rank"  # type: ignore[attr-defined]
    assert build_method(toy, {"units": "matrix"}).units == "matrix"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "nearest"), [("KIF", "kif"), ("recurent-kif", "recurrent-kif"), ("seq", None)]
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        method_entry(name)
    text = str(caught.value)
    assert "sequential, joint, replay, kif, kiflora, kif-m, " in text
    assert (f"Did you mean '{nearest}'?" if nearest else "kifuse ls methods") in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"bata": 1},
            "method.bata: found the unknown key 'bata' with 1, expected one of the keys units, beta",
        ),
        ({"bata": 1}, "Did you mean 'beta'?"),
        ({"_state": 1}, "the unknown key '_state'"),
        ({"beta": 2}, "method.beta: found 2, expected a number of at least 0 and at most 1."),
        ({"beta": "x"}, "method.beta: found 'x' (text), expected a number"),
        ({"rate": 0}, "method.rate: found 0, expected a number above 0, or null."),
        ({"rate": True}, "method.rate: found a truth value, expected a number above 0, or null."),
        ({"steps": True}, "method.steps: found a truth value, expected a whole number of at least 1."),
        ({"steps": 1.5}, "method.steps: found 1.5, expected a whole number of at least 1."),
        ({"smooth": "maybe"}, "method.smooth: found 'maybe' (text), expected true or false."),
        ({"units": "ranks"}, "expected one of 'matrix', 'rank'. Did you mean 'rank'?"),
    ],
)
def test_a_wrong_setting_is_explained(toy: str, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_method(toy, settings)
    assert expected in str(caught.value)


def test_all_wrong_settings_come_at_once(toy: str) -> None:
    keys = [
        problem.key for problem in check_settings(toy, {"bata": 1, "beta": 2, "steps": True, "smooth": False})
    ]
    assert sorted(keys) == [("method", "bata"), ("method", "beta"), ("method", "steps")]


@pytest.mark.parametrize(("name", "default"), [("kif", "matrix"), ("kiflora", "rank")])
def test_advice_names_the_default_of_the_name_that_was_written(name: str, default: str) -> None:
    (problem,) = check_settings(name, {"units": "foo"})
    assert f"({default})" in problem.advice


def test_an_exponent_without_a_dot_is_a_number(toy: str) -> None:
    assert build_method(toy, {"rate": "1e-3"}).rate == 0.001  # type: ignore[attr-defined]


def test_listing_methods_imports_none_of_them() -> None:
    code = (
        "import sys, kifuse.registry as r; r.method_names(); "
        "assert not {'torch', 'transformers'} & set(sys.modules); "
        "assert not [m for m in sys.modules if m.startswith('kifuse.methods')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class Mine(Method):
    """A user's own.

    It has more to say.
    """

    strength: float = 1.0


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))
    monkeypatch.setattr(registry, "OWN", {})


def test_a_method_of_ones_own_is_found_by_its_name(own_names: None) -> None:
    own_method.register("mine", Mine)
    made = build_method("mine", {"strength": 2.0})
    assert isinstance(made, Mine) and made.strength == 2.0
    assert registry.name_of(made) == "mine"
    entry = method_entry("mine")
    assert (entry.summary, entry.data_class) == ("A user's own.", "replay-free")
    with pytest.raises(ConfigError, match=r"method\.strenght"):
        build_method("mine", {"strenght": 2.0})
    own_method.register("mine", Mine, "Again, as in a notebook.")
    assert method_entry("mine").summary == "Again, as in a notebook."


@pytest.mark.parametrize(
    ("name", "cls", "word"),
    [
        ("My Method", Mine, "expected small letters, digits and dashes"),
        ("kif", Mine, "kifuse has a method 'kif'"),
        ("other", Toy, "Derive the class from kifuse.Method"),
        ("other", Mine(), "Derive the class from kifuse.Method"),
        ("other", Method, "Derive the class from kifuse.Method"),
    ],
)
def test_what_is_no_method_of_ones_own_is_refused(own_names: None, name: str, cls: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        own_method.register(name, cls)
    assert "other" not in registry.METHODS
