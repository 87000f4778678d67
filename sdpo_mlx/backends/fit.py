"""Whether a model can be trained on this machine, estimated from its configuration alone.

Memory is that of `memory_plan` with the default settings, the smallest micro-batches and prompts of PROMPT tokens; for
an alias whose configuration is not shipped, a rule of thumb from its download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sdpo_mlx.backends.architectures import is_known
from sdpo_mlx.backends.memory_plan import choose, limit_of, memory, number_bytes, work_of
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.aliases import TABLE
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.inventory import LocalModel

PROMPT = 512  # tokens of a prompt, since no task is known here
FEEDBACK = 512  # tokens of a grader's feedback
ROUGH_SHARE, ROUGH_REST = 1.4, 2 * 2**30  # of the weights, and bytes besides: within 10 % of the plan for Qwen3
MAX_LAYERS, MAX_WIDTH = 1_000, 10_000_000  # a configuration beyond these is damaged, and its plan would take minutes


@dataclass(frozen=True)
class MemoryFit:
    """Whether a training step fits, and its peak in bytes (None if it cannot be estimated).

    `rough`: the peak is a rule of thumb, not the memory plan's.
    """

    verdict: Literal["yes", "no", "unknown"]
    peak: float | None = None
    rough: bool = False


def memory_fit(found: LocalModel, machine: int | None = None) -> MemoryFit:
    """Return whether a step with the default settings fits in this machine's memory, or in `machine` bytes."""
    if found.trouble:
        return MemoryFit("no")
    supported = found.source in ("ollama", "gguf") or is_known(found.config, "mlx") is True
    dims = readable_dimensions(found.config, found.name)
    if not found.config and found.name in TABLE:
        peak = ROUGH_SHARE * TABLE[found.name].bytes("mlx") + ROUGH_REST
        return MemoryFit("yes" if peak <= limit_of(Config(), machine) else "no", peak, rough=True)
    if dims is None or not supported:
        return MemoryFit("unknown")
    try:
        cfg = Config.model_validate({"model": {"name": found.name}})
        peak = smallest_peak(dims, cfg, PROMPT)
        return MemoryFit("yes" if peak <= limit_of(cfg, machine) else "no", peak)
    except (ConfigError, ArithmeticError, AttributeError, TypeError):  # a configuration of unknown origin
        return MemoryFit("unknown")


def smallest_peak(dims: ModelDims, cfg: Config, prompt: int) -> float:
    """Return the peak in bytes of a step with prompts of so many tokens, with the settings that need least."""
    context = prompt + cfg.rollout.max_tokens + FEEDBACK
    # With a limit of 0 the planner returns its smallest settings; with memory to spare it would use more.
    return memory(dims, cfg, choose(dims, cfg, work_of(cfg, prompt, context, number_bytes(cfg.model)), 0.0)).highest


def expected_size(found: LocalModel) -> float | None:
    """Return the bytes of the weights of a model that is not downloaded yet; None if its configuration is unclear."""
    if found.name in TABLE:
        return TABLE[found.name].bytes("mlx")
    dims = readable_dimensions(found.config, found.name)
    return None if dims is None else dims.weight_bytes(4 if found.quantisation == "float32" else 2)


def readable_dimensions(config: Mapping[str, Any], where: str) -> ModelDims | None:
    """Return the dimensions of a configuration; None if it is missing, unreadable or out of range."""
    try:
        dims = ModelDims.of(config, where)
    except (ConfigError, ArithmeticError, AttributeError, TypeError):
        return None
    numbers = [value for name, value in vars(dims).items() if isinstance(value, int) and name != "outside"]
    least = min(dims.layers, dims.width, dims.heads, dims.kv_heads, dims.head_width, dims.vocabulary)
    in_range = least >= 1 and min(numbers) >= 0 and max(numbers) <= MAX_WIDTH and dims.layers <= MAX_LAYERS
    return dims if in_range else None
