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


def test_a_message_that_quotes_a_huge_text_keeps_its_ends():
    for quoted in ("x" * 10**6, "\n" * 10**6, "\x1b" * 10**6):
        message = str(errors.DataError(f"a.jsonl:1: 'output' is {quoted}, expected text."))
        assert message.startswith("a.jsonl:1: 'output' is ") and message.endswith(", expected text.")
        assert len(message) < 20_000


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.DataError, errors.ModelError, errors.RunError])
def test_one_except_clause_catches_every_error(kind):
    assert issubclass(kind, errors.KifuseError)
