"""Configuration: the schema with its defaults, and the merge of files, presets and options."""

from sdpo_mlx.config.schema import AdapterConfig as AdapterConfig
from sdpo_mlx.config.schema import Config as Config
from sdpo_mlx.config.schema import EvalConfig as EvalConfig
from sdpo_mlx.config.schema import JudgeConfig as JudgeConfig
from sdpo_mlx.config.schema import LogConfig as LogConfig
from sdpo_mlx.config.schema import MemoryConfig as MemoryConfig
from sdpo_mlx.config.schema import ModelConfig as ModelConfig
from sdpo_mlx.config.schema import ObjectiveConfig as ObjectiveConfig
from sdpo_mlx.config.schema import RolloutConfig as RolloutConfig
from sdpo_mlx.config.schema import SandboxConfig as SandboxConfig
from sdpo_mlx.config.schema import Settings as Settings
from sdpo_mlx.config.schema import TaskConfig as TaskConfig
from sdpo_mlx.config.schema import TeacherConfig as TeacherConfig
from sdpo_mlx.config.schema import TrainConfig as TrainConfig
from sdpo_mlx.config.schema import json_schema as json_schema
