"""Whether a model can be trained on this machine, estimated from its configuration alone.

Memory is that of `sdpo plan --model NAME`: the settings that the planner chooses for this machine, with prompts of
PROMPT tokens; for an alias whose configuration is not shipped, a rule of thumb from its download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sdpo_mlx.backends.architectures import is_known
from sdpo_mlx.backends.command_size import EvaluationSizes, evaluation_limit
from sdpo_mlx.backends.memory_plan import Workload, bounded, choose, limit_of, memory, number_bytes, work_of
from sdpo_mlx.backends.preflight import (
    FEEDBACK,
    REFUSED,
    download_bytes,
    expected_learning,
    readable_dimensions,
    shares_prompts,
)
from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.storage import free_bytes
from sdpo_mlx.models import hub
from sdpo_mlx.models.aliases import TABLE
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.inventory import LocalModel
from sdpo_mlx.models.resolve import locate, meaning, planned_configuration, shipped_dimensions

PROMPT = 512  # tokens of a prompt, since no task is known here
ROUGH_SHARE, ROUGH_REST = 1.4, 2 * 2**30  # of the weights, and bytes besides: within 10 % of the plan for Qwen3


@dataclass(frozen=True)
class MemoryFit:
    """Whether a training step fits, and its peak in bytes (None if it cannot be estimated).

    `rough`: the peak is a rule of thumb, not the memory plan's.
    """

    verdict: Literal["yes", "no", "unknown"]
    peak: float | None = None
    rough: bool = False


def memory_fit(found: LocalModel, machine: int | None = None, backend: str = "auto") -> MemoryFit:
    """Return whether a step with the default settings fits in this machine's memory, or in `machine` bytes."""
    library = "torch" if backend == "torch" else "mlx"
    refused = library == "torch" and found.config and expected_learning(found.config, library)[0] == REFUSED
    if found.trouble or refused:
        return MemoryFit("no")
    supported = found.source in ("ollama", "gguf") or is_known(found.config, library) is True
    dims = readable_dimensions(found.config, found.name)
    if not found.config and found.name in TABLE:
        peak = ROUGH_SHARE * TABLE[found.name].bytes(library) + ROUGH_REST
        return MemoryFit("yes" if peak <= limit_of(_settings(found.name, backend), machine) else "no", peak, rough=True)
    if dims is None or not supported:
        return MemoryFit("unknown")
    try:
        cfg = _settings(found.name, backend)
        limit = limit_of(cfg, machine)
        peak = memory(dims, cfg, step_work(dims, cfg, found.config, limit)).highest
        return MemoryFit("yes" if peak <= limit else "no", peak)
    except (ConfigError, ArithmeticError, AttributeError, TypeError):  # a configuration of unknown origin
        return MemoryFit("unknown")


def _settings(name: str, backend: str) -> Config:
    return resolve(None, (), {"model.name": name, "model.backend": backend}, python=True).config


def step_work(
    dims: ModelDims,
    cfg: Config,
    config: Mapping[str, Any],
    limit: float,
    lengths: tuple[int, int] | None = None,
    ranks: int = 1,
) -> Workload:
    """Return the step as the planner chooses it for a limit in bytes, and as the backend runs it here.

    `lengths` are the tokens of the longest prompt and of the longest teacher context; None: no task is known. `ranks`
    split the base; raise ConfigError if the settings do not let them.
    """
    prompt, context = lengths or (PROMPT, PROMPT + cfg.rollout.max_tokens + FEEDBACK)
    torch = cfg.model.backend == "torch"
    if ranks > 1 and not (torch and cfg.model.shard):
        fix = "add --backend torch --set model.shard=true"
        raise ConfigError("every rank holds the whole base", where="--ranks", fix=fix)
    shares = shares_prompts(config, "torch" if torch else "mlx")
    work = work_of(cfg, prompt, context, number_bytes(cfg.model), shares=shares, ranks=ranks)
    chosen = choose(dims, cfg, work, limit)
    return chosen if torch else bounded(chosen, evaluation_sizes(cfg, config, dims))


def evaluation_sizes(cfg: Config, config: Mapping[str, Any], dims: ModelDims) -> EvaluationSizes:
    """Return how many tokens MLX evaluates at once on this machine, as expected before the model loads."""
    from sdpo_mlx.backends.mlx.device import chip_name

    limit = evaluation_limit(cfg.memory.evaluation_gflop, chip_name())
    return EvaluationSizes.of(
        dims, cfg.model.adapter, limit, by_block=expected_learning(config, "mlx")[0].startswith("by block")
    )


def smaller_alias(cfg: Config, parameters: float, limit: float) -> dict[str, Any] | None:
    """Return the largest known model below so many parameters of which a step fits: its name, and the peak in bytes.

    Of the same family if there is one. None if none fits, or no alias has shipped dimensions.
    """
    family = cfg.model.name.partition(":")[0]
    smaller = [name for name, alias in TABLE.items() if 1e9 * alias.billions < 0.9 * parameters]
    for name in sorted(
        smaller, key=lambda each: (each.partition(":")[0] == family, TABLE[each].billions), reverse=True
    ):
        config = shipped_dimensions(name, cfg.model.backend)
        if not config:
            continue
        own = cfg.model_copy(update={"model": cfg.model.model_copy(update={"name": name})})
        dims = ModelDims.of(config, name)
        peak = memory(dims, own, step_work(dims, own, config, limit)).highest
        if peak <= limit:
            return {"name": name, "peak": peak}
    return None


def download_notice(cfg: Config) -> str:
    """Return what a download will take, and whether a step fits then; blank if the model is on this machine.

    From the configuration alone, which is fetched from the hub if it is not shipped. Raises ConfigError.
    """
    name, backend = cfg.model.name, cfg.model.backend
    kind, target = meaning(name, backend)
    if kind != "hub" or not locate(name, backend).fetch:
        return ""
    config = planned_configuration(name, backend)
    size, dims = download_bytes(name, backend, config), readable_dimensions(config, name)
    if size is None or dims is None:
        return ""
    terms = f", licence {TABLE[name].license}" if name in TABLE else ""
    limit = limit_of(cfg)
    peak = memory(dims, cfg, step_work(dims, cfg, config, limit)).highest
    verdict = "fits" if peak <= limit else "does not fit"
    memory_needed = f"a training step needs about {peak / 2**30:.1f} of {limit / 2**30:.1f} GB memory: {verdict}"
    disk = f"about {size / 2**30:.1f} GB ({free_bytes(hub.root()) / 2**30:.0f} GB free on the disk)"
    return f"to download from the hub: {target}, {disk}{terms}; {memory_needed}"


def expected_size(found: LocalModel, backend: str = "auto") -> float | None:
    """Return the bytes of the weights of a model that is not downloaded yet; None if its configuration is unclear."""
    if found.name in TABLE:
        return TABLE[found.name].bytes(backend)
    dims = readable_dimensions(found.config, found.name)
    return None if dims is None else dims.weight_bytes(4 if found.quantization == "float32" else 2)
