"""The configuration of a run: its schema, reading it from YAML with line numbers, and writing it as YAML."""

from kifuse.config.installed import require_packages
from kifuse.config.loading import load_config, parse_overrides, to_yaml
from kifuse.config.schema import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    MemoryConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from kifuse.config.watch import LmEvalConfig, WatchConfig

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "EvaluationConfig",
    "LmEvalConfig",
    "MemoryConfig",
    "MethodConfig",
    "ModelConfig",
    "RunConfig",
    "TrainingConfig",
    "WatchConfig",
    "load_config",
    "parse_overrides",
    "require_packages",
    "to_yaml",
]
