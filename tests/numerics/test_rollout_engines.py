"""Continuous batching samples the rollouts of the loop, token for token, and ends with its caller whatever happens."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from requirements import needs_torch
from small_policies import make_samples, stir
from temp_folders import new_folder
from torch_architectures import write_architecture

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.registry import open_policy
from sdpo_mlx.config import ModelConfig, ObjectiveConfig, RolloutConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.types import Generation

pytestmark = needs_torch

SIZES = (13, 2, 6, 40, 7, 1)  # tokens of the prompts; of one token nothing is prefilled
SEEDS = [[10 * at + n for n in range(4)] for at in range(len(SIZES))]
SAMPLING = SamplingParams(24, 1.0, 1.0, frozenset({2, 5}))
Rollouts = dict[tuple[int, int], Generation]


@cache
def path_of(name: str) -> Path:
    """The folder of a model's base."""
    if name == "tiny":
        return resolve("tiny", backend="torch").path
    return write_architecture(new_folder("engines") / name, name)


@cache
def policy_of(name: str, engine: str = "loop") -> Any:
    """A policy in float32 on the CPU whose LoRA is not zero."""
    model = ModelConfig(name=name, backend="torch", device="cpu", dtype="float32", adapter={"rank": 4})
    rollout = RolloutConfig(engine=engine)  # type: ignore[arg-type]
    policy = open_policy(path_of(name), model, TeacherConfig(), TrainConfig(), rollout=rollout)
    stir(policy, scale=0.03)
    return policy


@pytest.fixture
def engine() -> Iterator[Any]:
    """Continuous batching on the model of `policy_of("qwen3")`."""
    from sdpo_mlx.backends.torch.rollouts.batching import Batching

    made = Batching()
    yield made
    made.close()
    assert not engine_threads()


def no_vllm(_: str) -> Any:
    """The engine that these tests never start."""
    raise AssertionError


def engine_threads() -> list[threading.Thread]:
    """Threads that would keep the process from ending."""
    return [each for each in threading.enumerate() if "_run_generation_loop" in each.name]


def prompts(vocabulary: int = 60) -> list[np.ndarray]:
    """One prompt of each size."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, vocabulary, size=size).astype(np.int32) for size in SIZES]


def rollouts(source: Any, model: Any, sampling: SamplingParams = SAMPLING) -> Rollouts:
    """All rollouts of a loop or an engine, by prompt and index."""
    found = source.generate(model, prompts(), sampling, SEEDS, lambda: False)
    return {(at, n): rollout for at, n, rollout in found}


def check_same(ours: Rollouts, theirs: Rollouts) -> None:
    """The same tokens and ends; log-probs equal up to rounding."""
    assert ours.keys() == theirs.keys()
    assert len(ours) == 24
    for key, rollout in ours.items():
        np.testing.assert_array_equal(rollout.ids_T, theirs[key].ids_T, err_msg=str(key))
        assert rollout.finish == theirs[key].finish
        # Sums over padded and packed keys are rounded differently; 1e-5 was the most seen.
        np.testing.assert_allclose(rollout.logps_T, theirs[key].logps_T, atol=5e-5)


@pytest.mark.parametrize("name", ["tiny", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def test_batching_samples_the_rollouts_of_the_loop(name: str) -> None:
    loop, batching = policy_of(name), policy_of(name, "batching")
    assert (loop.generation.name, batching.generation.name) == ("loop", "batching")
    ours = rollouts(loop.generation, loop.model)
    assert {rollout.finish for rollout in ours.values()} == {"stop", "length"}
    check_same(ours, rollouts(batching.generation, batching.model))
    assert not engine_threads()


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(SamplingParams(24, 0.7, 0.9, frozenset({2, 5})), marks=pytest.mark.slow),
        pytest.param(SamplingParams(24, 0.0, 1.0, frozenset({2, 5})), marks=pytest.mark.slow),
        # More rollouts than rows, and a stop text.
        SamplingParams(16, 1.0, 1.0, frozenset({2}), 9, lambda ids: len(ids) > 1 and ids[-1] % 7 == 0),
    ],
)
def test_batching_draws_as_the_loop_with_each_setting(engine: Any, sampling: SamplingParams) -> None:
    from sdpo_mlx.backends.torch import generation

    model = policy_of("qwen3").model
    check_same(rollouts(generation, model, sampling), rollouts(engine, model, sampling))


def test_batching_begins_rollouts_again_that_lose_their_place(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import generation
    from sdpo_mlx.backends.torch.rollouts import batching

    # 24 rollouts of up to 4 blocks in a cache of 8 blocks.
    monkeypatch.setattr(engine, "_size", lambda *_: batching.Size(16, 8, 64, 24, 1.0, 1.0))
    model = policy_of("qwen3").model
    check_same(rollouts(generation, model), rollouts(engine, model))


def test_batching_follows_weights_that_change_in_place(engine: Any) -> None:
    from sdpo_mlx.backends.torch import generation

    policy = policy_of("qwen3")
    before = rollouts(engine, policy.model)
    kept = policy.state()
    stir(policy, seed=5, scale=0.2)
    try:
        # The blocks of the long prompt are in the cache of the engine, computed by the weights before.
        after = rollouts(engine, policy.model)
        check_same(rollouts(generation, policy.model), after)
    finally:
        policy.load_state(kept)
    assert any(not np.array_equal(before[key].ids_T, after[key].ids_T) for key in before)


def test_weights_stay_where_they_are_whatever_replaces_them() -> None:
    policy = policy_of("qwen3")
    kept = policy.state()
    places = {name: each.data_ptr() for name, each in policy.parameters.items()}
    policy.learn(make_samples(), ObjectiveConfig(kind="sdpo"), 1e-3)
    policy.update_teacher(TeacherConfig())
    policy.score("teacher", [np.arange(1, 9, dtype=np.int32)], [(4, 8)])
    policy.load_student(kept["student"])
    policy.load_state(kept)
    assert {name: each.data_ptr() for name, each in policy.parameters.items()} == places
    assert {name: each.data_ptr() for name, each in policy.student.items()} == places


def test_batching_stops_at_an_interrupt_and_samples_again(engine: Any) -> None:
    from sdpo_mlx.backends.torch import generation

    model, calls = policy_of("qwen3").model, iter([False, False, *[True] * 9])
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate(model, prompts(), SamplingParams(400, 1.0, 1.0, frozenset()), SEEDS, lambda: next(calls)))
    assert not engine_threads()
    half = engine.generate(model, prompts(), SAMPLING, SEEDS)
    next(half)
    half.close()  # as a caller that fails while it grades
    assert not engine_threads()
    check_same(rollouts(generation, model), rollouts(engine, model))


def test_batching_raises_what_ended_its_thread(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdpo_mlx.backends.torch import generation

    draw, calls = generation.drawn, []

    def failing(*arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(*arguments)

    monkeypatch.setattr(generation, "drawn", failing)
    with pytest.raises(torch.OutOfMemoryError):
        rollouts(engine, policy_of("qwen3").model)
    assert not engine_threads()


@pytest.mark.slow
def test_process_ends_with_an_error_between_two_rollouts() -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.registry import open_policy
from sdpo_mlx.config import ModelConfig, RolloutConfig, TeacherConfig, TrainConfig
model = ModelConfig(name="tiny", backend="torch", device="cpu")
policy = open_policy(Path(sys.argv[1]), model, TeacherConfig(), TrainConfig(), rollout=RolloutConfig(engine="batching"))
assert policy.generation.name == "batching"
for _ in policy.generate([np.arange(1, 9, dtype=np.int32)], SamplingParams(24, 1.0, 1.0, frozenset()), [[1, 2]]):
    raise ValueError("a caller's error")
"""
    ended = subprocess.run([sys.executable, "-c", code, path_of("tiny")], check=False, capture_output=True, timeout=240)
    assert ended.returncode == 1
    assert b"a caller's error" in ended.stderr


def test_cache_on_a_card_takes_what_is_free_and_leaves_it_to_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdpo_mlx.backends.torch.rollouts.batching import Batching, roomy

    free = {"bytes": 4 * 2**20}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free["bytes"], 10 * 2**20))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2**20)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0, raising=False)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**19)
    on_card = type("OnCard", (), {"device": torch.device("cuda", 0), "whole": policy_of("qwen3").model.whole})
    engine = Batching()
    engine.model = on_card  # type: ignore[assignment]
    # 3 layers x 2 x 2 heads x 8 numbers x 4 bytes = 384 bytes a token, 98,304 a block.
    assert engine._size(prompts(), SAMPLING, SEEDS).blocks == 1 + 24 * 12 // 10
    free["bytes"] = 2**20
    assert engine._size(prompts(), SAMPLING, SEEDS).blocks == int(0.8 * 1.5 * 2**20 / 98_304)
    assert not roomy(torch.device("cuda", 0))
    free["bytes"] = 5 * 2**20
    assert roomy(torch.device("cuda", 0))


def test_loop_samples_when_the_check_of_batching_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import generation
    from sdpo_mlx.backends.torch.rollouts.choice import choose

    draw = generation.drawn
    monkeypatch.setattr(generation, "drawn", lambda *a: (draw(*a)[0], draw(*a)[1] - 0.01))
    engine, why = choose(RolloutConfig(engine="batching"), policy_of("qwen3").model, no_vllm)
    assert engine.name == "loop"
    assert "differ from the model's own by 0.01 nats a token" in why
    monkeypatch.setattr(generation, "drawn", lambda *_: 1 / 0)
    engine, why = choose(RolloutConfig(engine="batching"), policy_of("qwen3").model, no_vllm)
    assert engine.name == "loop"
    assert "division by zero" in why
    assert not engine_threads()


def test_batching_is_refused_by_what_does_not_support_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from packaging.specifiers import SpecifierSet

    from sdpo_mlx.backends.torch.rollouts import choice, continuous_api

    model = policy_of("qwen3").model
    assert choice.unsupported(model) == ""
    assert "another cache" in choice.unsupported(policy_of("lfm2").model)
    monkeypatch.setattr(continuous_api, "SUPPORTED", SpecifierSet("<1"))
    with pytest.raises(ConfigError, match="was tested with transformers <1"):
        choice.choose(RolloutConfig(engine="batching"), model, no_vllm)
    on_card = type("OnCard", (), {**vars(model), "device": type("Device", (), {"type": "cuda"})})
    engine, why = choice.choose(RolloutConfig(), on_card, no_vllm)  # type: ignore[arg-type]
    assert engine.name == "loop"
    assert "tested with transformers" in why


def test_mlx_refuses_the_engines_of_torch() -> None:
    with pytest.raises(ConfigError, match=r"mlx samples with its own engine \(rollout.engine\)"):
        open_policy(
            path_of("tiny"), ModelConfig(), TeacherConfig(), TrainConfig(), rollout=RolloutConfig(engine="loop")
        )


def test_loop_launches_and_waits_little_for_a_token() -> None:
    from torch_counts import Fetches, Operations

    from sdpo_mlx.backends.torch import generation

    model, counts = policy_of("qwen3").model, []
    for length in (2, 6):
        sampling = SamplingParams(length, 1.0, 1.0, frozenset())
        with Fetches() as fetches, Operations() as operations:
            list(generation.generate(model, prompts(), sampling, SEEDS))
        counts.append((operations.counts.total(), fetches.count))
    (few, few_waits), (many, many_waits) = counts
    # Of each of 3 blocks 101 with its LoRA (peft 0.21, transformers 5.24), and 44 besides.
    assert (many - few) / 4 <= 3 * 105 + 50
    # The tokens with their log-probs, and whether the mask of transformers is all ones.
    assert (many_waits - few_waits) / 4 <= 2
