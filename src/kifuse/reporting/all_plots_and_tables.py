"""All pictures and all tables that can be written as files, for one run or for several."""

from __future__ import annotations

from collections.abc import Sequence

from kifuse.reporting import comparison_pictures as comparison
from kifuse.reporting.comparison_tables import methods_table, runs_table, scores_table, tasks_table
from kifuse.reporting.method_pictures import fused_units, moved_beside_importance, probed, views
from kifuse.reporting.paired_differences import differences_table
from kifuse.reporting.plots import Plot
from kifuse.reporting.run_groups import Run, group_runs
from kifuse.reporting.run_pictures import Missing, forgetting_curves, learning_rates, losses, score_matrix
from kifuse.reporting.sweeps import Sweep, sweep_picture, sweep_table
from kifuse.reporting.tables import Table
from kifuse.reporting.watched import watched_by_method, watched_table


def all_plots(runs: Sequence[Run], sweep: Sweep | None = None) -> list[Plot | Missing]:
    """Make every picture of a run, or of the comparison of several.

    Args:
        runs: One or more.
        sweep: The settings that the comparison tried.

    Returns:
        The pictures, and the reasons why others are missing.
    """
    if len(runs) > 1 or sweep is not None:
        groups = group_runs(runs)
        return [
            *([] if sweep is None else [sweep_picture(sweep)]),
            comparison.methods(groups),
            comparison.progress(groups),
            comparison.task_differences(groups),
            comparison.learned_and_kept(groups),
            comparison.cost_and_quality(groups),
            comparison.number_of_fusions(groups),
            comparison.model_size(groups),
        ]
    record = runs[0].record
    return [
        score_matrix(record),
        forgetting_curves(record),
        *views(record),
        *probed(record),
        moved_beside_importance(record),
        fused_units(record),
        losses(record),
        learning_rates(record),
    ]


def all_tables(runs: Sequence[Run], sweep: Sweep | None = None) -> list[Table]:
    """Make every table of a run, or of the comparison of several.

    Args:
        runs: One or more.
        sweep: The settings that the comparison tried.

    Returns:
        The tables of methods, of their paired differences, of tasks and of runs; for one run also its score
        matrix.
    """
    groups = group_runs(runs)
    labels = {id(run): group.label for group in groups for run in group.runs}
    apart = differences_table(groups)
    tables = [
        methods_table(groups),
        *([apart] if apart else []),
        tasks_table(groups),
        runs_table(runs, labels),
    ]
    watched = watched_by_method(groups) if len(runs) > 1 else watched_table(runs[0].record)
    tables += [watched] if watched else []
    if sweep is not None:
        return [*tables, sweep_table(sweep)]
    return tables if len(runs) > 1 else [scores_table(runs[0].record), *tables]
