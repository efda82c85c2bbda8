"""Rows of earlier tasks that a user gives to the callback."""

from __future__ import annotations

import pytest

from kifuse.driving.row_memory import given_rows
from kifuse.errors import RunError


class SFTTrainer:
    """One of TRL before 1.8, which forgets its formatting_func."""


def test_texts_are_refused_where_trl_does_not_say_how_it_processed_the_others(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("kifuse.driving.row_memory.version", lambda library: "1.0.0")
    with pytest.raises(RunError, match=r"hold text, but no .* TRL 1\.0\.0 does not .* --upgrade trl"):
        given_rows([{"text": "raw"}], SFTTrainer(), {"input_ids": [1]})
