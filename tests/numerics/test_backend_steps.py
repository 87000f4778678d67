"""Promise 17 beyond one gradient: scores, answers, the optimizer, the teacher, ten steps, runs that change side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_pairs import make_pair, make_torch
from requirements import needs_torch
from small_policies import make_policy, make_samples
from small_runs import Watcher, assert_same, events, settings, trained, with_value

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.objective import ema_closed_form

pytestmark = needs_torch

ARCHITECTURES = ("qwen3", "llama", "gemma3", "smollm2")
LONG = np.arange(30, dtype=np.int32) % 50 + 4
SHORT: dict[str, dict[str, Any]] = {
    "rollout": {"problems_per_step": 2, "group_size": 2, "max_tokens": 12},
    "train": {"steps": 2, "save_every": 1},
    "eval": {"problems": 1},
}
PROMPTS = [LONG, LONG[:3], LONG[5:6]]


def distance(ours: Any, theirs: Any) -> float:
    """Relative distance of two adapters."""
    gap = np.sqrt(sum(float(((ours[name] - theirs[name]) ** 2).sum()) for name in theirs))
    return float(gap / np.sqrt(sum(float((each**2).sum()) for each in theirs.values())))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_log_probs_of_given_tokens_are_equal(architecture: str, role: Any) -> None:
    scores = [p.score(role, [LONG, LONG[3:20]], [(1, 30), (9, 17)], 5) for p in make_pair(architecture)]
    for ours, theirs in zip(*scores, strict=True):
        np.testing.assert_allclose(ours.logps_T, theirs.logps_T, atol=2e-5)
        np.testing.assert_allclose(ours.top_logps_TK, theirs.top_logps_TK, atol=2e-5)
        np.testing.assert_array_equal(ours.top_ids_TK, theirs.top_ids_TK)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_are_equal(architecture: str) -> None:
    sampling = SamplingParams(16, 0.0, 1.0, frozenset({3}))
    said = [
        {(at, n): g for at, n, g in p.generate(PROMPTS, sampling, [[1, 2], [3], [4, 5]])}
        for p in make_pair(architecture)
    ]
    assert said[0].keys() == said[1].keys()
    for key, ours in said[0].items():
        np.testing.assert_array_equal(ours.ids_T, said[1][key].ids_T)
        np.testing.assert_allclose(ours.logps_T, said[1][key].logps_T, atol=2e-5)
        assert ours.finish == said[1][key].finish


def drawn(policy: Any, prompts: Any, seeds: Any, **sampling: Any) -> dict[tuple[int, int], Any]:
    params = SamplingParams(
        **{"max_tokens": 12, "temperature": 0.9, "top_p": 1.0, "eos_ids": frozenset({3}), **sampling}
    )
    return {(at, n): g for at, n, g in policy.generate(prompts, params, seeds)}


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_torch_rollout_depends_on_its_own_seed_alone(architecture: str, top_p: float) -> None:
    policy = make_torch(architecture, like=make_policy(architecture))
    together = drawn(policy, PROMPTS, [[1, 2, 3], [4], [5, 6]], top_p=top_p)
    alone = drawn(policy, PROMPTS[:1], [[2]], top_p=top_p)[0, 0]
    np.testing.assert_array_equal(together[0, 1].ids_T, alone.ids_T)
    crowded = {}
    from sdpo_mlx.backends.torch.generation import generate

    params = SamplingParams(12, 0.9, top_p, frozenset({3}), concurrency=2)
    for at, n, found in generate(policy.model, PROMPTS, params, [[1, 2, 3], [4], [5, 6]]):
        crowded[at, n] = found
    for key, found in together.items():
        np.testing.assert_array_equal(found.ids_T, crowded[key].ids_T)


def test_torch_log_probs_at_sampling_are_those_of_the_model() -> None:
    policy = make_torch("llama", like=make_policy("llama"))
    for (at, _), found in drawn(policy, PROMPTS, [[1, 2], [3], [4]], temperature=1.0).items():
        ids = np.concatenate([PROMPTS[at], found.ids_T])
        scores = policy.score("student", [ids], [(PROMPTS[at].size, ids.size)])[0]
        np.testing.assert_allclose(found.logps_T, scores.logps_T, atol=2e-5)


def test_torch_draws_follow_the_distribution() -> None:
    policy = make_torch("qwen3", like=make_policy("qwen3"))
    found = drawn(policy, [LONG[:4]], [list(range(4_000))], max_tokens=1, temperature=1.0)
    counts = np.bincount([int(g.ids_T[0]) for g in found.values()], minlength=61) / len(found)
    ids = [np.append(LONG[:4], token).astype(np.int32) for token in range(61)]
    p = np.exp([s.logps_T[0] for s in policy.score("student", ids, [(4, 5)] * 61)])
    assert p.sum() == pytest.approx(1.0, abs=1e-4)
    assert np.abs(counts - p).sum() / 2 < 0.06  # total variation of 4,000 draws


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_tokens_are_those_of_a_torch_rollout(temperature: float) -> None:
    policy = make_torch("qwen3", like=make_policy("qwen3"))
    whole = drawn(policy, [LONG], [[5]], temperature=temperature)[0, 0]
    streamed = policy.stream(LONG, SamplingParams(12, temperature, 1.0, frozenset({3})), 5)
    assert list(streamed) == whole.ids_T.tolist()


def test_interrupted_generation_stops_between_two_tokens() -> None:
    policy = make_torch("qwen3", like=make_policy("qwen3"))
    asked: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        list(policy.generate(PROMPTS, SamplingParams(9, 1.0, 1.0, frozenset()), [[1], [2], [3]],
                             lambda: asked.append(1) or len(asked) > 3))  # fmt: skip


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_ten_steps_on_the_same_rollouts_end_at_the_same_adapter(kind: str) -> None:
    budget = 40 if kind == "lora" else 10_000
    ours, theirs = make_pair("qwen3", kind=kind, learning_rate=1e-3, weight_decay=0.01, micro_batch_tokens=budget)
    objective = ObjectiveConfig(kind="hybrid", support="full")
    for step in range(10):
        for policy in (ours, theirs):
            assert policy.learn(make_samples(step, "hybrid"), objective, 1e-3).applied
            policy.update_teacher(TeacherConfig(kind="ema", update_rate=0.1))
    assert distance(theirs.state()["student"], ours.state()["student"]) < 1e-3
    assert distance(theirs.state()["teacher"], ours.state()["teacher"]) < 1e-3
    assert set(theirs.state()["optimizer"]) == set(ours.state()["optimizer"])


def test_teacher_after_twenty_updates_is_the_closed_form() -> None:
    policy = make_torch("qwen3", like=make_policy("qwen3", micro_batch_tokens=10_000))
    start = {name: each.astype(np.float64) for name, each in policy.state()["teacher"].items()}
    students = []
    for step in range(20):
        policy.learn(make_samples(step), ObjectiveConfig(support="full"), 1e-2)
        students.append({name: each.astype(np.float64) for name, each in policy.state()["student"].items()})
        policy.update_teacher(TeacherConfig(kind="ema", update_rate=0.1))
    for name, array in policy.state()["teacher"].items():
        right = ema_closed_form(start[name], [each[name] for each in students], 0.1)
        np.testing.assert_allclose(array, right, atol=1e-5)


def test_state_goes_through_torch_without_losing_a_bit() -> None:
    ours, theirs = make_pair("gemma3", kind="dora")
    for policy in (ours, theirs):
        policy.learn(make_samples(1), ObjectiveConfig(support="full"), 1e-2)
    before = theirs.state()
    theirs.load_state(before)
    for part, arrays in theirs.state().items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, before[part][name])
    ours.load_state(before)
    theirs.load_state(ours.state())


def test_state_of_another_model_is_refused_and_nothing_moves() -> None:
    policy = make_torch("qwen3", like=make_policy("qwen3"))
    before = policy.state()
    other = make_policy("qwen3", rank=8).state()
    with pytest.raises(ConfigError, match="does not fit"):
        policy.load_state(other)
    for name, array in policy.state()["student"].items():
        np.testing.assert_array_equal(array, before["student"][name])


@pytest.mark.parametrize("change", [{}, {"model.adapter.dropout": 0.3, "teacher.kind": "trust_region"}], ids=str)
def test_torch_run_goes_on_to_the_same_bytes(tmp_path: Path, change: dict[str, Any]) -> None:
    cfg = settings(model={"backend": "torch", "device": "cpu"}, **SHORT)
    for key, value in change.items():
        cfg = with_value(cfg, key, value)
    trained(tmp_path / "whole", cfg)
    assert trained(tmp_path / "parts", cfg, Watcher(after=1)) is None
    trained(tmp_path / "parts", cfg)
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("first", "second"), [("mlx", "torch"), ("torch", "mlx")])
def test_run_begun_on_one_backend_goes_on_on_the_other(tmp_path: Path, first: str, second: str) -> None:
    cfg = settings(model={"backend": first, "device": "cpu"}, **SHORT)
    assert trained(tmp_path / "run", cfg, Watcher(after=1)) is None
    watcher = Watcher()
    state = trained(tmp_path / "run", with_value(cfg, "model.backend", second), watcher)
    assert state is not None
    assert state.step == 2
    assert [event["step"] for event in events(tmp_path / "run", "step")] == [1, 2]
    said = " ".join(str(event.get("message", "")) for event in watcher.events)
    assert f"began on {first}" in said
    assert "not bit for bit" in said
