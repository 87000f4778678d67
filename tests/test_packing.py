"""Which sequences go together: every one once, read at the right places, under the budget where it can be."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_mlx.backends.packing import Unit, pack

IDS = st.lists(st.integers(1, 9), min_size=1, max_size=8).map(lambda ids: np.array(ids, dtype=np.int32))
# Few different prompts, so that groups that share one are common.
BATCHES = st.lists(IDS, min_size=1, max_size=4).flatmap(
    lambda prompts: st.lists(st.tuples(st.sampled_from(prompts), IDS), min_size=1, max_size=12)
)
BUDGETS = st.sampled_from([1, 7, 20, 64, 10_000])


def packed(batch: list[tuple[np.ndarray, np.ndarray]], budget: int) -> list[Unit]:
    return pack([prompt for prompt, _ in batch], [response for _, response in batch], budget)


def size(unit: Unit) -> int:
    return unit.rows_NT.size + (0 if unit.prefix_P is None else unit.prefix_P.size)


@settings(deadline=None)
@given(BATCHES, BUDGETS)
def test_every_sequence_is_covered_once(batch: list[tuple[np.ndarray, np.ndarray]], budget: int) -> None:
    units = packed(batch, budget)
    assert sorted(i for unit in units for i in unit.members) == list(range(len(batch)))
    for unit in units:
        assert len(unit.members) == len(unit.rows_NT) == len(unit.counts)
        for row, member in zip(unit.rows_NT, unit.members, strict=True):
            prompt, response = batch[member]
            prefix = np.zeros(0, np.int32) if unit.prefix_P is None else unit.prefix_P
            whole = np.concatenate([prompt, response[:-1]])
            read = np.concatenate([prefix, row])
            assert np.array_equal(read[: whole.size], whole)
            assert not read[whole.size :].any()


@settings(deadline=None)
@given(BATCHES, BUDGETS)
def test_positions_read_are_those_that_predict_the_response(
    batch: list[tuple[np.ndarray, np.ndarray]], budget: int
) -> None:
    for unit in packed(batch, budget):
        flat, start = unit.rows_NT.reshape(-1), 0
        for n, (member, count) in enumerate(zip(unit.members, unit.counts, strict=True)):
            prompt, response = batch[member]
            take = unit.take_R[start : start + count]
            start += count
            assert count == response.size
            assert np.array_equal(flat[take], np.concatenate([prompt[-1:], response[:-1]]))
            assert set(take // unit.rows_NT.shape[1]) == {n}
        assert start == unit.take_R.size


@settings(deadline=None)
@given(BATCHES, BUDGETS)
def test_budget_is_kept_unless_one_sequence_breaks_it(batch: list[tuple[np.ndarray, np.ndarray]], budget: int) -> None:
    for unit in packed(batch, budget):
        assert size(unit) <= budget or len(unit.members) == 1


@settings(deadline=None)
@given(BATCHES)
def test_shared_prompts_run_once_where_the_budget_allows(batch: list[tuple[np.ndarray, np.ndarray]]) -> None:
    units = packed(batch, 10_000)
    for prompt in {prompt.tobytes(): prompt for prompt, _ in batch}.values():
        group = {i for i, (own, _) in enumerate(batch) if np.array_equal(own, prompt)}
        if len(group) > 1 and prompt.size > 1:
            (unit,) = [unit for unit in units if group & set(unit.members)]
            assert set(unit.members) == group
            assert unit.prefix_P is not None
            assert np.array_equal(unit.prefix_P, prompt[:-1])
    assert sum(unit.prefix_P is None for unit in units) <= 1
