"""Continual learning for language models: one task after another, without forgetting.

The public names are loaded when they are first used; importing `kifuse` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kifuse.adapters.base import Adapter
    from kifuse.config import RunConfig, load_config
    from kifuse.driving.standalone import StandaloneCallback
    from kifuse.errors import ConfigError, DataError, KifuseError, ModelError, RunError
    from kifuse.exporting.folder import Export, export
    from kifuse.learning.learner import ContinualLearner
    from kifuse.merging import (
        Importance,
        fuse,
        fuse_adapters,
        fuse_masked,
        identify,
        load_importance,
        save_importance,
    )
    from kifuse.methods.aim import AIMMerging
    from kifuse.methods.average import EMA, WeightEnsemble
    from kifuse.methods.base import Method
    from kifuse.methods.context import Context, TaskInfo
    from kifuse.methods.derpp import DERPP
    from kifuse.methods.ella import ELLA
    from kifuse.methods.epi import EPI
    from kifuse.methods.ewc import EWC
    from kifuse.methods.forever import Forever
    from kifuse.methods.gpm import GPM
    from kifuse.methods.inclora import IncLoRA
    from kifuse.methods.joint import Joint
    from kifuse.methods.kept import Kept, MethodState, OfTask, Unsaved
    from kifuse.methods.kif import KIF
    from kifuse.methods.l2p import L2P
    from kifuse.methods.layer_sums import LayerSums
    from kifuse.methods.lfpt5 import LFPT5
    from kifuse.methods.lwf import LwF
    from kifuse.methods.migu import MIGU
    from kifuse.methods.mocl import MoCL
    from kifuse.methods.moe_lora import MoELoRA
    from kifuse.methods.nlora import NLoRA
    from kifuse.methods.ogd import OGD
    from kifuse.methods.olora import OLoRA
    from kifuse.methods.on_policy_repair import OnPolicyRepair
    from kifuse.methods.osf import OSF
    from kifuse.methods.parameters import Parameters
    from kifuse.methods.progprompt import ProgPrompt
    from kifuse.methods.recurrent_kif import RecurrentKIF
    from kifuse.methods.replay import Replay
    from kifuse.methods.sapt import SAPT
    from kifuse.methods.sdft import SDFT
    from kifuse.methods.sequential import Sequential
    from kifuse.methods.slao import SLAO
    from kifuse.methods.vr_mcl import VRMCL
    from kifuse.own_method import register
    from kifuse.page_refresh import run
    from kifuse.record.lineage import LearnReport
    from kifuse.record.run_record import RunRecord
    from kifuse.registry import build_method
    from kifuse.saved_adapter import load_adapter
    from kifuse.tasks import Example, MemoryBuffer, Task, TaskStream, read_stream, read_task

_PLACES = {
    "kifuse.config": ("RunConfig", "load_config"),
    "kifuse.errors": ("ConfigError", "DataError", "KifuseError", "ModelError", "RunError"),
    "kifuse.learning.learner": ("ContinualLearner",),
    "kifuse.exporting.folder": ("Export", "export"),
    "kifuse.record.lineage": ("LearnReport",),
    "kifuse.merging": (
        "Importance",
        "fuse",
        "fuse_adapters",
        "fuse_masked",
        "identify",
        "load_importance",
        "save_importance",
    ),
    "kifuse.adapters.base": ("Adapter",),
    "kifuse.methods.base": ("Method",),
    "kifuse.methods.aim": ("AIMMerging",),
    "kifuse.methods.average": (
        "EMA",
        "WeightEnsemble",
    ),
    "kifuse.methods.derpp": ("DERPP",),
    "kifuse.methods.ella": ("ELLA",),
    "kifuse.methods.epi": ("EPI",),
    "kifuse.methods.ewc": ("EWC",),
    "kifuse.methods.forever": ("Forever",),
    "kifuse.methods.gpm": ("GPM",),
    "kifuse.methods.inclora": ("IncLoRA",),
    "kifuse.methods.l2p": ("L2P",),
    "kifuse.methods.layer_sums": ("LayerSums",),
    "kifuse.methods.lfpt5": ("LFPT5",),
    "kifuse.methods.lwf": ("LwF",),
    "kifuse.methods.migu": ("MIGU",),
    "kifuse.methods.mocl": ("MoCL",),
    "kifuse.methods.moe_lora": ("MoELoRA",),
    "kifuse.methods.nlora": ("NLoRA",),
    "kifuse.methods.ogd": ("OGD",),
    "kifuse.methods.olora": ("OLoRA",),
    "kifuse.methods.on_policy_repair": ("OnPolicyRepair",),
    "kifuse.methods.osf": ("OSF",),
    "kifuse.methods.slao": ("SLAO",),
    "kifuse.methods.vr_mcl": ("VRMCL",),
    "kifuse.saved_adapter": ("load_adapter",),
    "kifuse.methods.context": ("Context", "TaskInfo"),
    "kifuse.methods.kept": ("Kept", "MethodState", "OfTask", "Unsaved"),
    "kifuse.methods.parameters": ("Parameters",),
    "kifuse.methods.joint": ("Joint",),
    "kifuse.methods.kif": ("KIF",),
    "kifuse.methods.progprompt": ("ProgPrompt",),
    "kifuse.methods.recurrent_kif": ("RecurrentKIF",),
    "kifuse.methods.replay": ("Replay",),
    "kifuse.methods.sapt": ("SAPT",),
    "kifuse.methods.sdft": ("SDFT",),
    "kifuse.methods.sequential": ("Sequential",),
    "kifuse.page_refresh": ("run",),
    "kifuse.own_method": ("register",),
    "kifuse.registry": ("build_method",),
    "kifuse.record.run_record": ("RunRecord",),
    "kifuse.driving.standalone": ("StandaloneCallback",),
    "kifuse.tasks": ("Example", "MemoryBuffer", "Task", "TaskStream", "read_stream", "read_task"),
}
_WHERE = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "DERPP",
    "ELLA",
    "EMA",
    "EPI",
    "EWC",
    "GPM",
    "KIF",
    "L2P",
    "LFPT5",
    "MIGU",
    "OGD",
    "OSF",
    "SAPT",
    "SDFT",
    "SLAO",
    "VRMCL",
    "AIMMerging",
    "Adapter",
    "ConfigError",
    "Context",
    "ContinualLearner",
    "DataError",
    "Example",
    "Export",
    "Forever",
    "Importance",
    "IncLoRA",
    "Joint",
    "Kept",
    "KifuseError",
    "LayerSums",
    "LearnReport",
    "LwF",
    "MemoryBuffer",
    "Method",
    "MethodState",
    "MoCL",
    "MoELoRA",
    "ModelError",
    "NLoRA",
    "OLoRA",
    "OfTask",
    "OnPolicyRepair",
    "Parameters",
    "ProgPrompt",
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
    "WeightEnsemble",
    "__version__",
    "build_method",
    "export",
    "fuse",
    "fuse_adapters",
    "fuse_masked",
    "identify",
    "load_adapter",
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
