from __future__ import annotations

import pytest

from kifuse.benchmarks import BENCHMARKS, load_benchmark

PUBLISHED = [
    (name, number)
    for name in ("standard-cl", "long-sequence", "superni")
    for number in BENCHMARKS[name].orders
]


@pytest.mark.parametrize(("name", "number"), PUBLISHED)
def test_every_published_order_loads_from_the_published_files(shared_data, name, number):
    layout = BENCHMARKS[name].layout
    stream = load_benchmark(name, number, shared_data / layout)
    assert len(stream) == (4 if name == "standard-cl" else 15)
    for task, wanted in zip(stream, BENCHMARKS[name].orders[number], strict=True):
        assert task.name == wanted or task.name.startswith(f"task{wanted}_")


def test_the_folder_above_will_do(shared_data):
    assert load_benchmark("superni", ["363"], shared_data) == load_benchmark(
        "superni", ["363"], shared_data / "superni"
    )


def test_classification_tasks_load_from_the_other_layout_too(shared_data):
    stream = load_benchmark("long-sequence", ["mnli", "sst-2"], shared_data / "cl_benchmark")
    assert [task.name for task in stream] == ["MNLI", "SST-2"]
