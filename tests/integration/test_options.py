"""Options that change nothing: every leaf of the settings is turned, and something that a run leaves must move."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from small_runs import settings, trained, with_value
from temp_folders import new_folder

from sdpo_mlx.config import Config, JudgeConfig, SandboxConfig
from sdpo_mlx.config.keys import LEAVES
from sdpo_mlx.rl.components import Components
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.types import Problem

# What to turn an option to, and the settings under which it has a say.
MOST: dict[str, Any] = {}
HYBRID = {"objective.kind": "hybrid"}
GRPO = {"objective.kind": "grpo", "train.updates_per_batch": 2, "train.learning_rate": 0.02}
OFF_POLICY = {"train.updates_per_batch": 2, "train.learning_rate": 0.02}
TOP = {"objective.support": "top_k", "objective.top_k": 3}
STILL = {"train.learning_rate": 0.0, "train.eval_every": 1}
BOTH = {"teacher.feedback_only_without_demonstration": False}
TURNS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "model.dtype": ("float16", MOST),
    "model.adapter.kind": ("dora", MOST),
    "model.adapter.rank": (4, MOST),
    "model.adapter.scale": (1.0, MOST),
    "model.adapter.dropout": (0.5, MOST),
    "model.adapter.keys": (["self_attn.q_proj"], MOST),
    "model.adapter.layers": (1, MOST),
    "task.name": ("tiny:mid", MOST),
    "task.feedback": ("none", MOST),
    "rollout.problems_per_step": (1, MOST),
    "rollout.group_size": (3, MOST),
    "rollout.max_tokens": (9, MOST),
    "rollout.temperature": (0.7, MOST),
    "rollout.top_p": (0.5, MOST),
    "teacher.kind": ("frozen", MOST),
    "teacher.update_rate": (0.5, MOST),
    "teacher.demonstration": ("off", BOTH),
    "teacher.own_success": (True, MOST),
    "teacher.success_threshold": (2.0, MOST),
    "teacher.feedback": (False, MOST),
    "teacher.feedback_only_without_demonstration": (False, MOST),
    "teacher.include_attempt": (True, MOST),
    "teacher.max_context_tokens": (20, MOST),
    "teacher.template": ("{problem}\nHint: {demonstration}{feedback}", MOST),
    "objective.kind": ("grpo", MOST),
    "objective.alpha": (1.0, MOST),
    "objective.support": ("top_k", {"objective.top_k": 3}),
    "objective.top_k": (4, TOP),
    "objective.tail": (False, TOP),
    "objective.importance_clip": (0.5, MOST),
    "objective.aggregation": ("sequence_mean_token_mean", MOST),
    "objective.question_weight": ("pass_rate", MOST),
    "objective.route": ("by_success", MOST),
    "objective.hybrid_weight": (0.9, HYBRID),
    "objective.clip_low": (0.0, GRPO),
    "objective.clip_high": (0.0, GRPO),
    "objective.std_normalise": (True, GRPO),
    "train.steps": (2, MOST),
    "train.learning_rate": (1e-3, MOST),
    "train.schedule": ("linear", MOST),
    "train.warmup_steps": (2, MOST),
    "train.weight_decay": (0.5, MOST),
    "train.clip_norm": (1e-3, MOST),
    "train.updates_per_batch": (2, MOST),
    "train.eval_every": (1, MOST),
    "train.save_every": (1, MOST),
    "train.patience": (1, STILL),
    "train.seed": (1, MOST),
    "eval.problems": (1, MOST),
    "eval.samples": (2, MOST),
    "eval.temperature": (0.0, MOST),
    "eval.top_p": (0.1, MOST),
    "eval.max_tokens": (5, MOST),
    "log.samples": (0, MOST),
    "log.candidates": (0, MOST),
    "log.teacher_answers": (0, MOST),
}
ELSEWHERE = {
    "model.name": "another base: tests/test_models.py",
    "model.backend": "the other one, torch, is an extra: tests/agreement",
    "model.bits": "how torch holds the base, an extra: tests/agreement/test_bits.py",
    "model.device": "where torch runs, an extra: tests/agreement",
    "model.thinking": "the embedded model has no such switch: tests/test_chat.py",
    "task.data": "the embedded task takes none: tests/test_code_task.py",
    "task.max_turns": "the embedded task has one turn: tests/test_turns.py",
    "task.on_error": "needs bad rows: tests/test_data.py",
    "rollout.concurrency": "it must change nothing but memory: tests/test_mlx_generation.py",
    "train.memory_gb": "it must change nothing but memory: tests/test_plan.py",
    "train.grad_checkpoint": "it must change nothing but memory: test_mlx_learning.py, agreement/test_gradients.py",
    "train.micro_batch_tokens": "it must change nothing but memory: tests/test_mlx_learning.py",
    "log.sinks": "they must change nothing: tests/test_trackers.py",
    "sandbox.kind": "the embedded task executes nothing: below",
    "sandbox.seconds": "below",
    "sandbox.memory_mb": "below",
    "sandbox.image": "needs a container engine: tests/test_container.py",
} | {f"judge.{name}": "the embedded task has no judge: tests/test_judge.py" for name in JudgeConfig.model_fields}


class Heard:
    """Keeps every answer that is graded, the held-out ones too."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, str]] = []

    def listen(self, setup: Components) -> None:
        task: Any = setup.task
        grade = task.grade

        def heard(problem: Problem, text: str, *, truncated: bool = False) -> Any:
            self.answers.append((problem.id, text))
            return grade(problem, text, truncated=truncated)

        task.grade = heard


def outcome(cfg: Config) -> dict[str, Any]:
    """All that a run leaves but its record of the settings, clocks and memory."""
    folder, heard = new_folder("options"), Heard()
    trained(folder, cfg, change=heard.listen)
    found = checkpoint.load(folder / "checkpoints")
    assert found is not None
    told = [e for e in read_events(folder / "events.jsonl") if e["type"] != "run_started"]
    return {
        "answers": sorted(heard.answers),
        "state": {f"{part}/{n}": a.tobytes() for part, each in found.state.items() for n, a in each.items()},
        "events": [{n: v for n, v in e.items() if n != "time" and n[:5] not in ("time/", "memor")} for e in told],
        "rollouts": {path.name: path.read_bytes() for path in (folder / "rollouts").iterdir()},
    }


def base(options: Mapping[str, Any]) -> Config:
    cfg = settings(train={"steps": 3, "save_every": 3, "eval_every": 3}, log={"samples": 2})
    for key, value in options.items():
        cfg = with_value(cfg, key, value)
    return cfg


@cache
def unturned(options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return outcome(base(dict(options)))


def test_every_option_is_turned_or_named() -> None:
    assert set(TURNS) | set(ELSEWHERE) == set(LEAVES)
    assert not set(TURNS) & set(ELSEWHERE)


@pytest.mark.parametrize("options", [MOST, GRPO, TOP], ids=["sdpo", "grpo", "top-k"])
def test_a_run_that_nobody_turns_is_the_same_again(options: Mapping[str, Any]) -> None:
    first, second = unturned(tuple(options.items())), outcome(base(options))
    assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.parametrize("key", TURNS)
def test_an_option_changes_what_a_run_leaves(key: str) -> None:
    value, options = TURNS[key]
    before = unturned(tuple(options.items()))
    after = outcome(with_value(base(options), key, value))
    assert [name for name in before if before[name] != after[name]] != []


def test_sandbox_options_reach_the_program() -> None:
    box = open_sandbox(SandboxConfig(kind="unconfined", seconds=0.5))
    assert box.kind == "unconfined"
    assert b"late" not in box.run("import time; time.sleep(3); print('late')").stdout
    roomy, tight = (open_sandbox(SandboxConfig(kind="unconfined", memory_mb=size)) for size in (512, 128))
    big = "print(len(bytearray(256 << 20)))"
    assert roomy.run(big).stdout.strip() == str(256 << 20).encode()
    assert tight.run(big).stdout.strip() == b""
