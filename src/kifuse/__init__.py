"""Continual learning for language models: one task after another, without forgetting.

The public names are loaded when they are first used; importing `kifuse` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kifuse.config import RunConfig, load_config
    from kifuse.errors import ConfigError, DataError, KifuseError, ModelError, RunError
    from kifuse.learner import ContinualLearner
    from kifuse.lineage import LearnReport
    from kifuse.merging import (
        Importance,
        fuse,
        fuse_adapters,
        fuse_masked,
        identify,
        load_importance,
        save_importance,
    )
    from kifuse.methods.base import Method
    from kifuse.methods.context import Context, TaskInfo
    from kifuse.methods.joint import Joint
    from kifuse.methods.kept import Kept, MethodState, OfTask, Unsaved
    from kifuse.methods.kif import KIF
    from kifuse.methods.parameters import Parameters
    from kifuse.methods.recurrent_kif import RecurrentKIF
    from kifuse.methods.replay import Replay
    from kifuse.methods.sequential import Sequential
    from kifuse.page_refresh import run
    from kifuse.registry import build_method, register
    from kifuse.reporting.record import RunRecord
    from kifuse.tasks import Example, MemoryBuffer, Task, TaskStream, read_stream, read_task
    from kifuse.training.standalone import StandaloneCallback

_PLACES = {
    "kifuse.config": ("RunConfig", "load_config"),
    "kifuse.errors": ("ConfigError", "DataError", "KifuseError", "ModelError", "RunError"),
    "kifuse.learner": ("ContinualLearner",),
    "kifuse.lineage": ("LearnReport",),
    "kifuse.merging": (
        "Importance",
        "fuse",
        "fuse_adapters",
        "fuse_masked",
        "identify",
        "load_importance",
        "save_importance",
    ),
    "kifuse.methods.base": ("Method",),
    "kifuse.methods.context": ("Context", "TaskInfo"),
    "kifuse.methods.kept": ("Kept", "MethodState", "OfTask", "Unsaved"),
    "kifuse.methods.parameters": ("Parameters",),
    "kifuse.methods.joint": ("Joint",),
    "kifuse.methods.kif": ("KIF",),
    "kifuse.methods.recurrent_kif": ("RecurrentKIF",),
    "kifuse.methods.replay": ("Replay",),
    "kifuse.methods.sequential": ("Sequential",),
    "kifuse.page_refresh": ("run",),
    "kifuse.registry": ("build_method", "register"),
    "kifuse.reporting.record": ("RunRecord",),
    "kifuse.training.standalone": ("StandaloneCallback",),
    "kifuse.tasks": ("Example", "MemoryBuffer", "Task", "TaskStream", "read_stream", "read_task"),
}
_WHERE = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "KIF",
    "ConfigError",
    "Context",
    "ContinualLearner",
    "DataError",
    "Example",
    "Importance",
    "Joint",
    "Kept",
    "KifuseError",
    "LearnReport",
    "MemoryBuffer",
    "Method",
    "MethodState",
    "ModelError",
    "OfTask",
    "Parameters",
    "RecurrentKIF",
    "Replay",
    "RunConfig",
    "RunError",
    "RunRecord",
    "Sequential",
    "StandaloneCallback",
    "Task",
    "TaskInfo",
    "TaskStream",
    "Unsaved",
    "__version__",
    "build_method",
    "fuse",
    "fuse_adapters",
    "fuse_masked",
    "identify",
    "load_config",
    "load_importance",
    "read_stream",
    "read_task",
    "register",
    "run",
    "save_importance",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'kifuse' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
