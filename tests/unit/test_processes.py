"""How work is shared out among processes, and what one process alone does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kifuse.errors import DataError
from kifuse.processes import ALONE, Processes


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 5))
def test_every_piece_of_work_is_one_process_s_and_none_has_much_more(costs: list[int], count: int):
    shares = [Processes(rank, count).shared_out(costs) for rank in range(count)]
    assert sorted(place for share in shares for place in share) == list(range(len(costs)))
    loads = [sum(costs[place] for place in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_one_process_needs_nobody():
    def fails() -> None:
        raise DataError("wrong")

    assert ALONE.gathered("mine") == ["mine"] and ALONE.joined({3: "x"}) == {3: "x"}
    assert ALONE.of_first(lambda: 5) == 5 and ALONE.any_of((True, False), "cpu") == [True, False]
    with pytest.raises(DataError, match="wrong"):
        ALONE.of_first(fails)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Processes.of_launcher() is ALONE
