"""What a target's evaluation depends on, and where its answers are kept: with the run, else in the user's cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdpo_mlx import __version__
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.storage import cache_home, digest, json_line
from sdpo_mlx.evaluation.cache import RolloutCache
from sdpo_mlx.evaluation.evaluate import EvalSpec, held_out, sampling_params
from sdpo_mlx.rl.components import Components
from sdpo_mlx.runs.folder import adapter_sha256
from sdpo_mlx.runs.targets import is_run
from sdpo_mlx.tasks.data.sources import identity

# Details of a policy that say how it computes, not what; they may change while it does.
_HOW = ("micro_batch_tokens",)


def eval_spec(setup: Components) -> EvalSpec:
    """The exam that the settings ask for, with the seeds of a run's own before and after.

    Raises DataError where the task has no held-out problems.
    """
    cfg = setup.cfg
    problems = held_out(setup.task, cfg.eval)
    if not problems:
        fix = "give some rows of the data the split held_out"
        raise DataError("the task has no held-out problems", where=cfg.task.data or cfg.task.name, fix=fix)
    sampling = sampling_params(cfg.eval, setup.cfg.rollout, setup.chat)
    return EvalSpec(problems, sampling, cfg.eval.samples, cfg.train.seed, "final")


def answers_depend_on(setup: Components, exam: EvalSpec, adapter: Path | None) -> dict[str, Any]:
    """Everything that an answer or its grade depends on besides problem and seed; `adapter`: the folder of one.

    An untouched student is the base, whatever adapter stands ready; but DoRA's rounds otherwise.
    """
    cfg, info, shape = setup.cfg, setup.policy.info, setup.cfg.model.adapter
    touched = adapter is not None or shape.kind == "dora"
    sampling = {name: value for name, value in asdict(exam.sampling).items() if name != "concurrency"}
    data = cfg.task.data
    return {
        "version": __version__,
        "base": setup.model.weights_sha256,
        "adapter": adapter_sha256(adapter) if adapter is not None else "",
        "shape": shape.model_dump(mode="json") if touched else None,
        "tokenizer": setup.chat.tokenizer_hash,
        "model": cfg.model.model_dump(mode="json", include={"bits", "thinking"}),
        "policy": [info.backend, info.device, info.dtype, info.context_length],
        "details": {name: value for name, value in info.details.items() if name not in _HOW},
        "sampling": {**sampling, "eos_ids": sorted(exam.sampling.eos_ids)},
        "task": cfg.task.model_dump(mode="json"),
        "data": identity(data) if data else None,
        "own": getattr(setup.task, "fingerprint", None),
        "grading": [cfg.judge.model_dump(mode="json"), cfg.sandbox.model_dump(mode="json"), setup.sandbox],
    }


def rollout_cache(depends_on: Mapping[str, Any], run: Path | None = None) -> RolloutCache:
    """The store of these answers: in the run's folder `evals/` where it can be written, else in the user's cache."""
    beside = run is not None and is_run(run) and os.access(run, os.W_OK)
    home = run if run is not None and beside else cache_home()
    return RolloutCache(home / "evals" / f"{digest(json_line(depends_on))[:32]}.jsonl")


def adapter_folder(target: str, adapter: Path | None) -> Path | None:
    """Where the adapter of a TARGET lies; None for a bare model."""
    return Path(target) if is_run(Path(target)) else adapter


def settings_record(cfg: Config) -> dict[str, Any]:
    """What another model must be asked alike, as dotted settings."""
    return {
        "task.name": cfg.task.name,
        "task.data": cfg.task.data,
        "task.feedback": cfg.task.feedback,
        "task.max_turns": cfg.task.max_turns,
        "eval.problems": cfg.eval.problems,
        "eval.samples": cfg.eval.samples,
        "eval.temperature": cfg.eval.temperature,
        "eval.top_p": cfg.eval.top_p,
        "eval.max_tokens": cfg.eval.max_tokens if cfg.eval.max_tokens is not None else cfg.rollout.max_tokens,
        "train.seed": cfg.train.seed,
    }
