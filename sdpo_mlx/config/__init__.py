"""Configuration: the schema with its defaults, and the merge of files, presets and options."""

from sdpo_mlx.config.schema import (
    AdapterConfig,
    Config,
    EvalConfig,
    JudgeConfig,
    LogConfig,
    ModelConfig,
    ObjectiveConfig,
    RolloutConfig,
    SandboxConfig,
    Settings,
    TaskConfig,
    TeacherConfig,
    TrainConfig,
    json_schema,
)

__all__ = [
    "AdapterConfig",
    "Config",
    "EvalConfig",
    "JudgeConfig",
    "LogConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "RolloutConfig",
    "SandboxConfig",
    "Settings",
    "TaskConfig",
    "TeacherConfig",
    "TrainConfig",
    "json_schema",
]
