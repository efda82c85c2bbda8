"""Named benchmarks: their tasks, orders and papers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.readers import read_stream
from kifuse.tasks.task import Metric, TaskStream

_BUNDLED = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Benchmark:
    """A published or built-in stream of tasks.

    Args:
        name: The name by which the user chooses it.
        summary: One line about it.
        layout: The layout in which its data is published.
        orders: Task names in order, by the number that the papers give the order.
        paper: The paper that the orders and the protocol come from.
        bundled: The folder inside kifuse that holds the data; None when the user brings the data.
    """

    name: str
    summary: str
    layout: str
    orders: Mapping[int, tuple[str, ...]]
    paper: str
    bundled: str | None = None


def _order(names: str) -> tuple[str, ...]:
    return tuple(names.split())


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="support-desk",
            summary="Built-in demo: short tasks of a help desk, no download.",
            layout="jsonl",
            orders={1: _order("01-queue 02-urgency 03-subject 04-next-step 05-reply-tone")},
            paper="",
            bundled="support_desk",
        ),
        Benchmark(
            name="standard-cl",
            summary="Four topic and sentiment tasks (AG News, Amazon, DBpedia, Yahoo).",
            layout="long_sequence",
            orders={
                1: _order("dbpedia amazon yahoo agnews"),
                2: _order("dbpedia amazon agnews yahoo"),
                3: _order("yahoo amazon agnews dbpedia"),
            },
            paper="arXiv 2502.17510",
        ),
        Benchmark(
            name="long-sequence",
            summary="Fifteen classification tasks of many kinds.",
            layout="long_sequence",
            orders={
                4: _order(
                    "mnli cb wic copa qqp boolqa rte imdb yelp amazon sst-2 dbpedia agnews multirc yahoo"
                ),
                5: _order(
                    "multirc boolqa wic mnli cb copa qqp rte imdb sst-2 dbpedia agnews yelp amazon yahoo"
                ),
                6: _order(
                    "yelp amazon mnli cb copa qqp rte imdb sst-2 dbpedia agnews yahoo multirc boolqa wic"
                ),
            },
            paper="arXiv 2502.17510",
        ),
        Benchmark(
            name="superni",
            summary="Fifteen SuperNI tasks: dialogue, extraction, question answering, summaries, sentiment.",
            layout="superni",
            orders={
                1: _order("1572 363 1290 181 002 1510 639 1729 073 1590 748 511 591 1687 875"),
                2: _order("748 073 1590 639 1572 1687 591 363 1510 1729 181 511 002 1290 875"),
            },
            paper="arXiv 2408.05200",
        ),
    )
}


def load_benchmark(
    name: str,
    order: int | Sequence[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    *,
    superni_metric: Metric = "rouge_l",
) -> TaskStream:
    """Load a named benchmark in one of its orders.

    Args:
        name: A key of :data:`BENCHMARKS`.
        order: Number of the order as in the papers, a list of task names, or None for the first order.
        data: The folder with the benchmark's data, or a folder that holds it under the name of its layout;
            not needed for a built-in benchmark. The classification benchmarks also load from O-LoRA's layout.
        superni_metric: As in `kifuse.tasks.read_stream`.

    Returns:
        The stream of tasks.

    Raises:
        DataError: The benchmark, the order or the data does not exist.
    """
    if name not in BENCHMARKS:
        raise DataError(
            f"No benchmark '{name}', expected one of {', '.join(BENCHMARKS)}."
            f"{did_you_mean(str(name), BENCHMARKS)}"
        )
    benchmark = BENCHMARKS[name]
    if order is None:
        order = next(iter(benchmark.orders))
    if isinstance(order, int):
        if order not in benchmark.orders:
            numbers = ", ".join(map(str, benchmark.orders))
            raise DataError(
                f"Benchmark '{name}' has no order {order}, expected one of {numbers} or a list of task names."
            )
        tasks, label = benchmark.orders[order], f"{name} order {order}"
    else:
        tasks, label = order, name
    return read_stream(_folder(benchmark, data), tasks, superni_metric=superni_metric, name=label)


def _folder(benchmark: Benchmark, data: str | os.PathLike[str] | None) -> Path:
    if data is None:
        if benchmark.bundled is None:
            raise DataError(
                f"Benchmark '{benchmark.name}' needs its data: give the folder in the layout "
                f"'{benchmark.layout}' as data.path."
            )
        return _BUNDLED / benchmark.bundled
    folder = Path(data)
    inside = folder / benchmark.layout
    return inside if inside.is_dir() else folder
