"""Knowledge fusion of finished weights: two adapters, or two plain state dicts, without any training."""

from kifuse.merging.folders import fuse_adapters
from kifuse.merging.importance import Importance, identify, load_importance, save_importance
from kifuse.merging.states import fuse, fuse_masked

__all__ = [
    "Importance",
    "fuse",
    "fuse_adapters",
    "fuse_masked",
    "identify",
    "load_importance",
    "save_importance",
]
