"""Everything that files are made of, for one run or for several: all pictures, all tables."""

from __future__ import annotations

from collections.abc import Sequence

from kifuse.reporting import comparison
from kifuse.reporting.comparison_tables import matrix_sheet, methods_sheet, runs_sheet, tasks_sheet
from kifuse.reporting.groups import Run, group_runs
from kifuse.reporting.measured import fused_units, moved_beside_importance, views
from kifuse.reporting.pictures import Missing, forgetting_curves, learning_rates, losses, score_matrix
from kifuse.reporting.plots import Plot
from kifuse.reporting.sheets import Sheet


def all_plots(runs: Sequence[Run]) -> list[Plot | Missing]:
    """Every picture of a run, or of the comparison of several.

    Args:
        runs: One or more.

    Returns:
        The pictures, and why others are missing.
    """
    if len(runs) > 1:
        groups = group_runs(runs)
        return [
            comparison.methods(groups),
            comparison.progress(groups),
            comparison.task_differences(groups),
            comparison.cost_and_quality(groups),
            comparison.number_of_fusions(groups),
        ]
    record = runs[0].record
    return [
        score_matrix(record),
        forgetting_curves(record),
        *views(record),
        moved_beside_importance(record),
        fused_units(record),
        losses(record),
        learning_rates(record),
    ]


def all_sheets(runs: Sequence[Run]) -> list[Sheet]:
    """Every table of a run, or of the comparison of several.

    Args:
        runs: One or more.

    Returns:
        Methods, tasks and runs; for one run its score matrix too.
    """
    groups = group_runs(runs)
    labels = {id(run): group.label for group in groups for run in group.runs}
    sheets = [methods_sheet(groups), tasks_sheet(groups), runs_sheet(runs, labels)]
    return sheets if len(runs) > 1 else [matrix_sheet(runs[0].record), *sheets]
