"""Write the tables of the measurement pages from the records, or check that they are what the records say.

    python benchmarks/tables.py [--check]

A table stands in a page between two comments. The first comment says in YAML what the table shows, and the
second is `<!-- end of table -->`. Everything between them is written anew. The first key is the table's kind:

    <!-- table
    records: bench-regime
    rows: {replay: mixed replay}
    columns: {"AP, seed 0": AP 0, "mean (sd)": AP 0 1 2 mean, "order 3": AP 0 1 2 order 3}
    -->
    <!-- table
    speed:
      training: {a step with kif: a training step with KIF}
    -->

`records` is a folder of benchmarks/results. `rows` are the names that its records begin with, with words for
the reader. A column is a measure (AP, BWT, FWT, steps, replayed, extra, kept, class), then the seeds, then
`mean` for mean and standard deviation over them, and `order N` for another order of the tasks. If a record's
name has another ending than a seed, write that in place of the seeds (`AP plain` reads ROW.plain.json). A
cell without a record stays empty. A measure that a record does not have is a dash.

`gpu` names a part of the files gpu-*.json, one for each GPU that benchmarks/gpu.py ran on.

The other kinds show benchmarks/results/speed.json: `speed` names entries of its sections, `by_task` shows
sections side by side, and `section` shows one section with `columns` such as `seconds: seconds .2f`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kifuse.io.sealed_json import read_sealed
from kifuse.record.run_record import RunRecord

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "REPRODUCIBILITY.md", *sorted((ROOT / "docs" / "measured").glob("*.md")))
_TABLE = re.compile(r"(<!-- table\n(.*?)-->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True)
class Column:
    """What a column shows for each row.

    Attributes:
        measure: AP, BWT, FWT, steps, replayed, extra, kept or class.
        endings: What follows the row's name in the file names of its records.
        mean: Whether mean and standard deviation are shown instead of each value.
    """

    measure: str
    endings: tuple[str, ...]
    mean: bool

    @classmethod
    def read(cls, text: str) -> Column:
        """Read a column as a page writes it, such as `AP 0 1 2 order 3 mean`."""
        measure, *words = text.split()
        place = ""
        if "order" in words:
            at = words.index("order")
            place = f".order{words[at + 1]}"
            del words[at : at + 2]
        mean = "mean" in words
        names = [word for word in words if word != "mean"] or ["0"]
        endings = tuple(f"{place}.seed{name}" if name.isdigit() else f".{name}" for name in names)
        return cls(measure, endings, mean)

    def cell(self, folder: Path, row: str) -> str:
        """Return the text of this column's cell in a row."""
        files = [folder / f"{row}{ending}.json" for ending in self.endings]
        values = [measured(file)[self.measure] for file in files if file.is_file()]
        if self.measure in ("steps", "replayed", "extra", "kept", "class"):
            return "" if not values or values[0] is None else str(values[0])
        numbers = [value for value in values if value is not None]
        if not numbers:
            return "-" if values else ""
        if not self.mean:
            return ", ".join(f"{value:.1f}" for value in numbers)
        spread = f" ({statistics.stdev(numbers):.1f})" if len(numbers) > 1 else ""
        return f"{statistics.mean(numbers):.1f}{spread}"


@cache
def measured(file: Path) -> dict[str, Any]:
    """Return everything that a column can show of one record."""
    record = RunRecord.model_validate(read_sealed(file)[0])
    kept = record.tasks[-1].kept_parameters
    return {
        **{name: metric.value for name, metric in record.summary().items()},
        "steps": sum(task.train_steps or 0 for task in record.tasks),
        "replayed": record.replayed(),
        "extra": sum(task.extra_forward_backward or 0 for task in record.tasks),
        "kept": None if kept is None else f"{kept / 1e6:.2f}",
        "class": record.method.data_class,
    }


def lines_of_records(table: Mapping[str, Any]) -> Iterator[list[str]]:
    """Return head and rows of a table of records."""
    folder = RESULTS / table["records"]
    columns = {name: Column.read(str(text)) for name, text in table["columns"].items()}
    yield ["row", "what", *columns]
    for row, words in table["rows"].items():
        yield [f"`{row}`", words, *(column.cell(folder, row) for column in columns.values())]


def lines_of_speed(table: Mapping[str, Any]) -> Iterator[list[str]]:
    """Return head and rows of a table of ratios: the alternative's time divided by kifuse's time."""
    found = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    yield ["what", "against", "ratio (10% to 90% of the pairs)", "note"]
    for section, rows in table["speed"].items():
        for name, words in rows.items():
            same_name = [each for each in found[section] if each["name"] == name]
            if not same_name:
                raise KeyError(f"benchmarks/results/speed.json: {section} has no {name!r}")
            for each in same_name:
                digits = 3 if each["ratio"] < 1.2 else 2 if each["ratio"] < 5 else 1
                ratio, low, high = (format(each[key], f".{digits}f") for key in ("ratio", "low", "high"))
                spread = f" ({low} to {high})" if each["pairs"] > 1 else ""
                yield [words, each["theirs"], f"{ratio}{spread}", each["note"]]


def lines_by_task(table: Mapping[str, Any]) -> Iterator[list[str]]:
    """Return one row for each task that several sections of speed.json have, with each section's ratio."""
    found = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    ratios = {
        name: {each["name"].removeprefix("answers of "): f"{each['ratio']:.1f}" for each in found[section]}
        for name, section in table["by_task"].items()
    }
    yield ["task", *ratios]
    for task in next(iter(ratios.values())):
        yield [task, *(ratio[task] for ratio in ratios.values())]


def lines_of_section(table: Mapping[str, Any]) -> Iterator[list[str]]:
    """Return one row for each entry of a section of speed.json; a column is a key and its number format."""
    found = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    yield [*table["columns"]]
    for each in found[table["section"]]:
        yield [format(each[key], how) for key, how in (text.split() for text in table["columns"].values())]


def lines_of_gpu(table: Mapping[str, Any]) -> Iterator[list[str]]:
    """Return one row for each thing that a part of benchmarks/gpu.py has measured, on each GPU."""
    yield ["device", "what", "measured"]
    files = sorted(RESULTS.glob("gpu-*.json"))
    if not files:
        yield ["none yet", "", ""]
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        for path, measured in _leaves(found["parts"].get(table["gpu"], {})):
            shown = [
                f"{key.replace('_', ' ')} {value if isinstance(value, (str, bool)) else format(value, '.3g')}"
                for key, value in measured.items()
                if value is not None
            ]
            yield [found["device"], ", ".join(path), ", ".join(shown)]


def _leaves(found: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return what lies in nested mappings: the keys that lead to values, and these with their own keys."""
    values = {key: value for key, value in found.items() if not isinstance(value, dict)}
    if values:
        yield path, values
    for key, inner in found.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, (*path, key))


KINDS = {
    "records": lines_of_records,
    "speed": lines_of_speed,
    "by_task": lines_by_task,
    "section": lines_of_section,
    "gpu": lines_of_gpu,
}


def table_of(text: str) -> str:
    """Make a table in Markdown from the YAML that says what it shows."""
    table = yaml.safe_load(text)
    lines = list(next(make for kind, make in KINDS.items() if kind in table)(table))
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(page: str) -> str:
    """Return a page with every table written anew."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{table_of(found[2])}\n{found[4]}", page)


def main() -> None:
    """Write all pages, or say which pages do not agree with the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if one would change")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if written(text) != text:
            stale.append(page.name)
            if not check:
                page.write_text(written(text), encoding="utf-8")
    if stale:
        print(f"{'not as the records are' if check else 'written'}: {', '.join(stale)}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
