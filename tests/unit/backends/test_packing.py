"""Which sequences go together: every one once, read at the right places, under the budget where it can be."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_mlx.backends.packing import Node, Unit, pack, tree_of

IDS = st.lists(st.integers(1, 9), min_size=1, max_size=8).map(lambda ids: np.array(ids, dtype=np.int32))
# Few different prompts, so that groups that share one are common.
BATCHES = st.lists(IDS, min_size=1, max_size=4).flatmap(
    lambda prompts: st.lists(st.tuples(st.sampled_from(prompts), IDS), min_size=1, max_size=12)
)
BUDGETS = st.sampled_from([1, 7, 20, 64, 10_000])


def packed(batch: list[tuple[np.ndarray, np.ndarray]], budget: int) -> list[Unit]:
    return pack([prompt for prompt, _ in batch], [response for _, response in batch], budget)


def before(unit: Unit, node: Node) -> np.ndarray:
    """What a node's rows have behind them."""
    if node.parent is None:
        return np.zeros(0, np.int32)
    parent = unit.nodes[node.parent]
    return np.concatenate([before(unit, parent), parent.ids_NT[0]])


@settings(deadline=None)
@given(BATCHES, BUDGETS, st.booleans())
def test_every_sequence_is_covered_once_and_read_at_its_response(
    batch: list[tuple[np.ndarray, np.ndarray]], budget: int, share: bool
) -> None:
    units = pack([prompt for prompt, _ in batch], [response for _, response in batch], budget, share=share)
    assert sorted(i for unit in units for i in unit.members) == list(range(len(batch)))
    for unit in units:
        assert all(node.parent is None or node.parent < place for place, node in enumerate(unit.nodes))
        rows = [(node, row) for node in unit.nodes if node.rows for row in node.ids_NT]
        ids, owners = np.concatenate([row for _, row in rows]), np.repeat(range(len(rows)), [r.size for _, r in rows])
        takes = np.split(unit.take_R, np.cumsum(unit.counts)[:-1])
        for place, ((node, row), member, take) in enumerate(zip(rows, unit.members, takes, strict=True)):
            prompt, response = batch[member]
            whole, seen = np.concatenate([prompt, response[:-1]]), np.concatenate([before(unit, node), row])
            assert np.array_equal(seen[: whole.size], whole)
            assert not seen[whole.size :].any()
            assert np.array_equal(ids[take], np.concatenate([prompt[-1:], response[:-1]]))
            assert set(owners[take]) == {place}


@settings(deadline=None)
@given(BATCHES, BUDGETS)
def test_budget_is_kept_unless_one_sequence_breaks_it(batch: list[tuple[np.ndarray, np.ndarray]], budget: int) -> None:
    for unit in packed(batch, budget):
        assert unit.tokens <= budget or len(unit.members) == 1


@settings(deadline=None)
@given(BATCHES)
def test_equal_prompts_run_once_where_the_budget_allows(batch: list[tuple[np.ndarray, np.ndarray]]) -> None:
    shared, alone = packed(batch, 10_000), pack([p for p, _ in batch], [r for _, r in batch], 10_000, share=False)
    ends = {prompt.tobytes(): prompt for prompt, _ in batch}.values()
    longest = max(response.size for _, response in batch)
    assert sum(unit.tokens for unit in shared) <= sum(p.size for p in ends) + len(batch) * longest * (1 + longest)
    for prompt in ends:
        group = {i for i, (own, _) in enumerate(batch) if np.array_equal(own, prompt)}
        if len(group) > 1 and prompt.size > 1:
            (unit,) = [unit for unit in shared if group & set(unit.members)]
            rows = [node for node in unit.nodes if node.rows for _ in node.ids_NT]
            behind = {before(unit, rows[place]).size for place, i in enumerate(unit.members) if i in group}
            assert behind == {prompt.size - 1}
    assert len(alone) == 1


def test_contexts_that_begin_alike_run_their_beginning_once() -> None:
    rng = np.random.default_rng(0)
    problem, demonstration = rng.integers(1, 99, (2, 40)).astype(np.int32)
    feedbacks = rng.integers(100, 199, (3, 20)).astype(np.int32)
    shown = np.concatenate([problem, demonstration])
    prompts = [shown, shown, shown, *(np.concatenate([problem, each]) for each in feedbacks)]
    (unit,) = pack(prompts, [np.arange(1, 6, dtype=np.int32)] * 6, 10_000)
    stretches = [node for node in unit.nodes if not node.rows]
    assert [node.ids_NT.size for node in stretches] == [40, 39]
    assert [node.parent for node in stretches] == [None, 0]
    assert unit.tokens == 40 + 39 + 3 * 5 + 3 * (20 + 4)


def test_long_stretches_run_in_pieces() -> None:
    prompt = np.arange(5_000, dtype=np.int32)
    (unit,) = pack([prompt, prompt], [prompt[:3]] * 2, 10_000)
    assert [node.ids_NT.size for node in unit.nodes] == [2_048, 2_048, 903, 6]
    assert [node.parent for node in unit.nodes] == [None, 0, 1, 2]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 17, 30, 40]), IDS, IDS), min_size=1, max_size=8), BUDGETS)
def test_token_of_a_tree_attends_to_its_own_text_alone(
    batch: list[tuple[int, np.ndarray, np.ndarray]], budget: int
) -> None:
    root = np.arange(40, dtype=np.int32)  # longer beginnings than SHORTEST_SHARED, at several depths
    texts = [(np.concatenate([root[:cut], rest]), response) for cut, rest, response in batch]
    for unit in packed(texts, budget):
        tree = tree_of(unit)
        place = np.arange(tree.ids_T.size)
        seen_TT = (place <= place[:, None]) & (place[:, None] < tree.until_T)
        assert tree.ids_T.size <= unit.tokens
        takes = np.split(tree.take_R, np.cumsum(unit.counts)[:-1])
        for member, take in zip(unit.members, takes, strict=True):
            prompt, response = texts[member]
            for n, token in enumerate(take):
                attended = np.flatnonzero(seen_TT[token])
                assert np.array_equal(tree.ids_T[attended], np.concatenate([prompt, response[:n]]))
                assert np.array_equal(tree.positions_T[attended], np.arange(attended.size))
