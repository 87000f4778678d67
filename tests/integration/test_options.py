"""No setting is without effect: each is changed, and something in the run folder must change with it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from paths import ROOT
from small_runs import settings, trained, with_value

from sdpo_mlx.config import Config, JudgeConfig, SandboxConfig
from sdpo_mlx.config.keys import LEAVES
from sdpo_mlx.rl.components import Components
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.sandbox.choice import open_sandbox
from sdpo_mlx.types import Problem

# A value for each setting, and other settings under which it has an effect.
DEFAULTS: dict[str, Any] = {}  # one step on six tokens, which are too few for a success
TWO_STEPS = {"train.steps": 2}
WHOLE = {**TWO_STEPS, "rollout.group_size": 4, "rollout.max_tokens": 24}  # whole answers, of which some succeed
SINGLE = {**WHOLE, "rollout.group_size": 1, "rollout.problems_per_step": 16, "teacher.own_success": True}
HYBRID = {"objective.kind": "hybrid"}
GRPO = {**WHOLE, "objective.kind": "grpo", "train.updates_per_batch": 2, "train.learning_rate": 0.02}
TOP = {"objective.support": "top_k", "objective.top_k": 3}
NO_LEARNING = {**TWO_STEPS, "train.learning_rate": 0.0, "train.eval_every": 1}
BOTH = {**WHOLE, "teacher.feedback_only_without_demonstration": False}
CHANGES: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "model.dtype": ("float16", DEFAULTS),
    "model.adapter.kind": ("dora", DEFAULTS),
    "model.adapter.rank": (4, DEFAULTS),
    "model.adapter.scale": (1.0, DEFAULTS),
    "model.adapter.dropout": (0.5, DEFAULTS),
    "model.adapter.keys": (["self_attn.q_proj"], DEFAULTS),
    "model.adapter.layers": (1, DEFAULTS),
    "task.name": ("tiny:mid", DEFAULTS),
    "task.feedback": ("none", DEFAULTS),
    "rollout.problems_per_step": (1, DEFAULTS),
    "rollout.group_size": (3, DEFAULTS),
    "rollout.max_tokens": (5, DEFAULTS),
    "rollout.temperature": (0.7, DEFAULTS),
    "rollout.top_p": (0.5, DEFAULTS),
    "rollout.stop": ([" "], DEFAULTS),
    "teacher.kind": ("frozen", DEFAULTS),
    "teacher.update_rate": (0.5, DEFAULTS),
    "teacher.demonstration": ("off", BOTH),
    "teacher.own_success": (True, WHOLE),
    "teacher.all_correct": (True, SINGLE),
    "teacher.success_threshold": (2.0, WHOLE),
    "teacher.feedback": (False, DEFAULTS),
    "teacher.feedback_only_without_demonstration": (False, WHOLE),
    "teacher.include_attempt": (True, DEFAULTS),
    "teacher.max_context_tokens": (20, DEFAULTS),
    "teacher.template": ("{problem}\nHint: {demonstration}{feedback}", DEFAULTS),
    "objective.kind": ("grpo", DEFAULTS),
    "objective.alpha": (1.0, DEFAULTS),
    "objective.support": ("top_k", {"objective.top_k": 3}),
    "objective.top_k": (4, TOP),
    "objective.tail": (False, TOP),
    "objective.importance_clip": (0.5, DEFAULTS),
    "objective.aggregation": ("sequence_mean_token_mean", WHOLE),
    "objective.question_weight": ("pass_rate", DEFAULTS),
    "objective.route": ("by_success", WHOLE),
    "objective.hybrid_weight": (0.9, HYBRID),
    "objective.clip_low": (0.0, GRPO),
    "objective.clip_high": (0.0, GRPO),
    "objective.std_normalise": (True, GRPO),
    "train.steps": (2, DEFAULTS),
    "train.learning_rate": (1e-3, DEFAULTS),
    "train.schedule": ("linear", TWO_STEPS),
    "train.warmup_steps": (2, DEFAULTS),
    "train.weight_decay": (0.5, DEFAULTS),
    "train.clip_norm": (1e-3, DEFAULTS),
    "train.updates_per_batch": (2, DEFAULTS),
    "train.eval_every": (1, TWO_STEPS),
    "train.save_every": (1, TWO_STEPS),
    "train.patience": (1, NO_LEARNING),
    "train.seed": (1, DEFAULTS),
    "train.probe": (True, DEFAULTS),
    "eval.problems": (1, DEFAULTS),
    "eval.samples": (2, DEFAULTS),
    "eval.temperature": (0.0, DEFAULTS),
    "eval.top_p": (0.1, DEFAULTS),
    "eval.max_tokens": (3, DEFAULTS),
    "log.samples": (0, DEFAULTS),
    "log.candidates": (0, DEFAULTS),
    "log.teacher_answers": (1, DEFAULTS),
}
TESTED_ELSEWHERE = {
    "model.name": "needs another base: unit/models/test_resolve.py",
    "model.backend": "torch is an extra: numerics/test_step_gradients.py",
    "model.adapter.start": "needs a trained adapter: integration/test_grammar.py",
    "model.shard": "needs several ranks: numerics/test_torch_sharding.py",
    "model.bits": "torch is an extra: numerics/test_torch_quantized.py",
    "train.eval_share": "needs a slow evaluation: integration/test_trainer.py",
    "train.on_decline": "needs a score that falls: integration/test_decline.py",
    "model.device": "torch is an extra: numerics/test_step_gradients.py",
    "model.chat_template": "needs another template: integration/test_chat_templates.py",
    "model.thinking": "the embedded model has no such switch: unit/models/test_chat_template.py",
    "task.data": "the embedded task takes none: unit/tasks/test_code_task.py",
    "task.tests": "the embedded task runs no tests: unit/tasks/test_code_half_tests.py",
    "task.max_turns": "the embedded task has one turn: integration/test_multi_turn.py",
    "task.on_error": "needs bad rows: unit/tasks/test_data.py",
    "objective.importance": "needs several updates a batch: numerics/test_step_gradients.py",
    "objective.dual_clip": "needs ratios far from 1: numerics/test_objective_weights.py",
    "rollout.concurrency": "changes only the memory: numerics/test_mlx_generation.py",
    "rollout.engine": "torch is an extra: numerics/test_rollout_engines.py",
    "rollout.vllm": "needs vllm: numerics/test_vllm_engine.py",
    "train.memory_gb": "changes only the memory: unit/backends/test_memory_plan.py",
    "train.grad_checkpoint": "changes only the memory: numerics/test_mlx_learning.py",
    "train.micro_batch_tokens": "changes only the memory: numerics/test_mlx_learning.py",
    "memory.wired": "needs a GPU: unit/backends/test_device_limits.py",
    "memory.limit": "needs a GPU: unit/backends/test_device_limits.py",
    "memory.cache_limit": "needs a GPU: unit/backends/test_device_limits.py",
    "memory.evaluation_gflop": "changes only the size of evaluations: unit/backends/test_device_limits.py",
    "log.sinks": "changes nothing else: unit/runs/test_tracking.py",
    "sandbox.kind": "the embedded task runs no programs: integration/test_options.py",
    "sandbox.seconds": "the embedded task runs no programs: integration/test_options.py",
    "sandbox.total_seconds": "the embedded task runs no programs: unit/tasks/test_code_judges.py",
    "sandbox.memory_mb": "the embedded task runs no programs: integration/test_options.py",
    "sandbox.image": "needs a container engine: security/test_container.py",
} | {f"judge.{name}": "the embedded task has no judge: unit/tasks/test_judge.py" for name in JudgeConfig.model_fields}


class GradeRecorder:
    """Records every graded rollout, the held-out ones too."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, str]] = []

    def attach(self, components: Components) -> None:
        task: Any = components.task
        grade = task.grade

        def recording(problem: Problem, text: str, *, truncated: bool = False) -> Any:
            self.answers.append((problem.id, text))
            return grade(problem, text, truncated=truncated)

        task.grade = recording


def outcome(cfg: Config) -> dict[str, Any]:
    """Everything that a run writes, except its record of the settings, times and memory."""
    with TemporaryDirectory(prefix="sdpo-options-") as name:
        folder, recorder = Path(name), GradeRecorder()
        trained(folder, cfg, change=recorder.attach)
        found = checkpoint.load(folder / "checkpoints")
        assert found is not None
        events = [e for e in read_events(folder / "events.jsonl") if e["type"] != "run_started"]
        return {
            "answers": sorted(recorder.answers),
            "state": {f"{part}/{n}": a.tobytes() for part, each in found.state.items() for n, a in each.items()},
            "events": [{n: v for n, v in e.items() if n != "time" and n[:5] not in ("time/", "memor")} for e in events],
            "rollouts": {path.name: path.read_bytes() for path in (folder / "rollouts").iterdir()},
        }


def base(options: Mapping[str, Any]) -> Config:
    train, rollout = {"steps": 1, "save_every": 3, "eval_every": 3}, {"group_size": 2, "max_tokens": 6}
    evaluation = {"problems": 2, "max_tokens": 4}
    cfg = settings(train=train, rollout=rollout, log={"samples": 2, "teacher_answers": 0}, eval=evaluation)
    for key, value in options.items():
        cfg = with_value(cfg, key, value)
    return cfg


@cache
def baseline(options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return outcome(base(dict(options)))


def test_every_setting_is_changed_here_or_tested_elsewhere() -> None:
    assert set(CHANGES) | set(TESTED_ELSEWHERE) == set(LEAVES)
    assert not set(CHANGES) & set(TESTED_ELSEWHERE)
    assert all((ROOT / "tests" / reason.rpartition(": ")[2]).is_file() for reason in TESTED_ELSEWHERE.values())


@pytest.mark.parametrize("options", [DEFAULTS, GRPO, TOP], ids=["sdpo", "grpo", "top-k"])
def test_run_with_equal_settings_is_reproduced(options: Mapping[str, Any]) -> None:
    first, second = baseline(tuple(options.items())), outcome(base(options))
    assert [name for name in first if first[name] != second[name]] == []


# Every second setting by default, all of them in `make test-slow`.
KEYS = [pytest.param(key, marks=pytest.mark.slow if at % 2 else []) for at, key in enumerate(CHANGES)]


@pytest.mark.parametrize("key", KEYS)
def test_changed_setting_changes_the_run(key: str) -> None:
    value, options = CHANGES[key]
    before = baseline(tuple(options.items()))
    after = outcome(with_value(base(options), key, value))
    assert [name for name in before if before[name] != after[name]] != []


def test_sandbox_settings_apply_to_the_program() -> None:
    box = open_sandbox(SandboxConfig(kind="unconfined", seconds=0.5))
    assert box.kind == "unconfined"
    assert b"late" not in box.run("import time; time.sleep(3); print('late')").stdout
    roomy, tight = (open_sandbox(SandboxConfig(kind="unconfined", memory_mb=size)) for size in (512, 128))
    big = "print(len(bytearray(256 << 20)))"
    assert roomy.run(big).stdout.strip() == str(256 << 20).encode()
    assert tight.run(big).stdout.strip() == b""
