"""Knowledge identification and fusion: the mathematics of KIF and Recurrent-KIF, on plain tensors.

Papers: KIF, arXiv 2408.05200; Recurrent-KIF, arXiv 2502.17510. Nothing here depends on models, data or
training loops.
"""

from kifuse.knowledge.fusion import (
    ParameterAverage,
    adaptive_weights,
    blend,
    blend_into,
    case_weights,
    masked_sum,
    soft_masks,
    static_weights,
    total_weights,
)
from kifuse.knowledge.importance import (
    ImportanceTracker,
    Order,
    cumulative,
    important_units,
    min_max,
    sensitivity,
)
from kifuse.knowledge.per_example import SquaredGradients
from kifuse.knowledge.projection import orthogonality_gradients, orthogonality_penalty
from kifuse.knowledge.selection import (
    Scope,
    above,
    interpolated_fraction,
    masks,
    quantile_threshold,
    scope_groups,
)
from kifuse.knowledge.skill_units import Level, SkillUnits
from kifuse.knowledge.threshold import share_threshold, top_fraction_threshold

__all__ = [
    "ImportanceTracker",
    "Level",
    "Order",
    "ParameterAverage",
    "Scope",
    "SkillUnits",
    "SquaredGradients",
    "above",
    "adaptive_weights",
    "blend",
    "blend_into",
    "case_weights",
    "cumulative",
    "important_units",
    "interpolated_fraction",
    "masked_sum",
    "masks",
    "min_max",
    "orthogonality_gradients",
    "orthogonality_penalty",
    "quantile_threshold",
    "scope_groups",
    "sensitivity",
    "share_threshold",
    "soft_masks",
    "static_weights",
    "top_fraction_threshold",
    "total_weights",
]
