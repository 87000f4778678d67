"""A stop text ends rollouts at the same token on both backends and in every way to decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from backend_pairs import make_torch
from requirements import needs_torch
from small_policies import make_policy

from sdpo_mlx.backends.base import SamplingParams

PROMPTS = [np.arange(n, dtype=np.int32) + 4 for n in (9, 1, 6)]
SEEDS = [[1, 2, 3], [4], [5, 6, 7]]
SAMPLING = SamplingParams(14, 1.0, 1.0, frozenset({3, 9}), concurrency=4)


def complete(ids: Sequence[int]) -> bool:
    """Stands for a text of several tokens: the last two make a number that 8 divides."""
    return len(ids) > 1 and (3 * ids[-1] + ids[-2]) % 8 == 0


def rollouts(policy: Any, sampling: SamplingParams) -> dict[tuple[int, int], Any]:
    return {(at, n): found for at, n, found in policy.generate(PROMPTS, sampling, SEEDS)}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("backend", ["mlx", pytest.param("torch", marks=needs_torch)])
def test_rollouts_end_at_the_first_token_that_completes_the_stop_text(backend: str, batched: bool) -> None:
    policy = make_policy("qwen3")
    policy = policy if backend == "mlx" else make_torch("qwen3", like=policy)
    policy.model = replace(policy.model, batched=batched)
    sampling = replace(SAMPLING, at_stop_text=complete)
    free, found = rollouts(policy, SAMPLING), rollouts(policy, sampling)
    assert free.keys() == found.keys()
    shorter = 0
    for key, whole in free.items():
        one, tokens = found[key], whole.ids_T.tolist()
        size = next((n for n in range(1, len(tokens) + 1) if complete(tokens[:n])), 0)
        shorter += 0 < size < len(tokens)
        assert one.ids_T.tolist() == tokens[: size or None]
        np.testing.assert_allclose(one.logps_T, whole.logps_T[: size or None], atol=1e-4)
        assert one.finish == ("stop" if size else whole.finish)
        assert list(policy.stream(PROMPTS[key[0]], sampling, SEEDS[key[0]][key[1]])) == one.ids_T.tolist()
    assert 2 <= shorter < len(free)
