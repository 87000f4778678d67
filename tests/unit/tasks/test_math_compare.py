"""Equal numbers are equal in every form, different ones in none, and nothing hostile takes long or runs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_pairs import DIFFERENT, EQUAL, EXCEPTIONS

from sdpo_mlx.tasks.math import verify_process
from sdpo_mlx.tasks.math.compare import beyond, compare, readings
from sdpo_mlx.tasks.math.verify_process import Symbolic

rationals = st.fractions(min_value=-9_999, max_value=9_999, max_denominator=400)
cents = st.integers(-500_000, 500_000).map(lambda n: Fraction(n, 1_000))
small = st.integers(1, 60)


@pytest.fixture(scope="module")
def asked() -> Iterator[Symbolic]:
    """math-verify, in a process that all tests here share."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    symbolic = Symbolic(60)
    yield symbolic
    symbolic.close()


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
        assert compare(str(value), form) == "equal", form


@settings(deadline=None, max_examples=50)
@given(cents)
def test_decimals_and_percentages_equal_their_fraction(value: Fraction) -> None:
    for form in decimals(value):
        assert compare(str(value), form) == compare(form, str(value)) == "equal", form


@settings(deadline=None, max_examples=50)
@given(rationals, rationals)
def test_different_numbers_differ_in_every_form(one: Fraction, two: Fraction) -> None:
    if one == two:
        return
    for form in forms(two)[:-1]:
        assert compare(str(one), form) == "different", form


@settings(deadline=None, max_examples=50)
@given(small, small, small)
def test_roots_are_compared_by_value(a: int, b: int, c: int) -> None:
    assert compare(f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}") == "equal"
    assert compare(f"\\sqrt{{{a}}}\\cdot\\sqrt{{{b}}}", f"\\sqrt{{{a * b}}}") == "equal"
    said = compare(f"{a}\\sqrt{{{b}}}", f"{c}\\sqrt{{{b}}}")
    assert said == ("equal" if a == c else "different")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=5))
def test_order_counts_in_tuples_only(values: list[int]) -> None:
    mixed = sorted(values)
    inside, other = ", ".join(map(str, values)), ", ".join(map(str, mixed))
    assert compare(f"\\{{{inside}\\}}", f"\\{{{other}\\}}") == "equal"
    assert compare(inside, other) == "equal"
    assert compare(f"({inside})", f"({other})") == ("equal" if values == mixed else "different")


@pytest.mark.parametrize(("right", "given"), EQUAL)
def test_pairs_that_people_call_equal(right: str, given: str) -> None:
    assert compare(right, given) == "equal"


@pytest.mark.parametrize(("right", "given"), DIFFERENT)
def test_pairs_that_people_call_different(right: str, given: str) -> None:
    assert compare(right, given) == "different"


@pytest.mark.parametrize(("right", "given", "verdict"), EXCEPTIONS)
def test_our_own_verdict_where_the_engines_part(right: str, given: str, verdict: str) -> None:
    assert compare(right, given) == verdict


def test_both_engines_agree_on_every_pair(asked: Symbolic) -> None:
    wrong = [pair for pair in EQUAL if not asked.equal(*pair)] + [pair for pair in DIFFERENT if asked.equal(*pair)]
    assert len(EQUAL) + len(DIFFERENT) >= 100
    assert wrong == []
    # An exception that is none any more should go.
    assert all(asked.equal(right, given) != (verdict == "equal") for right, given, verdict in EXCEPTIONS)


@pytest.mark.parametrize(
    ("right", "given"), [("\\ln 4", "2\\ln 2"), ("x > 3", "3 < x"), ("\\sin(2x)", "2\\sin x\\cos x")]
)
def test_math_verify_judges_what_is_unknown_here(asked: Symbolic, right: str, given: str) -> None:
    assert compare(right, given) == "unknown"
    with ThreadPoolExecutor(2) as pool:  # its own time-outs work in the main thread only; ours everywhere
        assert list(pool.map(asked.equal, [right, right], [given, "17"])) == [True, False]


def test_endless_question_ends_the_worker_and_the_next_is_answered(asked: Symbolic) -> None:
    assert asked.equal("1/2", "0.5")
    worker = asked._worker
    assert worker is not None
    asked._seconds = 0.2
    assert not asked.equal("10^{10^{10}}", "1")
    assert worker.poll() is not None
    asked._seconds = 60
    assert asked.equal("1/3", "\\frac13")


def test_worker_runs_no_text_as_a_program(asked: Symbolic, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    attack = f"__import__('pathlib').Path('{planted}').touch()"
    for text in (attack, f"f({attack})", f"\\text{{{attack}}}", f"\\operatorname{{{attack}}}", f"\\max({attack},1)"):
        assert not asked.equal("1", text)
    assert not planted.exists()


def test_missing_math_verify_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_process, "find_spec", lambda name: None)
    assert not verify_process.installed()


HOSTILE = (
    "9^{9^{9^9}}",
    "10**10**10",
    "2^{99999999999999999999}",
    "(x+y+z+a+b)^{300}",
    "(" * 300 + "1" + ")" * 300,
    "{" * 60 + "1" + "}" * 60,
    "\\frac" * 150,
    "\\sqrt" * 100 + "2",
    "9" * 700,
    "1e999999999",
    "((((((" + "!" * 200,
    "300!!",
    "|" * 300,
    "-" * 600 + "1",
    "^{2" * 90,
    "1," * 390,
    "(a," * 90,
    "\u0663\u0664",
    "\ud800",
    "\u0000",
    "1/0",
    "0^{-1}",
    "\\begin{pmatrix}" * 20,
    "\\sqrt{" + "7" * 60 + "}",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_answer_is_never_equal_and_never_raises(text: str) -> None:
    assert compare("17", text) != "equal"
    assert compare(text, "17") != "equal"
    assert beyond(text) in (True, False)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60) | st.text(alphabet="0123456789+-*/^(){}[]\\,.%|!= abxpiqrtsf$", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert compare(text, text) in ("equal", "unknown")
    assert isinstance(readings(text), list)
    assert compare("17", text) in ("equal", "different", "unknown")


@pytest.mark.parametrize(
    ("right", "given"),
    [("42", "42 is not the answer"), ("12", "1 2"), ("0", "\\infty-\\infty"), ("5", "not 5"), ("12", "\\text{not 12}")],
)
def test_right_digits_in_a_wrong_answer_are_not_equal(right: str, given: str) -> None:
    assert compare(right, given) != "equal"
