"""Equal numbers are equal in every form, and different ones in none."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_pairs import DIFFERENT, EQUAL, EXCEPTIONS

from sdpo_mlx.tasks.math.compare import equal
from sdpo_mlx.tasks.math.normalize import UnreadableError, normalize
from sdpo_mlx.tasks.math.read import read

rationals = st.fractions(min_value=-9_999, max_value=9_999, max_denominator=400)
cents = st.integers(-500_000, 500_000).map(lambda n: Fraction(n, 1_000))
small = st.integers(1, 60)


def forms(value: Fraction) -> list[str]:
    """Spellings of a rational number, among them every kind of fraction."""
    n, d = value.numerator, value.denominator
    sign = "-" if n < 0 else ""
    spelt = [
        f"{n}/{d}",
        f"\\frac{{{n}}}{{{d}}}",
        f"{sign}\\dfrac{{{abs(n)}}}{{{d}}}",
        f"{3 * n}/{3 * d}",
        f"({n})/({d})",
    ]
    return [*spelt, f"${n}/{d}$"[1:-1], f"x = {n}/{d}", f"{100 * n}/{d}\\%"]


def decimals(value: Fraction) -> list[str]:
    """Spellings of a number with at most three decimals."""
    thousandths = abs(value) * 1_000
    sign = "-" if value < 0 else ""
    whole, rest = divmod(int(thousandths), 1_000)
    tenths = int(thousandths)
    return [f"{sign}{whole}.{rest:03d}", f"{sign}{whole:,}.{rest:03d}", f"{sign}{tenths // 10}.{tenths % 10}\\%"]


@settings(deadline=None, max_examples=50)
@given(rationals)
def test_forms_of_a_fraction_are_equal(value: Fraction) -> None:
    for form in forms(value):
        assert equal(str(value), form), form


@settings(deadline=None, max_examples=50)
@given(cents)
def test_decimals_and_percentages_equal_their_fraction(value: Fraction) -> None:
    for form in decimals(value):
        assert equal(str(value), form), form
        assert equal(form, str(value)), form


@settings(deadline=None, max_examples=50)
@given(rationals, rationals)
def test_different_numbers_differ_in_every_form(one: Fraction, two: Fraction) -> None:
    if one == two:
        return
    for form in forms(two)[:-1]:
        assert not equal(str(one), form), form


@settings(deadline=None, max_examples=50)
@given(small, small, small)
def test_roots_are_compared_by_value(a: int, b: int, c: int) -> None:
    assert equal(f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}")
    assert equal(f"\\sqrt{{{a}}}\\cdot\\sqrt{{{b}}}", f"\\sqrt{{{a * b}}}")
    assert equal(f"{a}\\sqrt{{{b}}}", f"{c}\\sqrt{{{b}}}") == (a == c)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=5))
def test_order_counts_in_tuples_only(values: list[int]) -> None:
    mixed = sorted(values)
    inside, other = ", ".join(map(str, values)), ", ".join(map(str, mixed))
    assert equal(f"\\{{{inside}\\}}", f"\\{{{other}\\}}")
    assert equal(inside, other)
    assert equal(f"({inside})", f"({other})") == (values == mixed)


@pytest.mark.parametrize(("right", "given"), EQUAL)
def test_pairs_that_people_call_equal(right: str, given: str) -> None:
    assert equal(right, given)


@pytest.mark.parametrize(("right", "given"), DIFFERENT)
def test_pairs_that_people_call_different(right: str, given: str) -> None:
    assert not equal(right, given)


@pytest.mark.parametrize(("right", "given", "verdict"), EXCEPTIONS)
def test_a_decimal_is_exactly_what_it_says(right: str, given: str, verdict: str) -> None:
    assert equal(right, given) == (verdict == "equal")


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60) | st.text(alphabet="0123456789+-*/^(){}[]\\,.%|!= abxpiqrtsf$", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read(normalize(text))
    except UnreadableError:
        return


@pytest.mark.parametrize(
    ("right", "given"),
    [("42", "42 is not the answer"), ("12", "1 2"), ("0", "\\infty-\\infty"), ("5", "not 5"), ("12", "\\text{not 12}")],
)
def test_right_digits_in_a_wrong_answer_are_not_equal(right: str, given: str) -> None:
    assert not equal(right, given)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ("n\\pi, n \\in \\mathbb{Z}", True),
        ("\\pi m \\text{ where } m\\in\\mathbb Z", True),
        ("k\\pi", True),
        ("2n\\pi, n\\in\\mathbb{Z}", False),
        ("nk\\pi, n\\in\\mathbb{Z}", False),
    ],
)
def test_letter_that_runs_over_the_integers_may_have_another_name(given: str, verdict: bool) -> None:
    assert equal("k\\pi, k\\in\\mathbb{Z}", given) is verdict
