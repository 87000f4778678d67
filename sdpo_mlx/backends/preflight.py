"""What a configuration alone shows before any weight is downloaded: whether a backend can load and train the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sdpo_mlx.backends.architectures import LIBRARIES, MLX_READS, is_known, model_type
from sdpo_mlx.backends.fit import FEEDBACK, readable_dimensions
from sdpo_mlx.backends.memory_plan import fitting, limit_of, number_bytes, work_of
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models import resolve
from sdpo_mlx.models.vocabulary import check_token_ids

# How a backend learns: by block with shared prompts, by body and head of any model, not at all; unknown until loaded.
Way = Literal["blocks", "generic", "refused", "unknown"]


def preflight(cfg: Config, *, learns: bool = True) -> None:
    """Refuse a model that cannot be loaded, or trained if it `learns`, before its weights are downloaded.

    Of a hub repository only config.json and tokenizer_config.json are fetched, a few kilobytes. Raises ConfigError.
    """
    name, backend = cfg.model.name, cfg.model.backend
    config = resolve.own_configuration(name, backend)
    check_configuration(config, name, backend)
    check_files(cfg)
    if learns:
        check_memory(config, cfg)


def check_files(cfg: Config) -> None:
    """Refuse a model whose files ask for code, or whose tokenizer does not fit, as far as it can be seen so early.

    Raises ConfigError.
    """
    folder = resolve.configuration_folder(cfg.model.name, cfg.model.backend)
    if folder is not None:
        resolve.refuse_code_in(folder)
        check_token_ids(folder)


def check_configuration(config: Mapping[str, Any], name: str, backend: str) -> None:
    """Raise ConfigError for an architecture or a quantization that the backend's library does not read."""
    library = "torch" if backend == "torch" else "mlx"
    if is_known(config, library) is False:
        other = "mlx" if library == "torch" else "torch"
        fix = f"use --backend {other}, which knows it" if is_known(config, other) else "use a model of another type"
        kind = model_type(config) or "without model_type"
        raise ConfigError(f"{LIBRARIES[library]} does not know the architecture {kind!r}", where=name, fix=fix)
    if library == "torch" and "quantization" in config:
        fix = "use --backend mlx, or the model that it was converted from"
        raise ConfigError("its weights are quantized by mlx, which only the mlx backend reads", where=name, fix=fix)
    method = quantization_method(config)
    if library == "mlx" and method and method not in MLX_READS:
        fix = "use the model that it was made from, an MLX conversion of it, or --backend torch"
        raise ConfigError(f"mlx-lm does not read weights quantized by {method}", where=name, fix=fix)


def quantization_method(config: Mapping[str, Any]) -> str:
    """Return the method of weights that another library than mlx quantized; blank if there is none."""
    if "quantization" in config:
        return ""
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, Mapping) else None
    found = config.get("quantization_config") or nested
    return str(found.get("quant_method") or "") if isinstance(found, Mapping) else ""


def check_memory(config: Mapping[str, Any], cfg: Config) -> None:
    """Raise ConfigError if not even a step with prompts of one token fits; unclear dimensions are left to the load."""
    dims = readable_dimensions(config, cfg.model.name)
    if dims is None:
        return
    if cfg.model.backend != "torch":
        work = work_of(cfg, 1, 1 + cfg.rollout.max_tokens + FEEDBACK, number_bytes(cfg.model))
        fitting(dims, cfg, work, limit_of(cfg))
    elif cfg.train.memory_gb and not cfg.model.bits:  # torch finds the sizes of a step at run time
        weights = dims.weight_bytes(number_bytes(cfg.model))
        if weights > cfg.train.memory_gb * 2**30:
            what = f"the weights need {weights / 2**30:.1f} GB, but the limit is {cfg.train.memory_gb:.1f} GB"
            raise ConfigError(what, where="train.memory_gb", fix="use a smaller model, or --set model.bits=4")


def expected_way(config: Mapping[str, Any], backend: str) -> tuple[Way, str]:
    """Return how a backend is expected to learn this architecture, and why; the check at load decides."""
    try:
        check_configuration(config, "", backend)
    except ConfigError as error:
        return "refused", error.what
    return "unknown", "the check at load decides"
