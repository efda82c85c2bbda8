from __future__ import annotations

import pytest

from kifuse import errors
from kifuse.errors import did_you_mean


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("agnwes", " Did you mean 'agnews'?"),
        ("SST2", " Did you mean 'sst-2'?"),
        ("boolq", " Did you mean 'boolqa'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_nearest_valid_name_is_suggested(name, expected):
    assert did_you_mean(name, ["agnews", "sst-2", "boolqa"]) == expected


def test_nothing_to_suggest_from():
    assert did_you_mean("anything", []) == ""


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.DataError, errors.ModelError, errors.RunError])
def test_one_except_clause_catches_every_error(kind):
    assert issubclass(kind, errors.KifuseError)
