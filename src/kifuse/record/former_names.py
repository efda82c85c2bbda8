"""What the names mean in records of kifuse 0.1.0 from before methods declared it themselves.

Newer records carry their method's own declaration, see `kifuse.methods.shown`. Nothing is added here.
"""

from __future__ import annotations

from kifuse.methods.shown import (
    FUSION,
    HISTORY,
    HISTORY_AFTER,
    IMPORTANCE,
    MOVED,
    WEIGHT_OF_PREVIOUS,
    Event,
    Series,
    Shown,
)

FORMER = Shown(
    series=(
        IMPORTANCE,
        Series(
            "inner_importance",
            "Importance to the new task",
            "Where the loss of the task being learned was most sensitive, in the inner loop.",
            beside="moved",
        ),
        HISTORY,
        HISTORY_AFTER,
        Series(
            "outer_importance",
            "Importance to earlier tasks",
            "Where the loss of remembered examples was most sensitive while the row's task was learned.",
            drift_from="outer_importance",
        ),
        WEIGHT_OF_PREVIOUS,
        Series(
            "mask_in",
            "Taken from the new task",
            "Share of the parameters whose change in the inner loop was kept, averaged over fusions.",
            unit="share of parameters",
            fused="new",
        ),
        Series(
            "mask_out",
            "Taken from memory",
            "Share of the parameters whose change on remembered examples was kept, averaged over fusions.",
            unit="share of parameters",
            fused="old",
        ),
        Series("mask_both", fused="both"),
        MOVED,
    ),
    events=(FUSION, Event("fusions", fusion_of="parameters")),
)
