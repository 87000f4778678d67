"""Assertions that are read as data hold exactly when the assertions themselves do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.tasks.code.assert_parser import functional_tests
from sdpo_mlx.tasks.code.compare import same
from sdpo_mlx.tasks.code.harness import NotPlainError, _seen, decode, encode

KNOWN = {
    "assert f(1, 'a') == [1, 'a'], 'why'": [{"args": [1, "a"], "expected": [1, "a"], "equality": "python"}],
    "assert 3 == f(-1)": [{"args": [-1], "expected": 3, "equality": "python"}],
    "assert f() is None": [{"args": [], "expected": None}],
    "assert f((1,)) is True": [{"args": [{"$tuple": [1]}], "expected": True}],
    "assert f(1)": [{"args": [1], "expected": True, "equality": "truth"}],
    "assert not f(1)": [{"args": [1], "expected": False, "equality": "truth"}],
    "assert f(1) == 2 and f(2)": [
        {"args": [1], "expected": 2, "equality": "python"},
        {"args": [2], "expected": True, "equality": "truth"},
    ],
    "assert set(f(1)) == set([2, 1])": [{"args": [1], "expected": [1, 2], "equality": "set"}],
    "assert set(f(1)) == {2}": [{"args": [1], "expected": [2], "equality": "set"}],
    "assert sorted(f(1)) == [1, 2]": [{"args": [1], "expected": [1, 2], "equality": "sorted"}],
    "assert list(f(1)) == [1, 2]": [{"args": [1], "expected": [1, 2], "equality": "items"}],
    "assert tuple(f(1)) == tuple([1])": [{"args": [1], "expected": [1], "equality": "items"}],
    "assert abs(f(1) - 5) <= 0.5": [{"args": [1], "expected": 5, "equality": "absolute", "tolerance": 0.5}],
    "import math\nassert math.isclose(f(1), 5.0)": [
        {"args": [1], "expected": 5.0, "equality": "relative", "tolerance": 1e-9}
    ],
    "assert isclose(f(1), 5, abs_tol=0.1)": [{"args": [1], "expected": 5, "equality": "absolute", "tolerance": 0.1}],
    "assert f(*[1, 2], set(), 'ab' * 2, 2 ** 3 - 1) == float('inf')": [
        {"args": [1, 2, {"$set": []}, "abab", 7], "expected": {"$float": "inf"}, "equality": "python"}
    ],
    "assert Solution().f(1) == 2": [{"args": [1], "expected": 2, "equality": "python"}],
    "METADATA = {'x': 1}\n\ndef check(candidate):\n    '''Why.'''\n    assert candidate(1) == 2\n"
    "    assert True, 'fine'\n\ncheck(f)": [{"args": [1], "expected": 2, "equality": "python"}],
}

UNKNOWN = [
    "",
    "assert True",
    "assert False",
    "assert f(x) == 1",
    "x = [1]\nassert f(x) == 1",
    "assert f(1) == 2\nassert f(2) == g(2)",
    "assert f(1) == f(2)",
    "assert g(1) == 2",
    "assert f(key=1) == 2",
    "assert f(1) != 2",
    "assert f(1) < 2",
    "assert f(1) == 2 or f(1) == 3",
    "assert 1 <= f(1) <= 2",
    "assert f(1)[0] == 2",
    "assert f(1) is 2",
    "assert set(f(1)) == [1]",
    "assert sorted(f(1), reverse=True) == [1]",
    "assert abs(f(1) - 2) < 0",
    "assert abs(f(1) - float('nan')) < 1",
    "assert math.isclose(f(1), 2.0, rel_tol=1e-9, abs_tol=2e-9 + 1e-18)",
    "assert f(b'x') == 1",
    "assert f(1j) == 1",
    "assert f({[1]}) == 1",
    "assert f({**{}}) == 1",
    "assert f('a' * 10 ** 9) == 1",
    "assert f(10 ** 10 ** 10) == 1",
    "assert f(1 / 0) == 1",
    "for i in range(3):\n    assert f(i) == i",
    "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == i",
    "def test_it():\n    assert f(1) == 1",
    "def check(f):\n    assert candidate(1) == 2",
    "assert f(1) == 1\ndel f",
    "assert f(" + "[" * 70 + "]" * 70 + ") == 1",
    "assert f(1) ==",
    "assert f(" + "(" * 5000 + ") == 1",
    "assert f('\0') == 1\0",
]


@pytest.mark.parametrize("code", KNOWN)
def test_known_forms_become_calls_with_values(code: str) -> None:
    assert functional_tests(code, "f") == KNOWN[code]


@pytest.mark.parametrize("code", UNKNOWN)
def test_one_unknown_form_leaves_the_whole_text_unread(code: str) -> None:
    assert functional_tests(code, "f") is None


@given(st.text())
def test_any_text_is_read_or_left(code: str) -> None:
    found = functional_tests(code, "f")
    assert found is None or all("args" in test for test in found)


def holds_as_data(code: str, value: Any) -> bool:
    tests = functional_tests(code, "f")
    assert tests is not None
    for test in tests:
        try:
            got = decode(encode(_seen(value, test.get("equality"))))
        except (TypeError, NotPlainError):
            return False
        options = {name: test[name] for name in ("equality", "tolerance") if name in test}
        if not same(decode(test["expected"]), got, **options):
            return False
    return True


def holds_as_code(code: str, value: Any) -> bool:
    try:
        exec(code, {"f": lambda *_: value, "math": math})
    except (AssertionError, TypeError, OverflowError):
        return False
    return True


class Score(int):
    """A subclass, whose instances equal plain integers."""


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3, width=16) | st.sampled_from(["", "a", "1"])
values = scalars | st.lists(scalars, max_size=3)
answers = (
    values
    | values.map(lambda v: tuple(v) if isinstance(v, list) else v)
    | st.frozensets(scalars, max_size=3)
    | st.frozensets(scalars, max_size=3).map(set)
    | st.dictionaries(scalars, scalars, max_size=2)
    | st.integers(-3, 3).map(Score)
)
FORMS = [
    "assert f(0) == {x!r}",
    "assert {x!r} == f(0)",
    "assert f(0)",
    "assert not f(0)",
    "assert f(0) is None",
    "assert f(0) is True",
    "assert set(f(0)) == set({xs!r})",
    "assert sorted(f(0)) == {xs!r}",
    "assert list(f(0)) == {xs!r}",
    "assert tuple(f(0)) == tuple({xs!r})",
    "assert abs(f(0) - {n!r}) < 1",
    "assert abs(f(0) - {n!r}) <= 0.5",
    "assert math.isclose(f(0), {n!r})",
    "assert math.isclose(f(0), {n!r}, abs_tol=1)",
    "assert math.isclose(f(0), {n!r}, rel_tol=0.5)",
]


@pytest.mark.parametrize("form", FORMS)
@given(x=answers.filter(lambda v: type(v) is not Score), n=st.integers(-3, 3), value=answers, right=st.booleans())
def test_data_agrees_with_the_assertion(form: str, x: Any, n: int, value: Any, right: bool) -> None:
    items = sorted(map(str, x)) if isinstance(x, (list, tuple)) else [1, 2]
    code = form.replace("{x!r}", repr(x)).replace("{xs!r}", repr(items)).replace("{n!r}", repr(n))
    if right:  # random values hardly ever agree
        value = items if "xs" in form else n if "{n" in form else x
    if functional_tests(code, "f") is not None:
        assert holds_as_data(code, value) == holds_as_code(code, value)


def test_items_may_come_from_anything_that_iterates() -> None:
    assert holds_as_data("assert sorted(f(0)) == [1, 2]", (n for n in (2, 1)))
    assert holds_as_data("assert set(f(0)) == {1}", {1: 2}.keys())
    assert not holds_as_data("assert sorted(f(0)) == [1, 2]", (n for n in (2, 2)))
