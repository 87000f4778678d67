"""Generation: rows of a batch against rows alone, against scores, and against themselves."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.backends.mlx.self_test.models import VOCABULARY
from sdpo_mlx.types import Generation, IntArray

PROMPTS = (3, 17, 40)  # tokens
TOKENS = 16
ROWS = 2
GREEDY = SamplingParams(max_tokens=TOKENS, temperature=0.0, top_p=1.0, eos_ids=frozenset())


def prompts() -> list[IntArray]:
    """Return prompts of different lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(VOCABULARY, size=tokens).astype(np.int32) for tokens in PROMPTS]


def batch(policy: MLXPolicy, given: list[IntArray]) -> dict[tuple[int, int], Generation]:
    """Return greedy rollouts by (prompt, row), all decoded together."""
    seeds = [list(range(ROWS))] * len(given)
    return {(at, row): found for at, row, found in policy.generate(given, GREEDY, seeds)}


def batch_gap(policy: MLXPolicy) -> float:
    """Largest difference of a log-prob between rows of a batch and rows alone, up to their first different token.

    There both are the likeliest of their distributions, so that rounding alone cannot part them by more.
    """
    given, worst = prompts(), np.float64(0.0)
    together = batch(policy, given)
    for at, prompt in enumerate(given):
        alone = next(iter(policy.generate([prompt], GREEDY, [[0]])))[2]
        for row in range(ROWS):
            found = together[at, row]
            same = int((found.ids_T == alone.ids_T).cumprod().sum()) + 1
            worst = np.maximum(worst, np.abs(found.logps_T[:same] - alone.logps_T[:same]).max())
    return float(worst)


def score_gap(policy: MLXPolicy) -> float:
    """Largest difference between the log-probs at sampling and those that learning computes of the same tokens."""
    given, worst = prompts(), np.float64(0.0)
    for (at, _), found in batch(policy, given).items():
        ids, start = np.concatenate([given[at], found.ids_T]), given[at].size
        (scores,) = policy.score("student", [ids], [(start, ids.size)])
        worst = np.maximum(worst, np.abs(scores.logps_T - found.logps_T).max())
    return float(worst)


def repeat_gap(policy: MLXPolicy) -> int:
    """Return how many tokens differ where the same greedy batch is decoded twice."""
    given = prompts()
    first, second = batch(policy, given), batch(policy, given)
    return sum(a != b for key in first for a, b in zip_longest(first[key].ids_T.tolist(), second[key].ids_T.tolist()))
