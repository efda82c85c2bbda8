"""``kifuse table``: compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def table(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="RUN...")],
) -> None:
    """Compare runs: each task's score at the end, the average, forward and backward transfer, forgetting."""
    from kifuse.record.run_record import RunRecord
    from kifuse.reporting.terminal_tables import comparison_table
    from kifuse.terminal.safe_console import SafeConsole

    SafeConsole().print(comparison_table([RunRecord.load(folder) for folder in runs]))
