"""Knowledge identification and fusion: the mathematics of KIF and Recurrent-KIF, on plain tensors.

Papers: KIF, arXiv 2408.05200; Recurrent-KIF, arXiv 2502.17510. Nothing here knows of models, data or
training loops.
"""

from kifuse.knowledge.fusion import ParameterAverage, adaptive_weights, blend, masked_sum, static_weights
from kifuse.knowledge.importance import ImportanceTracker, Order, cumulative, min_max, sensitivity
from kifuse.knowledge.projection import orthogonality_gradients, orthogonality_penalty
from kifuse.knowledge.selection import above, quantile_threshold, top_fraction_threshold
from kifuse.knowledge.skill_units import Level, SkillUnits

__all__ = [
    "ImportanceTracker",
    "Level",
    "Order",
    "ParameterAverage",
    "SkillUnits",
    "above",
    "adaptive_weights",
    "blend",
    "cumulative",
    "masked_sum",
    "min_max",
    "orthogonality_gradients",
    "orthogonality_penalty",
    "quantile_threshold",
    "sensitivity",
    "static_weights",
    "top_fraction_threshold",
]
