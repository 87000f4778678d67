"""Packed tests are read without unpickling, and a problem keeps the tests that can be run."""

from __future__ import annotations

import base64
import pickle
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.code.formats.detect import problem_from_any
from sdpo_mlx.tasks.code.formats.livecodebench_tests import PackedError, pickled_text, unpacked_text
from sdpo_mlx.tasks.code.formats.native import MOST_INPUT, fitting, halved


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@given(text=st.text(), protocol=st.integers(1, pickle.HIGHEST_PROTOCOL))
def test_pickled_text_is_read_as_pickle_wrote_it(text: str, protocol: int) -> None:
    data = pickle.dumps(text, protocol=protocol)
    assert pickled_text(data) == text
    assert unpacked_text(_packed(data)) == text


@given(
    value=st.integers()
    | st.lists(st.text(), min_size=1)
    | st.binary()
    | st.dictionaries(st.text(), st.text())
    | st.none()
)
def test_pickle_of_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(PackedError):
        pickled_text(pickle.dumps(value))


@given(data=st.binary(max_size=60))
def test_random_bytes_are_text_or_refused(data: bytes) -> None:
    try:
        text = pickled_text(data)
    except PackedError:
        return
    assert pickle.loads(data) == text


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_cut_pickle_is_refused(cut: int) -> None:
    with pytest.raises(PackedError):
        pickled_text(pickle.dumps("some text")[:-cut])


def test_bomb_is_stopped_before_it_fills_memory() -> None:
    with pytest.raises(PackedError, match="more than"):
        unpacked_text(_packed(b"[" + b" " * 5_000_000), most=1_000_000)


def test_cut_zlib_data_is_refused() -> None:
    whole = zlib.compress(pickle.dumps("x" * 1_000))
    with pytest.raises(PackedError, match="middle"):
        unpacked_text(base64.b64encode(whole[:-6]).decode())


@given(count=st.integers(1, 40))
def test_halves_speak_and_decide(count: int) -> None:
    tests = halved([{"kind": "code", "code": str(index)} for index in range(count)])
    public = [test["public"] for test in tests]
    assert public == sorted(public, reverse=True)
    assert sum(public) == max(1, count // 2)


@given(sizes=st.lists(st.integers(0, 70_000), min_size=1, max_size=12))
def test_what_is_kept_passes_the_check_of_our_rows(sizes: list[int]) -> None:
    tests = [{"kind": "stdin", "input": str(i), "output": "x" * size} for i, size in enumerate(sizes)]
    if min(sizes) > 29_800:
        with pytest.raises(DataError, match="short enough"):
            fitting(tests, "here")
        return
    kept = fitting(tests, "here")
    problem_from_any({"id": "x", "statement": "x", "tests": kept}, "here")
    assert [test for test in tests if test in kept] == kept
    longest = max(len(test["output"]) for test in kept)
    assert all(len(test["output"]) >= longest for test in tests if test not in kept)


def test_longest_inputs_go_where_they_are_too_much_together() -> None:
    tests = [{"kind": "stdin", "input": "x" * size, "output": ""} for size in (10, MOST_INPUT, 20)]
    assert [len(test["input"]) for test in fitting(tests, "here")] == [10, 20]
