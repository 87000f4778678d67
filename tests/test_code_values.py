"""Values come back from a sandbox with type and value, and are compared as the data says."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.tasks.code_harness import decode, encode
from sdpo_mlx.tasks.code_values import canonical, same, same_output, show

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.booleans(), inner, max_size=4)
        | st.sets(st.integers() | st.text(max_size=3), max_size=4)
        | st.frozensets(st.tuples(st.integers(), st.booleans()), max_size=3)
    ),
    max_leaves=12,
)


@given(plain)
def test_values_come_back_with_type_and_value(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value))))
    assert same(value, back)
    assert canonical(value) == canonical(back)
    assert same(value, back, tolerance=1e-9)


@pytest.mark.parametrize(
    ("expected", "got"),
    [(1, True), (1, 1.0), (0, False), ([1], (1,)), ({1: 2}, {True: 2}), ({1}, frozenset({1})), ("1", 1), (None, 0)],
)
def test_equal_values_of_other_types_differ(expected: Any, got: Any) -> None:
    assert not same(expected, got)


def test_tolerance_and_order_are_free_only_where_the_data_says_so() -> None:
    assert not same(0.3, 0.1 + 0.2)
    assert same(0.3, 0.1 + 0.2, tolerance=1e-9)
    assert same([1.0, [2.0]], [1, [2.0 + 1e-12]], tolerance=1e-9)
    assert not same(1.0, True, tolerance=1e-9)
    assert not same(1.0, 10**400, tolerance=1e-9)
    assert not same([1, 2], [2, 1])
    assert same([1, 2, 2], [2, 1, 2], unordered=True)
    assert not same([1, 2, 2], [2, 1, 1], unordered=True)
    assert same([1.0, 2.0], [2.0 + 1e-12, 1.0], unordered=True, tolerance=1e-9)
    assert same(math.nan, math.nan)


def test_printed_text_ignores_trailing_space_alone() -> None:
    assert same_output("1 2\n3\n", "1 2  \n3\n\n")
    assert not same_output("1 2", "1  2")
    assert same_output("0.3", "0.30000000004", tolerance=1e-6)
    assert not same_output("a 0.3", "b 0.3", tolerance=1e-6)


def test_showing_a_set_does_not_depend_on_hashing() -> None:
    assert show({"b", "a"}) == "{'a', 'b'}"
    assert show([(1,), set(), frozenset({2}), {"k": 1.5}]) == "[(1,), set(), frozenset({2}), {'k': 1.5}]"
