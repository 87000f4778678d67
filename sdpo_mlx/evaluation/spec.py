"""What an evaluation samples: problems, sampling parameters, seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_mlx.backends.base import CONCURRENCY, SamplingParams
from sdpo_mlx.config import Config, EvalConfig, RolloutConfig
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.rl.components import Components
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.types import Problem


@dataclass(frozen=True)
class EvalSpec:
    """`samples` rollouts for each problem; every random seed follows from `seed` and `purpose`."""

    problems: Sequence[Problem]
    sampling: SamplingParams
    samples: int
    seed: int
    purpose: str = "eval"


def held_out(task: Task, cfg: EvalConfig) -> Sequence[Problem]:
    """Return the problems that evaluation uses."""
    problems = task.problems("held_out")
    return problems[: cfg.problems] if cfg.problems is not None else problems


def sampling_params(cfg: EvalConfig, rollout: RolloutConfig, chat: Chat) -> SamplingParams:
    """Return how evaluation samples."""
    return SamplingParams(
        max_tokens=cfg.max_tokens if cfg.max_tokens is not None else rollout.max_tokens,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        eos_ids=chat.eos_ids,
        concurrency=rollout.concurrency or CONCURRENCY,
    )


def eval_spec(setup: Components) -> EvalSpec:
    """Return the evaluation that the settings ask for, with the seeds of a run's scores before and after training.

    Raises DataError if the task has no held-out problems.
    """
    cfg = setup.cfg
    problems = held_out(setup.task, cfg.eval)
    if not problems:
        fix = "give some rows of the data the split held_out"
        raise DataError("the task has no held-out problems", where=cfg.task.data or cfg.task.name, fix=fix)
    sampling = sampling_params(cfg.eval, cfg.rollout, setup.chat)
    return EvalSpec(problems, sampling, cfg.eval.samples, cfg.train.seed, "final")


def settings_record(cfg: Config) -> dict[str, Any]:
    """Return the dotted settings in which another evaluation must agree to be comparable."""
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
