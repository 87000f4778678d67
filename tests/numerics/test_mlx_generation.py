"""Sampling on MLX: own seeds whatever the company, true log-probs, stop tokens kept, interruptible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_models import VOCABULARY
from small_policies import make_policy, plain_logits

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.objective import log_softmax

mx = pytest.importorskip("mlx.core")

EOS = frozenset({3, 7, 11, 19, 23, 31})
PROMPTS = [np.arange(n, dtype=np.int32) * 5 % VOCABULARY for n in (12, 1, 7)]
SEEDS = [[101, 102, 103, 104], [201, 202], [301, 302, 303]]


@pytest.fixture(scope="module")
def policies() -> Any:
    """One policy an architecture, adapters stirred."""
    made: dict[str, Any] = {}
    return lambda name: made.setdefault(name, make_policy(name))


def params(**options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 24, "temperature": 1.0, "top_p": 1.0, "eos_ids": EOS, **options})


def run(policy: Any, sampling: SamplingParams, prompts: Any = PROMPTS, seeds: Any = SEEDS, **options: Any) -> Any:
    """Every rollout by its seed."""
    from sdpo_mlx.backends.mlx import generation

    found = generation.generate(policy.model, prompts, replace(sampling, **options), seeds)
    return {seeds[prompt][rollout]: one for prompt, rollout, one in found}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("gemma3", {}),
        ("qwen3", {"temperature": 0.7, "top_p": 0.8}),
        pytest.param("qwen3", {}, marks=pytest.mark.slow),
        pytest.param("gemma3", {"temperature": 0.7, "top_p": 0.8}, marks=pytest.mark.slow),
    ],
)
def test_rollout_depends_on_its_own_seed_alone(architecture: str, options: dict[str, Any], policies: Any) -> None:
    policy, sampling = policies(architecture), params(**options)
    together = run(policy, sampling)
    assert sorted(together) == sorted(seed for group in SEEDS for seed in group)
    assert len({one.ids_T.size for one in together.values()}) > 2  # rows finish at different times
    ways = [run(policy, sampling, concurrency=n) for n in (1, 2, 5)]
    ways.append(run(policy, sampling, PROMPTS[::-1], [group[::-1] for group in SEEDS[::-1]], concurrency=4))
    for other in ways:
        assert sorted(other) == sorted(together)
    ways += [run(policy, sampling, [prompt], [group[1:2]]) for prompt, group in zip(PROMPTS, SEEDS, strict=True)]
    for other in ways:
        for seed, one in other.items():
            assert np.array_equal(together[seed].ids_T, one.ids_T)
            assert together[seed].finish == one.finish
            np.testing.assert_allclose(together[seed].logps_T, one.logps_T, atol=1e-4)
    assert len({one.ids_T.tobytes() for one in together.values()}) > 5


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3", "smollm2"])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.1])
def test_log_probs_are_those_of_the_plain_model(architecture: str, temperature: float, policies: Any) -> None:
    policy = policies(architecture)
    found = run(policy, params(temperature=temperature))
    for prompt, group in zip(PROMPTS, SEEDS, strict=True):
        for seed in group:
            one = found[seed]
            ids, span = np.concatenate([prompt, one.ids_T]), (prompt.size, prompt.size + one.ids_T.size)
            logits = np.array(plain_logits(policy, policy.student, ids, span))
            right = np.take_along_axis(log_softmax(logits, temperature), one.ids_T[:, None].astype(int), 1)[:, 0]
            np.testing.assert_allclose(one.logps_T, right, atol=1e-4)
            if temperature == 1.0:
                (score,) = policy.score("student", [ids], [span], top_k=5)
                np.testing.assert_allclose(one.logps_T, score.logps_T, atol=1e-4)
                best = np.sort(log_softmax(logits), axis=-1)[:, ::-1][:, :5]
                np.testing.assert_allclose(score.top_logps_TK, best, atol=1e-4)


def test_stop_token_ends_the_answer_and_stays_in_it(policies: Any) -> None:
    seeds = [list(range(60))]
    found = run(policies("qwen3"), params(max_tokens=40), PROMPTS[:1], seeds)
    ends = {int(one.ids_T[-1]) for one in found.values() if one.finish == "stop"}
    assert len(ends) >= 3
    for one in found.values():
        assert not set(one.ids_T[:-1].tolist()) & EOS
        assert (one.finish == "stop") == (int(one.ids_T[-1]) in EOS)
        assert one.finish == "stop" or one.ids_T.size == 40
        assert one.ids_T.size == one.logps_T.size
        assert (one.ids_T.dtype, one.logps_T.dtype) == (np.int32, np.float32)


def test_one_token_is_enough(policies: Any) -> None:
    found = run(policies("qwen3"), params(max_tokens=1), concurrency=2)
    assert len(found) == 9
    for one in found.values():
        assert one.ids_T.size == 1
        assert one.finish == ("stop" if int(one.ids_T[0]) in EOS else "length")


def test_no_prompts_give_no_answers(policies: Any) -> None:
    assert run(policies("qwen3"), params(), [], []) == {}


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "qwen3-4bit"])
def test_greedy_equals_argmax_of_the_plain_model(architecture: str, policies: Any) -> None:
    policy = policies(architecture)
    found = run(policy, params(temperature=0.0, max_tokens=10, eos_ids=frozenset()))
    for prompt, group in zip(PROMPTS, SEEDS, strict=True):
        ids = prompt
        for _ in range(10):
            logits = np.array(plain_logits(policy, policy.student, np.append(ids, 0), (ids.size, ids.size + 1)))
            ids = np.append(ids, np.int32(logits[0].argmax()))
        for seed in group:
            assert np.array_equal(found[seed].ids_T, ids[prompt.size :])


def test_nucleus_holds_only_the_likeliest(policies: Any) -> None:
    policy, seeds = policies("qwen3"), [list(range(80))]
    found = run(policy, params(max_tokens=1, top_p=0.3), PROMPTS[:1], seeds)
    ids, span = np.append(PROMPTS[0], 0), (PROMPTS[0].size, PROMPTS[0].size + 1)
    probs = np.exp(log_softmax(np.array(plain_logits(policy, policy.student, ids, span))))[0]
    order = np.argsort(-probs)
    nucleus = set(order[: int((np.cumsum(probs[order]) < 0.3).sum()) + 1].tolist())
    drawn = {int(one.ids_T[0]) for one in found.values()}
    assert drawn <= nucleus
    assert len(drawn) > 1


def test_draws_follow_the_models_distribution(policies: Any) -> None:
    policy, seeds = policies("qwen3"), [list(range(1500))]
    found = run(policy, params(max_tokens=1), PROMPTS[:1], seeds, concurrency=1500)
    ids, span = np.append(PROMPTS[0], 0), (PROMPTS[0].size, PROMPTS[0].size + 1)
    probs = np.exp(log_softmax(np.array(plain_logits(policy, policy.student, ids, span))))[0]
    counts = np.bincount([int(one.ids_T[0]) for one in found.values()], minlength=VOCABULARY)
    # Five standard errors; the seeds are fixed, so this cannot flicker.
    assert (np.abs(counts / 1500 - probs) < 5 * np.sqrt(probs / 1500) + 2 / 1500).all()


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_long_prompts_in_pieces_give_the_same_answers(
    architecture: str, policies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdpo_mlx.backends.mlx import model

    policy, prompts = policies(architecture), [np.arange(n, dtype=np.int32) * 7 % VOCABULARY for n in (30, 4, 5)]
    whole = run(policy, params(), prompts)
    monkeypatch.setattr(model, "PREFILL", 4)
    pieces = run(policy, params(), prompts)
    for seed, one in whole.items():
        assert np.array_equal(pieces[seed].ids_T, one.ids_T)


def test_interruption_between_tokens_closes_the_generator(policies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx import generation

    closed, asked, close = [], [], generation.BatchGenerator.close

    def pressed() -> bool:
        asked.append(1)
        return len(asked) == 3

    monkeypatch.setattr(generation.BatchGenerator, "close", lambda self: (closed.append(1), close(self)))
    answers = policies("qwen3").generate(PROMPTS, params(eos_ids=frozenset()), SEEDS, pressed)
    with pytest.raises(KeyboardInterrupt):
        list(answers)
    assert len(asked) == 3
    assert closed


def test_teacher_is_scored_with_its_own_weights(policies: Any) -> None:
    policy, ids = policies("llama"), np.arange(10, dtype=np.int32)
    for role in ("student", "teacher"):
        (score,) = policy.score(role, [ids], [(4, 9)])
        logits = np.array(plain_logits(policy, getattr(policy, role), ids, (4, 9)))
        right = np.take_along_axis(log_softmax(logits), ids[4:9, None].astype(int), 1)[:, 0]
        np.testing.assert_allclose(score.logps_T, right, atol=1e-4)
        assert score.top_ids_TK is None


@pytest.mark.parametrize("words", [3, 512, 1_300])
def test_draw_follows_its_probabilities_and_never_takes_an_impossible_word(words: int) -> None:
    from sdpo_mlx.backends.mlx.generation import draw

    rng, rows = np.random.default_rng(words), 4_000
    possible = rng.choice(words, size=min(words, 3), replace=False)
    weights = np.zeros(words, np.float32)
    weights[possible] = rng.random(possible.size).astype(np.float32) + 0.1
    keys = mx.random.split(mx.random.key(words), rows)
    drawn = np.array(draw(mx.broadcast_to(mx.array(weights), (rows, words)), keys))
    share = np.bincount(drawn, minlength=words) / rows
    assert np.abs(share - weights / weights.sum()).max() < 0.04  # five standard deviations
    assert set(drawn.tolist()) <= set(possible.tolist())


def test_draw_of_a_row_depends_on_its_key_alone() -> None:
    from sdpo_mlx.backends.mlx.generation import draw

    probs = mx.softmax(mx.random.normal((6, 700), key=mx.random.key(0)), axis=-1)
    keys = mx.random.split(mx.random.key(1), 6)
    alone = [draw(probs[row : row + 1], keys[row : row + 1]).item() for row in range(6)]
    assert draw(probs, keys).tolist() == alone
