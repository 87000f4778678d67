"""What a configuration alone shows before any weight is downloaded: whether a backend can load and train the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from sdpo_mlx.backends.architectures import (
    LIBRARIES,
    MLX_READS,
    TORCH_TRAINS,
    has_other_classes,
    is_known,
    mlx_lm_module,
    model_type,
)
from sdpo_mlx.backends.autograd_plan import on_card
from sdpo_mlx.backends.memory_plan import Workload, fitting, limit_of, memory, number_bytes, work_of
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.storage import check_free
from sdpo_mlx.models import hub, resolve
from sdpo_mlx.models.aliases import TABLE
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.resolve import ResolvedModel
from sdpo_mlx.models.vocabulary import check_token_ids

REFUSED, UNKNOWN = "refused", "unknown"
FEEDBACK = 512  # tokens of a grader's feedback
MAX_LAYERS, MAX_WIDTH = 1_000, 10_000_000  # a configuration beyond these is damaged, and its plan would take minutes
# What the checks at load found for each architecture, made by the command of docs/models.md:
# {"versions": {"mlx-lm": "0.32.2", ...}, "mlx": {"llama": {"learning": "by block, shared prompts"},
#  "deepseek_v41": {"refused": "why"}, ...}, "torch": {...}}, by module of mlx-lm and model_type of transformers.
_FOUND = "assets/architectures.json"


def preflight(cfg: Config, *, learns: bool = True, ranks: int = 1) -> None:
    """Refuse a model that cannot be loaded, or trained if it `learns`, before its weights are downloaded.

    `ranks` split the base. Of a hub repository only config.json and tokenizer_config.json are fetched, a few kilobytes.
    Raises ConfigError.
    """
    config = _check(cfg.model.name, cfg.model.backend)
    if learns:
        check_memory(config, cfg, ranks)
    _check_disk(cfg.model.name, cfg.model.backend, config)


def checked_model(name: str, doing: StartTask = no_tasks, *, backend: str = "auto") -> ResolvedModel:
    """Find a model that is not trained, downloading it if it is on the hub and can be loaded; raises ConfigError."""
    _check_disk(name, backend, _check(name, backend))
    return resolve.resolve(name, doing, backend=backend)


def download_bytes(name: str, backend: str, config: Mapping[str, Any]) -> float | None:
    """Return about how many bytes of weights the hub will send; None if the model is here, or its size unclear."""
    found, dims = resolve.locate(name, backend), readable_dimensions(config, name)
    if found.source != "hub" or not found.fetch or dims is None:
        return None
    return TABLE[name].bytes(backend) if name in TABLE else dims.weight_bytes(2)


def _check_disk(name: str, backend: str, config: Mapping[str, Any]) -> None:
    """Raise StorageError if a download does not fit on the disk."""
    if size := download_bytes(name, backend, config):
        check_free(hub.root(), size, f"the download of {name}")


def _check(name: str, backend: str) -> Mapping[str, Any]:
    """Refuse a model that cannot be loaded; return its configuration."""
    config = resolve.own_configuration(name, backend)
    check_configuration(config, name, backend)
    check_files(name, backend)
    return config


def check_files(name: str, backend: str) -> None:
    """Refuse a model whose files ask for code, or whose tokenizer does not fit, as far as it can be seen so early.

    Raises ConfigError.
    """
    folder = resolve.configuration_folder(name, backend)
    if folder is not None:
        resolve.refuse_code_in(folder)
        check_token_ids(folder)


def check_configuration(config: Mapping[str, Any], name: str, backend: str) -> None:
    """Raise ConfigError for an architecture or a quantization that the backend's library does not read."""
    library = "torch" if backend == "torch" else "mlx"
    if is_known(config, library) is False:
        other = "mlx" if library == "torch" else "torch"
        if not model_type(config):
            raise ConfigError("config.json names no model_type", where=name, fix="name a language model's folder")
        fix = f"use --backend {other}, which knows it" if is_known(config, other) else "use a model of another type"
        what = f"{LIBRARIES[library]} does not know the architecture {model_type(config)!r}"
        if library == "torch" and has_other_classes(config):
            what = f"transformers has no class that generates text for {model_type(config)!r}"
        raise ConfigError(what, where=name, fix=fix)
    if reason := _found(library, config).get("refused"):
        fix = "use another model; docs/models.md lists the architectures that train"
        raise ConfigError(
            f"the architecture {model_type(config)!r} cannot be trained yet: {reason}", where=name, fix=fix
        )
    check_quantization(config, name, library)


def check_quantization(config: Mapping[str, Any], name: str, library: str) -> None:
    """Raise ConfigError for quantized weights that a library does not read, or cannot train through."""
    if library == "torch" and "quantization" in config:
        fix = "use --backend mlx, or the model that it was converted from"
        raise ConfigError("its weights are quantized by mlx, which only the mlx backend reads", where=name, fix=fix)
    method = quantization_method(config)
    if library == "mlx" and method and method not in MLX_READS:
        fix = "use the model that it was made from, an MLX conversion of it, or --backend torch"
        raise ConfigError(f"mlx-lm does not read weights quantized by {method}", where=name, fix=fix)
    if library == "torch" and method and method not in TORCH_TRAINS:
        fix = "use the model that it was made from; --set model.bits=4 quantizes that while it loads"
        what = f"torch does not train through weights quantized by {method}, only by {', '.join(TORCH_TRAINS)}"
        raise ConfigError(what, where=name, fix=fix)


def quantization_method(config: Mapping[str, Any]) -> str:
    """Return the method of weights that another library than mlx quantized; blank if there is none."""
    if "quantization" in config:
        return ""
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, Mapping) else None
    found = config.get("quantization_config") or nested
    return str(found.get("quant_method") or "") if isinstance(found, Mapping) else ""


def check_memory(config: Mapping[str, Any], cfg: Config, ranks: int = 1) -> None:
    """Raise ConfigError if not even a step with prompts of one token fits; unclear dimensions are left to the load."""
    dims = readable_dimensions(config, cfg.model.name)
    if dims is None:
        return
    work = work_of(cfg, 1, 1 + cfg.rollout.max_tokens + FEEDBACK, number_bytes(cfg.model), ranks=ranks)
    if cfg.model.backend != "torch":
        fitting(dims, cfg, work, limit_of(cfg))
    elif bounds_memory(cfg):
        check_weights(dims, cfg, work)


def bounds_memory(cfg: Config) -> bool:
    """Return whether a step on torch is planned: a card has a limit, a CPU has one if `train.memory_gb` sets it."""
    return bool(cfg.train.memory_gb) or on_card(cfg.model)


def check_weights(dims: ModelDims, cfg: Config, work: Workload) -> None:
    """Raise ConfigError if torch could not even hold the weights, adapters and optimizer.

    A step that is planned too large is tried: torch reports that it is out of memory, and the step becomes smaller.
    """
    held, limit = memory(dims, cfg, work), limit_of(cfg)
    if held.base <= limit:
        return
    full = cfg.model.adapter.kind == "full"
    ways = ["--set model.adapter.kind=lora"] if full else [] if cfg.model.bits else ["--set model.bits=4"]
    what = f"weights, adapter and optimizer need {held.base / 2**30:.1f} GB, but the limit is {limit / 2**30:.1f} GB"
    fix = " or ".join(["use a smaller model", *ways])
    raise ConfigError(what, where="train.memory_gb" if cfg.train.memory_gb else cfg.model.name, fix=fix)


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


def expected_learning(config: Mapping[str, Any], backend: str) -> tuple[str, str]:
    """Return how a backend is expected to learn this architecture, as `by block, shared prompts`, and why.

    REFUSED comes with the reason, UNKNOWN with what decides.
    """
    try:
        check_configuration(config, "", backend)
    except ConfigError as error:
        return REFUSED, error.what
    found = _found("torch" if backend == "torch" else "mlx", config)
    return (found["learning"], "") if "learning" in found else (UNKNOWN, "the check at load decides")


def shares_prompts(config: Mapping[str, Any], backend: str = "mlx") -> bool:
    """Return whether a backend is expected to run a prompt once for all rollouts that begin with it."""
    return not expected_learning(config, backend)[0].endswith("separate prompts")


def _found(library: str, config: Mapping[str, Any]) -> Mapping[str, str]:
    """What is known of an architecture in the installed version of the library; empty if nothing is."""
    table = _table()
    try:
        known = table.get("versions", {}).get(LIBRARIES[library]) == version(LIBRARIES[library])
    except PackageNotFoundError:
        known = False
    name = mlx_lm_module(config) if library == "mlx" else model_type(config)
    entry: Mapping[str, str] = table.get(library, {}).get(name, {}) if known else {}
    return entry


@cache
def _table() -> Mapping[str, Any]:
    file = files("sdpo_mlx") / _FOUND
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content
