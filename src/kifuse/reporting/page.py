"""The page of a run, or of several: one HTML file that loads nothing, and runs only its own few lines.

The page is made only from the records and the predictions beside them. Text of users and models is escaped.
A content security policy in the page refuses every script and style that is not kifuse's own.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from kifuse import __version__
from kifuse.io.storage import write_text
from kifuse.reporting import comparison_pictures as comparison
from kifuse.reporting.adapter_code import adapter_code
from kifuse.reporting.colours import step_of
from kifuse.reporting.comparison_tables import methods_table, runs_table, tasks_table
from kifuse.reporting.drawings import draw, draw_all
from kifuse.reporting.examples import examples
from kifuse.reporting.headline import figures, how_scored, sentence
from kifuse.reporting.method_pictures import fused_units, moved_beside_importance, probed, views
from kifuse.reporting.paired_differences import differences_table
from kifuse.reporting.plots import Plot
from kifuse.reporting.run_groups import Run, group_runs, open_run
from kifuse.reporting.run_pictures import Missing, forgetting_curves, learning_rates, losses, score_matrix
from kifuse.reporting.settings import (
    cost_table,
    data_table,
    events_table,
    facts,
    heading,
    history_table,
    meta,
    notices,
    settings,
)
from kifuse.reporting.shareable import without_paths
from kifuse.reporting.styles import page_style, read_template
from kifuse.reporting.sweeps import Sweep, sweep_picture, sweep_table
from kifuse.reporting.tables import Table
from kifuse.reporting.watched import watched_by_method, watched_table
from kifuse.reporting.what_was_read import what_was_read
from kifuse.reporting.wording import clean, count, number, shorten

FILE = "report.html"


def write_report(folder: Path | str) -> Path:
    """Write the page of a run into its folder.

    Args:
        folder: The run's folder; the run may still be going on.

    Returns:
        The file.

    Raises:
        KifuseError: The folder holds no run, its record cannot be read, or the page cannot be written.
    """
    run = open_run(folder)
    file = Path(folder) / FILE
    write_text(file, run_page(run))
    return file


def refresh_report(folder: Path | str) -> str | None:
    """Write the page of a run that is still going on. A page that fails must never stop the run.

    Args:
        folder: The run's folder.

    Returns:
        None, or one line that says why the page could not be written.
    """
    try:
        write_report(folder)
    except Exception as error:
        return f"{FILE} could not be written: {shorten(error or type(error).__name__, 300)}"
    return None


def run_page(run: Run, *, texts: bool = True) -> str:
    """Make the page of one run.

    Args:
        run: The run. If it has no folder, its examples are not known.
        texts: Whether the page holds examples and whole paths. Without them it can be shown to others.

    Returns:
        HTML.
    """
    chosen, read = examples(run, texts=texts), what_was_read(run, texts=texts)
    if not texts:
        run = without_paths(run)
    record = run.record
    return _render(
        "run.html.j2",
        title=heading(record),
        kind="run",
        method=record.method.name,
        stream=record.stream,
        meta=meta(record),
        sentence=sentence(record),
        how_scored=how_scored(record),
        figures=figures(record),
        matrix=score_matrix(record),
        watched=watched_table(record),
        forgetting=draw(forgetting_curves(record)),
        views=draw_all([*views(record), *probed(record)]),
        moved=draw(moved_beside_importance(record)),
        fused=draw(fused_units(record)),
        loss=draw(losses(record)),
        rate=draw(learning_rates(record)),
        costs=cost_table(record),
        events=events_table(record),
        examples=chosen,
        read=read,
        code=adapter_code(run),
        settings=settings(record),
        data=data_table(record),
        facts=facts(record),
        history=history_table(record),
        notices=notices(record),
        running=record.status == "running",
    )


def comparison_page(
    runs: Sequence[Run], folder: Path, *, sweep: Sweep | None = None, texts: bool = True
) -> str:
    """Make the page that shows several runs side by side.

    Args:
        runs: Two or more; with a sweep, one or more.
        folder: Where the page will be, for its links to the pages of single runs.
        sweep: The settings that were tried and scored on dev.
        texts: Whether the page links to those pages, which hold examples. It holds none itself.

    Returns:
        HTML.
    """
    if not texts:
        runs = [without_paths(run) for run in runs]
    groups = group_runs(runs)
    labels = {id(run): group.label for group in groups for run in group.runs}
    streams = list(dict.fromkeys(clean(run.record.stream) for run in runs))
    title = (
        f"{len(groups)} methods on {streams[0]}"
        if len(groups) > 1
        else f"{count(len(runs), 'run')} on {streams[0]}"
    )
    tables, sizes = [methods_table(groups), tasks_table(groups)], comparison.model_size(groups)
    return _render(
        "comparison.html.j2",
        title=title,
        kind="comparison",
        meta=[group.label + ": " + group.made_of() for group in groups],
        streams=streams,
        sentence=comparison.sentence(groups),
        how_scored=how_scored(runs[0].record),
        tables=tables,
        apart=differences_table(groups),
        methods=draw(comparison.methods(groups)),
        differences=comparison.task_differences(groups),
        kept=comparison.learned_and_kept(groups),
        progress=draw(comparison.progress(groups)),
        cost=draw(comparison.cost_and_quality(groups)),
        fusions=draw(comparison.number_of_fusions(groups)),
        sizes=None if isinstance(sizes, Missing) else draw(sizes),
        sweep=None if sweep is None else draw(sweep_picture(sweep)),
        tried=None if sweep is None else sweep_table(sweep),
        watched=watched_by_method(groups),
        runs=runs_table(runs, labels),
        link=lambda run: _link(run, folder),
    )


def sweep_page(sweep: Sweep, folder: Path) -> str:
    """Make the page of values that are being tried, before any of them is scored on test.

    Args:
        sweep: The settings that were tried and scored on dev.
        folder: Where the page will be, for its links to the pages of single runs.

    Returns:
        HTML.
    """
    labels = {id(run): sweep.title(tried) for tried in sweep.tried for run in tried.runs}
    runs = [run for tried in sweep.tried for run in tried.runs]
    return _render(
        "sweep.html.j2",
        title=f"{count(len(sweep.tried), 'setting')} tried on dev",
        kind="comparison",
        sweep=draw(sweep_picture(sweep)),
        tried=sweep_table(sweep),
        runs=runs_table(runs, labels),
        link=lambda run: _link(run, folder),
    )


def reproduction_page(
    table: Table,
    claims: Table | None,
    pictures: Sequence[Plot | Missing],
    links: Mapping[str, str],
    runs: Mapping[str, Run],
    folder: Path,
) -> str:
    """Make the page that repeats a paper's table or figure.

    Args:
        table: Our figures and the paper's.
        claims: The paper's claims about its figures, and what came out here; None if it makes none.
        pictures: Pictures of the figure, or why they are missing.
        links: The pages of comparisons by their names, relative to the folder.
        runs: The runs whose own pages show the figure, by their names.
        folder: Where the page will be.

    Returns:
        HTML.
    """
    own = {name: link for name, run in runs.items() if (link := _link(run, folder))}
    return _render(
        "reproduction.html.j2",
        title=table.title,
        kind="reproduction",
        table=table,
        claims=claims,
        pictures=draw_all(pictures),
        links={**links, **own},
    )


def _link(run: Run | None, folder: Path) -> str | None:
    """Return the relative path from a folder to a run's own page, or None if the run has no page."""
    if run is None or run.folder is None or not (run.folder / FILE).is_file():
        return None
    try:
        relative = os.path.relpath(run.folder / FILE, folder)
    except ValueError:  # on another drive
        return None
    return "./" + quote(Path(relative).as_posix())


def _render(template: str, **content: Any) -> str:
    style, script = page_style(), read_template("page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    text = (
        _environment()
        .get_template(template)
        .render(
            **content,
            # both are kifuse's own files, which hold no text of anybody else
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            policy=policy,
            version=__version__,
        )
    )
    return clean(text)


@cache
def _environment() -> Environment:
    # the names end in .j2, from which jinja cannot tell that it must escape, so this turns escaping on
    environment = Environment(
        loader=FunctionLoader(read_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(shorten=shorten, number=number, runs=_runs)
    environment.globals["step_of"] = step_of
    return environment


def _runs(values: Sequence[float | None], join: bool) -> list[tuple[int, float | None, int]]:
    """Return a row's cells as (column, value, width in columns); `join` merges empty neighbours."""
    found: list[tuple[int, float | None, int]] = []
    for column, value in enumerate(values):
        if join and value is None and found and found[-1][1] is None:
            found[-1] = (found[-1][0], None, found[-1][2] + 1)
        else:
            found.append((column, value, 1))
    return found


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
