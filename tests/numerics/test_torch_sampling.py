"""Sampling on torch: how wide the cache is, and that the nucleus is found without sorting every id."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backend_pairs import make_torch
from requirements import needs_torch
from small_policies import make_policy

from sdpo_mlx.backends.base import SamplingParams

pytestmark = needs_torch

VOCABULARY = 61


@pytest.fixture(scope="module")
def policy() -> Any:
    return make_torch("gemma3", like=make_policy("gemma3"))  # full attention and sliding windows


def requests(count: int, group: int, seed: int = 0) -> tuple[list[np.ndarray], list[list[int]]]:
    """Random prompts of 1 to 24 tokens with a group of seeds each."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(VOCABULARY, size=size).astype(np.int32) for size in rng.integers(1, 25, size=count)]
    return prompts, [[int(each) for each in rng.integers(2**62, size=group)] for _ in prompts]


def answers(policy: Any, prompts: Any, seeds: Any, sampling: SamplingParams) -> dict[tuple[int, int], list[int]]:
    from sdpo_mlx.backends.torch.generation import generate

    return {(at, n): g.ids_T.tolist() for at, n, g in generate(policy.model, prompts, sampling, seeds)}


def test_cache_is_never_wider_than_the_longest_living_row(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch.generation import Batch
    from sdpo_mlx.backends.torch.kv_cache import keys_in

    (prompts, seeds), widths, decode = requests(30, 8), [], Batch.decode
    sampling = SamplingParams(64, 1.0, 1.0, frozenset(range(0, VOCABULARY, 3)), concurrency=16)

    def watched(batch: Any) -> None:
        decode(batch)
        widths.append((keys_in(batch.cache), max(row.prompt + len(row.tokens) for row in batch.rows)))

    monkeypatch.setattr(Batch, "decode", watched)
    found = answers(policy, prompts, seeds, sampling)
    assert len(found) == 240
    assert all(width <= longest + 1 for width, longest in widths)
    alone = [(7, 2), (19, 0), (29, 7)]
    for at, n in alone:  # as they are without a row that leaves or joins
        assert answers(policy, [prompts[at]], [[seeds[at][n]]], sampling)[0, 0] == found[at, n]


def test_joined_and_selected_caches_free_the_old_ones_layer_by_layer(policy: Any) -> None:
    import torch

    from sdpo_mlx.backends.torch.kv_cache import joined, keys_in, prefill, selected, shared

    ids = torch.arange(9)[None]
    with torch.no_grad():
        short, long = (shared(prefill(policy.model.body, ids[:, :n]), 2) for n in (3, 9))
        both = joined(short, long)
        assert keys_in(both) == 9
        some = selected(both, torch.tensor([1]), width=3)
    assert keys_in(some) == 3
    assert [layer.keys.shape[0] for layer in some.layers] == [1] * len(some.layers)
    assert not any(layer for cache in (short, long, both) for layer in cache.layers)


def sorted_nucleus(p: np.ndarray, top_p: float) -> np.ndarray:
    """The likeliest ids, of equal ones the first, until they reach `top_p` together, by sorting all."""
    order = np.argsort(-p, kind="stable")
    kept = order[np.cumsum(p[order]) - p[order] < top_p]
    found = np.zeros_like(p)
    found[kept] = p[kept]
    return found


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("kind", ["peaked", "flat", "of few values"])
def test_nucleus_is_that_of_a_sort_of_all_ids(kind: str, top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdpo_mlx.backends.torch import generation

    rng = np.random.default_rng(1)
    logits = {
        "peaked": 4.0 * rng.standard_normal((5, 500)),
        "flat": 0.01 * rng.standard_normal((5, 500)),
        "of few values": rng.integers(3, size=(5, 500)).astype(float),  # as logits in 16 bits often are
    }[kind]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    monkeypatch.setattr(generation, "NUCLEUS", 40)
    found = generation.nucleus(torch.from_numpy(p), top_p).numpy()
    np.testing.assert_array_equal(found, [sorted_nucleus(row, top_p) for row in p])


def test_peaked_distributions_are_not_sorted(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdpo_mlx.backends.torch import generation

    monkeypatch.setattr(generation, "NUCLEUS", 4)
    monkeypatch.setattr(torch.Tensor, "sort", lambda *_, **__: pytest.fail("sorted the whole vocabulary"))
    p = torch.tensor([[0.6, 0.0, 0.3, 0.05, 0.03, 0.02]], dtype=torch.float64)
    assert generation.nucleus(p, 0.8).tolist() == [[0.6, 0.0, 0.3, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0 - 2.0**-53])
def test_no_draw_has_probability_zero(u: float) -> None:
    import torch

    from sdpo_mlx.backends.torch.generation import drawn

    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf], [0.0, -torch.inf, -torch.inf, -torch.inf]])
    sampling = SamplingParams(4, 1.0, 1.0, frozenset())
    tokens, logps = drawn(logits, torch.full((2, 1), u, dtype=torch.float64), sampling)
    assert tokens.tolist() == [1 if u == 0.0 else 2, 0]
    assert torch.isfinite(logps).all()


def test_host_fetches_figures_of_a_token_once(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    fetched, uploaded = [], []
    lists, tensor = torch.Tensor.tolist, torch.tensor
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (fetched.append(self.numel()), lists(self))[1])
    monkeypatch.setattr(torch, "tensor", lambda data, **k: (uploaded.append(data), tensor(data, **k))[1])
    prompts, seeds = requests(1, 4)
    answers(policy, prompts, seeds, SamplingParams(10, 1.0, 0.9, frozenset()))
    assert fetched == [8] * 10  # a token and a log-prob of each of four rows
    assert not any(isinstance(data, list) and data for data in uploaded)


def test_rows_of_one_length_have_no_mask(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import generation

    masked, real = [], generation.continued

    def watched(body: Any, ids: Any, cache: Any, **options: Any) -> Any:
        masked.append("attention_mask" in options)
        return real(body, ids, cache, **options)

    monkeypatch.setattr(generation, "continued", watched)
    prompts, sampling = (
        [np.arange(5, dtype=np.int32), np.arange(8, dtype=np.int32)],
        SamplingParams(3, 1.0, 1.0, frozenset()),
    )
    together = answers(policy, prompts, [[1], [2]], sampling)
    alone = answers(policy, prompts[:1], [[1]], sampling)
    assert masked == [True] * 3 + [False] * 3
    assert alone[0, 0] == together[0, 0]
