"""Learning and the commands keep Metal's rules (`metal_rules.py`): every architecture, short and long prompts."""

from __future__ import annotations

import gc
import io
import sys
from contextlib import nullcontext
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coaching_sessions import TOLD, closed, opened, taught
from command import sdpo
from metal_rules import MetalRuleError, metal_rules
from mlx_architectures import NOT_HERE, REFUSED, SIZES, VOCABULARY, architectures, write_architecture
from pairwise import pairwise
from small_models import CONFIGS, write_config
from small_policies import make_policy
from temp_folders import new_folder

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.mlx import blockwise, gradient, loading
from sdpo_mlx.backends.mlx import policy as policy_module
from sdpo_mlx.backends.mlx.loading import UNTRAINED_ON_METAL
from sdpo_mlx.config import AdapterConfig, MemoryConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.types import DistillSample

import mlx.core as mx  # isort: skip

OBJECTIVES = {
    "top_k": {},
    "full": {"support": "full", "alpha": 0.0},
    "sampled": {"support": "sampled", "alpha": 1.0},
    "sequence": {"support": "sequence", "alpha": 1.0},
    "grpo": {"kind": "grpo"},
    "hybrid": {"kind": "hybrid"},
}
LENGTHS = (1, 2, 8, 9, 40)
ARCHITECTURES = ("qwen3", "falcon_h1", "rwkv7", "qwen3_5", "gpt_oss", "deepseek_v3")  # one of each hazard
EVERY = sorted(set(architectures()) - set(NOT_HERE) - set(REFUSED) - set(UNTRAINED_ON_METAL))


@cache
def policy_of(name: str, *, wide: bool = False) -> Any:
    """A policy of an architecture: `qwen3` has heads of 64, for which MLX has kernels.

    `wide`: keys of gated delta networks have 32 numbers, for which mlx-lm has a kernel.
    """
    from sdpo_mlx.backends.mlx.policy import MLXPolicy

    with pytest.MonkeyPatch.context() as patch:
        if wide:
            patch.setitem(SIZES, "linear_key_head_dim", 32)
        folder = write_architecture(new_folder("model") / name, name)
    if name == "qwen3":
        return wide_policy()
    adapter, train = AdapterConfig(rank=2), TrainConfig(micro_batch_tokens=512)
    return MLXPolicy(folder, ModelConfig(name=name, adapter=adapter), TeacherConfig(), train, MemoryConfig())


def wide_policy(grad_checkpoint: bool | None = None, **config: Any) -> Any:
    import json

    from mlx.utils import tree_flatten
    from mlx_lm.models import qwen3

    from sdpo_mlx.backends.mlx.policy import MLXPolicy

    folder = new_folder("model")
    given = {"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 64}
    given |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": VOCABULARY}
    given |= {"max_position_embeddings": 512, "rope_theta": 1e4, "tie_word_embeddings": True, **config}
    mx.random.seed(0)
    weights = qwen3.Model(qwen3.ModelArgs.from_dict(given)).parameters()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(weights)))
    (folder / "config.json").write_text(json.dumps(given), encoding="utf-8")
    train = TrainConfig(micro_batch_tokens=512, grad_checkpoint=grad_checkpoint)
    adapter = AdapterConfig(rank=2)
    return MLXPolicy(folder, ModelConfig(name="qwen3", adapter=adapter), TeacherConfig(), train, MemoryConfig())


def samples(length: int, objective: str, answers: tuple[int, ...] = (3, 3, 1, 5)) -> list[DistillSample]:
    """Two problems that share all but the last five of 60 tokens, and rollouts of a prompt of this length."""
    ids = (np.arange(120, dtype=np.int32) * 37 + 11) % VOCABULARY
    long = [np.append(ids[:55], ids[60 + 5 * n : 65 + 5 * n]) for n in range(2)]
    prompts = [ids[20 : 20 + length], ids[20 : 20 + length], *long]
    distil, policy = {"grpo": (0.0, 1.0), "hybrid": (0.5, 0.5)}.get(objective, (1.0, 0.0))
    found = []
    for n, (prompt, size) in enumerate(zip(prompts, answers, strict=True)):
        answer = ids[n : n + size]
        context = np.append(ids[:6], prompt)
        spans = [(each.size, each.size + size) for each in (prompt, context)]
        student, teacher = (np.append(each, answer) for each in (prompt, context))
        logps = np.full(size, -3.0, np.float32)
        weights = {"distil_weight": distil, "policy_weight": policy, "advantage": (-1.0) ** n}
        found.append(DistillSample(str(n), n, student, spans[0], teacher, spans[1], logps, **weights))
    return found


def learns(name: str, length: int, objective: str) -> None:
    policy = policy_of(name)
    with metal_rules():
        found = policy.learn(samples(length, objective), ObjectiveConfig(**OBJECTIVES[objective]), 1e-4)
    assert found.applied, found.reason


@pytest.mark.parametrize(("name", "length", "objective"), pairwise(ARCHITECTURES, LENGTHS, (*OBJECTIVES,)))
def test_learning_keeps_the_rules_of_metal(name: str, length: int, objective: str) -> None:
    learns(name, length, objective)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_architecture_keeps_the_rules_of_metal_at_every_length(name: str) -> None:
    for length, objective in zip(range(1, 41), cycle(OBJECTIVES), strict=False):
        learns(name, length, objective)
    policy_of.cache_clear()


QUANTIZED = {"4 bits": {"bits": 4}, "8 bits": {"bits": 8}, "mxfp4": {"bits": 4, "mode": "mxfp4"}}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_base_with_dropout_and_tied_head_keeps_the_rules_of_metal(kind: str) -> None:
    from sdpo_mlx.backends.mlx.policy import MLXPolicy

    wide = {**CONFIGS["qwen3"], "hidden_size": 64, "intermediate_size": 64, "head_dim": 64}
    folder = write_config(new_folder("model"), wide, quantize=QUANTIZED[kind])
    adapter = AdapterConfig(rank=2, dropout=0.2)
    policy = MLXPolicy(folder, ModelConfig(name=kind, adapter=adapter), TeacherConfig(), TrainConfig(), MemoryConfig())
    for length in (2, 20):
        with metal_rules() as rules:
            assert policy.learn(samples(length, "hybrid"), ObjectiveConfig(kind="hybrid"), 1e-4).applied
    assert rules.kernels["attention"] > 0


@pytest.mark.parametrize("grad_checkpoint", [None, False])
def test_check_at_load_and_one_graph_keep_the_rules_of_metal(grad_checkpoint: bool | None) -> None:
    policy = wide_policy(grad_checkpoint)
    with metal_rules() as rules:
        policy.check_gradient()
        policy.learn(samples(20, "top_k"), ObjectiveConfig(), 1e-4)
    assert rules.kernels["attention"] > 0  # heads of 64 and more than 8 queries stay with MLX's kernels


@pytest.mark.parametrize(("name", "rule"), [("qwen3", "short queries"), ("gpt_oss", "sinks"), ("rwkv7", "kernel wkv7")])
def test_rules_catch_a_step_without_our_replacements(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_replacements(monkeypatch)
    policy = policy_of(name)
    broken: dict[str, int] = {}

    def step() -> None:
        with metal_rules() as rules:
            try:
                policy.learn(samples(40, "grpo"), ObjectiveConfig(kind="grpo"), 1e-4)
            finally:
                broken.update(rules.broken)

    with pytest.raises(MetalRuleError):
        step()
    assert list(broken) == [rule]


def test_gated_delta_with_kernel_sizes_reaches_the_kernel_in_sampling_alone() -> None:
    policy, ids = policy_of("qwen3_5", wide=True), np.arange(20, dtype=np.int32)
    with metal_rules() as rules:
        list(policy.generate([ids], SamplingParams(2, 1.0, 1.0, frozenset()), [[1, 2]]))
        sampled = rules.kernels["gated delta"]
        assert policy.learn(samples(20, "hybrid"), ObjectiveConfig(kind="hybrid"), 1e-4).applied
        assert rules.kernels["gated delta"] == sampled > 0  # sampling has the sizes of the kernel


def test_architecture_with_a_kernel_in_its_blocks_is_refused_on_metal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert policy_of("kimi_k3").info.device == "cpu"
    policy_of.cache_clear()
    monkeypatch.setattr(loading, "has_metal", lambda: True)
    with pytest.raises(ConfigError, match=r"'kimi_k3' cannot be trained on Metal: .*--backend torch") as found:
        policy_of("kimi_k3")
    assert "\n" not in str(found.value)
    policy_of("llama")


def without_replacements(patch: pytest.MonkeyPatch) -> None:
    """Learn through MLX's and mlx-lm's own functions."""
    for module in (blockwise, gradient):
        patch.setattr(module, "differentiable_attention", nullcontext)
    for name in ("differentiable_recurrence", "efficient_recurrence"):
        patch.setattr(policy_module, name, lambda _: nullcontext())


@pytest.mark.parametrize("steps", [12, pytest.param(1_000, marks=pytest.mark.slow)])
def test_live_arrays_stay_as_many_over_steps_of_random_lengths(steps: int) -> None:
    policy, rng, found = make_policy(micro_batch_tokens=256), np.random.default_rng(0), list[int]()
    for step in range(steps):
        length, answers = int(rng.integers(1, 41)), tuple(int(size) for size in rng.integers(1, 9, 4))
        assert policy.learn(samples(length, "top_k", answers), ObjectiveConfig(), 1e-4).applied
        if step % (steps // 4) == 2:
            gc.collect()
            found.append(sum(type(each) is mx.array for each in gc.get_objects()))
    assert found == found[:1] * 4
    assert found[0] > 0


ONE_STEP = ["--group-size", "2", "--max-tokens", "6"]
ONE_STEP += ["--set", "rollout.problems_per_step=1", "--set", "eval.problems=1"]
COMMANDS = {
    "train": ("--model", "tiny", "--task", "tiny", "--steps", "1", "--out", "run", *ONE_STEP),
    "eval": ("tiny", "--greedy", "--problems", "2"),
    "solve": ("--model", "tiny", "--attempts", "4"),
    "chat": ("tiny", "--max-tokens", "8"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_keep_the_rules_of_metal(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Write f(x): square\nAnd again?\n"))  # two turns of the chat
    with metal_rules():
        code, _, err = sdpo(command, *COMMANDS[command], "--plain")
    assert code == 0 or (command == "solve" and code == 1), err  # 1: no attempt succeeded


def test_coaching_keeps_the_rules_of_metal(tmp_path: Path) -> None:
    with metal_rules():
        coaching = opened(str(tmp_path / "run"))
        taught(coaching, TOLD)
        closed(coaching)
