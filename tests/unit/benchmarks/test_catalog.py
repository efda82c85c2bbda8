from __future__ import annotations

import pytest

from kifuse.benchmarks import BENCHMARKS, load_benchmark
from kifuse.errors import DataError

FIFTEEN = {
    "mnli cb wic copa qqp boolqa rte imdb yelp amazon sst-2 dbpedia agnews multirc yahoo",
    "1572 363 1290 181 002 1510 639 1729 073 1590 748 511 591 1687 875",
}


def test_orders_of_a_benchmark_hold_the_same_tasks():
    for benchmark in BENCHMARKS.values():
        assert len({frozenset(order) for order in benchmark.orders.values()}) == 1
        assert all(len(set(order)) == len(order) for order in benchmark.orders.values())
    assert {" ".join(BENCHMARKS[n].orders[o]) for n, o in (("long-sequence", 4), ("superni", 1))} == FIFTEEN


def test_the_demo_stream_loads_without_any_data_at_hand():
    stream = load_benchmark("support-desk")
    assert tuple(task.name for task in stream) == BENCHMARKS["support-desk"].orders[1]
    assert stream.name == "support-desk order 1"
    assert stream.warnings == ()
    assert all(task.train and task.test for task in stream)


def test_the_demo_stream_has_no_example_in_two_splits():
    assert load_benchmark("support-desk").overlaps() == []


def test_no_order_means_the_first():
    assert load_benchmark("support-desk") == load_benchmark("support-desk", 1)


def test_own_orders_are_lists_of_names():
    names = BENCHMARKS["support-desk"].orders[1]
    assert [task.name for task in load_benchmark("support-desk", [names[2], names[0]])] == [
        names[2],
        names[0],
    ]


@pytest.mark.parametrize(
    ("name", "order", "message"),
    [
        ("longsequence", None, "No benchmark 'longsequence'.*Did you mean 'long-sequence'"),
        ("long-sequence", 1, "has no order 1, expected one of 4, 5, 6"),
        ("superni", 1, "needs its data: give the folder in the layout 'superni'"),
    ],
)
def test_mistakes_are_named(name, order, message):
    with pytest.raises(DataError, match=message):
        load_benchmark(name, order)
