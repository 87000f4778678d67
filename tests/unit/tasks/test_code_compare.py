"""Values come back from a sandbox with type and value, and are compared as the data says."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.tasks.code.compare import canonical, same, same_output, show
from sdpo_mlx.tasks.code.harness import decode, encode

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


@given(plain)
def test_every_value_equals_itself_under_every_rule(value: Any) -> None:
    for rule in (
        {},
        {"tolerance": 0.0},
        {"tolerance": 1e-9},
        {"unordered": True},
        {"unordered": True, "tolerance": 1e-9},
    ):
        assert same(value, value, **rule)


@given(plain, plain, st.sampled_from([None, 0.0, 0.5]), st.booleans())
def test_comparing_is_symmetric(one: Any, other: Any, tolerance: float | None, unordered: bool) -> None:
    rule = {"tolerance": tolerance, "unordered": unordered}
    assert same(one, other, **rule) == same(other, one, **rule)


@given(st.lists(plain, max_size=5), st.randoms(use_true_random=False), st.sampled_from([None, 1e-9]))
def test_order_is_free_for_every_permutation(items: list[Any], chance: Any, tolerance: float | None) -> None:
    mixed = list(items)
    chance.shuffle(mixed)
    assert same(items, mixed, unordered=True, tolerance=tolerance)


@given(plain, plain)
def test_values_that_python_tells_apart_are_never_the_same(one: Any, other: Any) -> None:
    if same(one, other):
        assert show(one).replace("-0.0", "0.0") == show(other).replace("-0.0", "0.0") or one == other


@given(plain)
def test_a_value_differs_from_the_same_value_in_a_box(value: Any) -> None:
    boxed: list[Any] = [[value], (value,), {"k": value}]
    assert not any(same(value, box) for box in boxed)
    assert not any(same(one, other) for one in boxed for other in boxed if one is not other)


@given(st.lists(st.floats(-2, 2), max_size=6), st.randoms(use_true_random=False))
def test_near_partners_are_found_in_every_order(numbers: list[float], chance: Any) -> None:
    """Also where the first near partner is the wrong one to take."""
    moved = [number + 0.4 for number in numbers]
    chance.shuffle(moved)
    assert same(numbers, moved, unordered=True, tolerance=0.5)
    boxes, others = ([[number] for number in group] for group in (numbers, moved))
    assert same(boxes, others, unordered=True, tolerance=0.5)


@pytest.mark.parametrize(
    ("expected", "got", "right"),
    [
        (0.0, -0.0, True),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (math.nan, math.inf, False),
        ({math.nan}, {math.nan}, True),
        ([float("nan"), 1], [1, float("nan")], False),
        ([10**5000], [10**5000], True),
        ([10**5000], [10**5000 + 1], False),
        (2**53, float(2**53), False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([[1, 2], [3]], [[2, 1], [3]], False),
    ],
    ids=range(11),
)
def test_corner_values_are_judged_as_documented(expected: Any, got: Any, right: bool) -> None:
    assert same(expected, got) is right


def test_order_is_free_in_the_outermost_list_alone() -> None:
    assert same([[1, 2], [3]], [[3], [1, 2]], unordered=True)
    assert not same([[1, 2], [3]], [[3], [2, 1]], unordered=True)


def test_tolerance_reaches_floats_at_any_depth_but_never_integers() -> None:
    assert same({"a": [0.1, {0.2}]}, {"a": [0.1 + 1e-12, {0.2 + 1e-12}]}, tolerance=1e-9)
    assert same([1, 2.0], [1.0, 2], tolerance=1e-9)
    assert not same(10**12, 10**12 + 1, tolerance=1e-6)
    assert not same_output("1000000000000", "1000000000001", tolerance=1e-6)


@given(st.integers(-(2**20_000), 2**20_000))
def test_integers_of_any_size_cross_the_border(number: int) -> None:
    assert decode(json.loads(json.dumps(encode(number)))) == number


def test_line_breaks_of_every_kind_and_blank_ends_do_not_count() -> None:
    assert same_output("a\nb\n", "a\r\nb \r\n\r\n")
    assert same_output("", "\n \n")
    assert not same_output("a\nb", "a\n\nb")
    assert not same_output("a", " a")
    assert not same_output("a", "\na")
