"""Whether a model can be trained on this machine, estimated from its configuration alone.

Memory is that of `memory_plan` with the default settings, the smallest micro-batches and prompts of PROMPT tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from sdpo_mlx.backends.memory_plan import choose, limit_of, memory, number_bytes, work_of
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.inventory import LocalModel

PROMPT = 512  # tokens of a prompt, since no task is known here
FEEDBACK = 512  # tokens of a grader's feedback
MAX_LAYERS, MAX_WIDTH = 1_000, 10_000_000  # a configuration beyond these is damaged, and its plan would take minutes
_REMAPPED = ("mistral", "iquestcoder", "xverse")  # model types that mlx-lm loads as llama


@dataclass(frozen=True)
class MemoryFit:
    """Whether a training step fits, and its peak in bytes (None if it cannot be estimated)."""

    verdict: Literal["yes", "no", "unknown"]
    peak: float | None = None


def memory_fit(found: LocalModel, machine: int | None = None) -> MemoryFit:
    """Return whether a step with the default settings fits in this machine's memory, or in `machine` bytes."""
    if found.trouble:
        return MemoryFit("no")
    supported = found.source in ("ollama", "gguf") or _in_mlx_lm(str(found.config.get("model_type")))
    dims = _dimensions(found)
    if dims is None or not supported:
        return MemoryFit("unknown")
    try:
        cfg = Config.model_validate({"model": {"name": found.name}})
        context = PROMPT + cfg.rollout.max_tokens + FEEDBACK
        # With a limit of 0 the planner returns its smallest settings; with memory to spare it would use more.
        smallest = choose(dims, cfg, work_of(cfg, PROMPT, context, number_bytes(cfg.model)), 0.0)
        peak, limit = memory(dims, cfg, smallest).highest, limit_of(cfg, machine)
    except (ConfigError, ArithmeticError, AttributeError, TypeError):  # a configuration of unknown origin
        return MemoryFit("unknown")
    return MemoryFit("yes" if peak <= limit else "no", peak)


def expected_size(found: LocalModel) -> float | None:
    """Return the bytes of the weights of a model that is not downloaded yet; None if its configuration is unclear."""
    dims = _dimensions(found)
    return None if dims is None else dims.weight_bytes(4 if found.quantisation == "float32" else 2)


def _dimensions(found: LocalModel) -> ModelDims | None:
    """The model's dimensions, or None if its configuration is missing, unreadable or out of range."""
    try:
        dims = ModelDims.of(found.config, found.name)
    except (ConfigError, ArithmeticError, AttributeError, TypeError):
        return None
    numbers = [value for value in vars(dims).values() if isinstance(value, int)]
    least = min(dims.layers, dims.width, dims.heads, dims.kv_heads, dims.head_width, dims.vocabulary)
    in_range = least >= 1 and min(numbers) >= 0 and max(numbers) <= MAX_WIDTH and dims.layers <= MAX_LAYERS
    return dims if in_range else None


def _in_mlx_lm(model_type: str) -> bool:
    """Whether mlx-lm supports this model type, found by file name: importing mlx-lm takes a second."""
    package = find_spec("mlx_lm")
    folders = package.submodule_search_locations if package is not None else None
    if not folders or not model_type.isidentifier():
        return False
    return model_type in _REMAPPED or any((Path(each) / "models" / f"{model_type}.py").is_file() for each in folders)
