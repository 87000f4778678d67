"""What an evaluation samples: problems, sampling parameters, seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdpo_mlx.backends.base import CONCURRENCY, SamplingParams
from sdpo_mlx.config import Config, EvalConfig, RolloutConfig
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.rl.components import Components
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.types import Problem

MOST_IN_TRAINING = 128  # problems: their 512 rollouts have intervals of 4 to 9 points


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
        at_stop_text=chat.at_stop_text,
    )


def eval_spec(setup: Components, purpose: str = "final") -> EvalSpec:
    """Return the evaluation that the settings ask for; by default with the seeds of a run's final scores."""
    cfg = setup.cfg
    sampling = sampling_params(cfg.eval, cfg.rollout, setup.chat)
    return EvalSpec(held_out(setup.task, cfg.eval), sampling, cfg.eval.samples, cfg.train.seed, purpose)


def held_out_in_training(task: Task, cfg: EvalConfig) -> Sequence[Problem]:
    """Return the problems that a run evaluates: by default at most `MOST_IN_TRAINING`, evenly spaced."""
    problems = held_out(task, cfg)
    count = len(problems)
    if cfg.problems is not None or count <= MOST_IN_TRAINING:
        return problems
    return [problems[n * count // MOST_IN_TRAINING] for n in range(MOST_IN_TRAINING)]


def training_spec(setup: Components, purpose: str) -> EvalSpec:
    """Return an evaluation of a run."""
    return replace(eval_spec(setup, purpose), problems=held_out_in_training(setup.task, setup.cfg.eval))


def settings_record(cfg: Config) -> dict[str, Any]:
    """Return the dotted settings in which another evaluation must agree to be comparable."""
    task = {f"task.{name}": getattr(cfg.task, name) for name in ("name", "data", "feedback", "max_turns")}
    if cfg.task.tests != "all":  # what was stored before this setting lacks it
        task["task.tests"] = cfg.task.tests
    if cfg.rollout.stop:  # the same
        task["rollout.stop"] = cfg.rollout.stop
    sampling = {f"eval.{name}": getattr(cfg.eval, name) for name in ("problems", "samples", "temperature", "top_p")}
    most = cfg.eval.max_tokens if cfg.eval.max_tokens is not None else cfg.rollout.max_tokens
    return {**task, **sampling, "eval.max_tokens": most, "train.seed": cfg.train.seed}
