"""``kifuse report``: write the page of a run or of several runs, and figures and tables as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or records kept as files.", metavar="RUN...")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help=(
                "The page to write. Default: report.html in the run's folder, or in the folder that holds "
                "all runs."
            ),
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder to write every picture to as well, as PNG, SVG and PDF for a paper."
        ),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder to write the tables to as well, as CSV, Markdown and LaTeX."
        ),
    ] = None,
    no_examples: Annotated[
        bool,
        typer.Option(
            "--no-examples",
            help=(
                "Leave out all inputs, expected answers and predictions, and shorten paths to their last "
                "part."
            ),
        ),
    ] = False,
) -> None:
    """Write the page of a run, or of several runs side by side, from their records alone.

    Runs that differ in seed and task order only count as one method, with mean and standard deviation.
    """
    from kifuse.comparing.tried_settings import open_sweep
    from kifuse.errors import RunError
    from kifuse.io.storage import write_text
    from kifuse.reporting.all_plots_and_tables import all_plots, all_tables
    from kifuse.reporting.page import FILE, comparison_page, run_page
    from kifuse.reporting.run_groups import folder_for, open_runs
    from kifuse.terminal.safe_console import SafeConsole

    opened = open_runs(runs)
    sweep = open_sweep(runs[0]) if len(runs) == 1 else None
    file = output or folder_for(opened) / FILE
    if file.is_dir():
        file /= FILE
    if file.suffix not in (".html", ".htm"):
        raise RunError(f"--output: found {file}, expected the name of a page, such as comparison.html.")
    texts = not no_examples
    page = (
        run_page(opened[0], texts=texts)
        if len(opened) == 1 and sweep is None
        else comparison_page(opened, file.parent, sweep=sweep, texts=texts)
    )
    write_text(file, page)
    console = SafeConsole()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    say(f"Page written to {file}")
    if tables is not None:
        from kifuse.reporting.tables import write_tables

        say(f"{len(write_tables(all_tables(opened, sweep), tables))} tables written to {tables}")
    if figures is not None:
        from kifuse.reporting.figures import write_figures

        say(f"{len(write_figures(all_plots(opened, sweep), figures))} figures written to {figures}")
