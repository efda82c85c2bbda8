"""Writes a table as it came out here, beside the published one: as page, Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kifuse.comparing.compare_section import PAGE, TABLES
from kifuse.comparing.grid import Grid
from kifuse.errors import RunError
from kifuse.io.storage import write_text
from kifuse.record.run_record import RunRecord
from kifuse.reporting.all_plots_and_tables import all_plots
from kifuse.reporting.comparison_tables import mean_cell, metric
from kifuse.reporting.figures import write_figures
from kifuse.reporting.page import reproduction_page
from kifuse.reporting.plots import Plot
from kifuse.reporting.run_groups import Group, Run, comparison_runs
from kifuse.reporting.run_pictures import Missing
from kifuse.reporting.tables import Cell, Table, write_tables
from kifuse.reporting.wording import count, listed, number
from kifuse.reproducing.catalog import PaperTable
from kifuse.reproducing.grids import Wanted, chosen_rows, label_of
from kifuse.reproducing.properties import properties_table
from kifuse.reproducing.unseen_tasks import MEASURE, of_all, unseen_table, with_untrained
from kifuse.reproducing.verdicts import SAME, Measure, judge, rank_correlation

RESULT = "reproduction.html"
PICTURES = "pictures"


@dataclass(frozen=True)
class Result:
    """What was written.

    Attributes:
        page: The page's file.
        table: Our figures and the published ones.
        claims: Each claim and its verdict.
        problem: Why pictures could not be written as files; None if they could.
    """

    page: Path
    table: Table
    claims: Table
    problem: str | None


def rows_of(grid: Grid, wanted: Wanted) -> dict[str, Group]:
    """The runs of each row of the table that are in a benchmark's folder, by the row's name."""
    found: dict[str, list[Run]] = {}
    for run in comparison_runs(grid.folder, [variant.label for variant in grid.variants]):
        found.setdefault(run.label, []).append(run)
    rows = chosen_rows(wanted)
    return {row.name: Group(row.name, found[label]) for row in rows if (label := label_of(row)) in found}


def result_table(wanted: Wanted, groups: Mapping[str, Mapping[str, Group]]) -> Table:
    """Our figures beside the published ones, a line for each row of the paper's table.

    Args:
        wanted: What was asked for.
        groups: The runs, by benchmark and row.
    """
    paper, unseen = wanted.table.paper, wanted.table.unseen
    if unseen is not None:
        rows = {row: group for by_row in groups.values() for row, group in by_row.items()}
        shown = unseen_table(wanted.table, unseen, rows)
        shown.notes = [*_notes(wanted, groups), *shown.notes]
        return shown
    heads = ["row"]
    for benchmark in groups:
        for name in paper.metrics:
            heads += [f"{benchmark}: {name}", f"{name}, paper"]
    timed = bool(wanted.table.minutes)
    heads += ["minutes an epoch", "minutes an epoch, paper"] * timed
    table = Table(wanted.table.name, f"{paper.title}, {wanted.table.called}: {wanted.table.title}", heads)
    for row in wanted.table.rows:
        cells = [Cell(row.name)]
        for benchmark, by_row in groups.items():
            published = row.published.get(benchmark, (None,) * len(paper.metrics))
            for place, name in enumerate(paper.metrics):
                mean = by_row[row.name].mean(metric(SAME.get(name, name))) if row.name in by_row else None
                cells += [mean_cell(mean), Cell(number(published[place]), published[place])]
        if timed:
            runs = [run for by_row in groups.values() if row.name in by_row for run in by_row[row.name].runs]
            theirs = wanted.table.minutes_of(row)
            cells += [
                mean_cell(Group(row.name, runs).mean(_minutes_an_epoch), 2),
                Cell(number(theirs), theirs),
            ]
        table.rows.append(cells)
    table.notes = _notes(wanted, groups)
    return table


def _minutes_an_epoch(record: RunRecord) -> float | None:
    """The mean over the tasks of the time of training, over the passes, in minutes."""
    seconds = [task.seconds_train for task in record.tasks if task.seconds_train is not None]
    epochs = record.config["training"]["epochs"]
    return sum(seconds) / len(seconds) / epochs / 60 if seconds else None


def _notes(wanted: Wanted, groups: Mapping[str, Mapping[str, Group]]) -> list[str]:
    """What a reader must know before comparing the columns."""
    budget, table = wanted.budget, wanted.table
    models = sorted({row.model for row in table.rows if row.published or table.unseen})
    here = listed(list(dict.fromkeys(wanted.model_of(row) for row in table.rows)))
    notes = [f"Budget {budget.name}: {budget.summary}. Model here: {here}."]
    if wanted.watch:
        notes.append(f"Never trained on: the tasks in {listed([folder.name for folder in wanted.watch])}.")
    if models:
        notes.append(f"The paper's figures are of {listed(models)}.")
    if wanted.settings:
        changed = ", ".join(f"{key}={value}" for key, value in wanted.settings.items())
        notes.append(f"Changed for all rows: {changed}.")
    for benchmark, by_row in groups.items():
        untrained = table.unseen.untrained if table.unseen else None
        runs = [run for row, group in by_row.items() if row != untrained for run in group.runs]
        finished = sum(run.record.status == "finished" for run in runs)
        streams = sorted({run.record.stream for run in runs})
        seeds = sorted({str(run.seed) for run in runs})
        notes.append(
            f"{benchmark}: {count(finished, 'finished run')}; {', '.join(streams)}; "
            f"seed{'s' * (len(seeds) > 1)} {listed(seeds)}."
            if runs
            else f"{benchmark}: nothing has been run yet."
        )
        records = [run.record for run in runs]
        made_on = {(str(r.machine.get("device_name")), str(r.versions.get("torch"))) for r in records}
        notes += [f"{benchmark}: run on {device}, torch {version}." for device, version in sorted(made_on)]
        found = rank_correlation(*_ordering(table, benchmark, by_row))
        if found is not None:
            notes.append(
                f"{benchmark}: rank correlation with the paper's order (Spearman) {number(found[0], 2)} over "
                f"{count(found[1], 'row')}."
            )
    return [*notes, *([table.note] if table.note else [])]


def _ordering(
    table: PaperTable, benchmark: str, by_row: Mapping[str, Group]
) -> tuple[dict[str, float | None], Mapping[str, Group], Measure]:
    """What the rows of a table are ordered by, as the arguments of `rank_correlation`."""
    if table.unseen is not None:
        means = {row: values[-1] for row, values in table.unseen.figures.items()}
        return dict(means), by_row, partial(of_all, table.unseen)
    name = table.paper.metrics[0]
    published = {row.name: row.published.get(benchmark, (None,))[0] for row in table.rows}
    return published, by_row, metric(SAME.get(name, name))


def claims_table(table: PaperTable, groups: Mapping[str, Mapping[str, Group]]) -> Table:
    """Each claim of the paper as a line, for each benchmark."""
    shown = Table(
        f"{table.name}-claims", "What the paper says, and what was measured", ["claim", "verdict", "here"]
    )
    own = {} if table.unseen is None else {MEASURE: partial(of_all, table.unseen)}
    for benchmark, by_row in groups.items():
        for claim in table.claims:
            found = judge(claim, by_row, own)
            where = f" ({benchmark})" if len(groups) > 1 else ""
            shown.rows.append([Cell(claim.text + where), Cell(found.verdict), Cell(found.why)])
    if table.claims:
        shown.notes = [
            "holds: every difference has the paper's sign and its 95% interval does not contain zero; "
            "direction only: every sign is right; not: a sign is wrong. Intervals are over the orders and "
            "seeds that both have."
        ]
    return shown


def plots_of(wanted: Wanted, groups: Mapping[str, Mapping[str, Group]]) -> list[Plot | Missing]:
    """The pictures of the comparison that show a figure, or why they are missing."""
    found = []
    for by_row in groups.values():
        runs = [run for group in by_row.values() for run in group.runs]
        if len(runs) > 1:
            found += _named(all_plots(runs), wanted.table.pictures)
    return found


def pages_of(wanted: Wanted, groups: Mapping[str, Mapping[str, Group]]) -> dict[str, Run]:
    """The runs whose own pages show a figure, by their names."""
    if not wanted.table.of_each_run:
        return {}
    runs = [run for by_row in groups.values() for group in by_row.values() for run in group.runs]
    return {run.name: run for run in runs}


def write_pictures(wanted: Wanted, plots: Sequence[Plot | Missing], runs: Mapping[str, Run]) -> None:
    """Write the pictures that show a figure as PNG, SVG and PDF.

    Args:
        wanted: What was asked for.
        plots: Pictures of the comparison.
        runs: The runs whose own pictures show it, by their names.

    Raises:
        RunError: The converter for PNG and PDF is not installed.
    """
    folder = wanted.output / PICTURES
    if plots:
        write_figures(plots, folder)
    for name, run in runs.items():
        write_figures(_named(all_plots([run]), wanted.table.of_each_run), folder / name)


def write_result(wanted: Wanted, found: Mapping[str, Grid]) -> Result:
    """Write page, tables and pictures into the output folder.

    Args:
        wanted: What was asked for.
        found: The grids by benchmark.
    """
    groups = {benchmark: rows_of(grid, wanted) for benchmark, grid in found.items()}
    if wanted.table.unseen is not None:
        groups = {name: with_untrained(wanted.table.unseen, by_row) for name, by_row in groups.items()}
    table, claims = result_table(wanted, groups), claims_table(wanted.table, groups)
    write_tables([table, *([claims] if claims.rows else [])], wanted.output / TABLES)
    links = {f"{name}: all runs": f"./{name}/{PAGE}" for name, grid in found.items() if _has_page(grid)}
    plots, runs = plots_of(wanted, groups), pages_of(wanted, groups)
    page = reproduction_page(table, claims if claims.rows else None, plots, links, runs, wanted.output)
    file = wanted.output / RESULT
    write_text(file, page)
    problem = None
    try:
        write_pictures(wanted, plots, runs)
    except RunError as error:
        problem = str(error)
    return Result(file, table, claims, problem)


def write_properties(table: PaperTable, output: Path) -> Result:
    """Write a table that has no figures, for which nothing is run.

    Args:
        table: The table.
        output: The folder to write to.
    """
    shown = properties_table(table)
    write_tables([shown], output / TABLES)
    file = output / RESULT
    write_text(file, reproduction_page(shown, None, [], {}, {}, output))
    return Result(file, shown, Table(f"{table.name}-claims", "", []), None)


def _has_page(grid: Grid) -> bool:
    return (grid.folder / PAGE).is_file()


def _named(plots: Sequence[Plot | Missing], names: Sequence[str]) -> list[Plot | Missing]:
    """The plots of these names, or that begin with one of them."""
    return [plot for plot in plots if plot.name.startswith(tuple(names))] if names else []
