"""Tool calls are found in answers as models write them, and compared value by value."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_mlx.tasks.tools.grade import Case, all_right, report, same
from sdpo_mlx.tasks.tools.parse import read_calls
from sdpo_mlx.tasks.tools.values import Call

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
CASE = Case(
    (Call("f", {"n": 2, "tags": ["a"]}),),
    {
        "f": {
            "properties": {
                "n": {"type": "integer"},
                "x": {"type": ["number", "null"]},
                "ok": {"type": "boolean"},
                "tags": {"type": "array"},
                "odd": {"type": "word"},
            },
            "required": ["n"],
        }
    },
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n": "2", "tags": ["a"]}, "n must be a whole number, not text"),
        ({"n": 2.5, "tags": ["a"]}, "n must be a whole number, not the number 2.5"),
        ({"n": True, "tags": ["a"]}, "n must be a whole number, not true or false"),
        ({"n": None, "tags": ["a"]}, "n must be a whole number, not null"),
        ({"n": 2, "tags": "a"}, "tags must be a list, not text"),
        ({"n": 2, "tags": ["a"], "ok": 1}, "ok must be true or false, not the number 1"),
        ({"n": 2, "tags": ["a"], "x": "1"}, "x must be a number or null, not text"),
        ({"n": 2, "tags": ["a"], "tag": 1}, "the tool has no argument tag (did you mean tags?)"),
        ({"n": 2, "tags": ["a"], "odd": 1}, "odd is not needed here"),
        ({"n": 2, "tags": ["a", "b"]}, "tags has the wrong value"),
        ({"tags": ["a"]}, "the required argument n is missing"),
        ({"n": 2}, "the argument tags is missing"),
        ({"n": 2, "tags": ["a"], "<b> {0}": 1}, 'the tool has no argument "<b> {0}"'),
    ],
)
def test_each_argument_is_spoken_about(arguments, said):
    text = report([Call("f", arguments)], CASE, "public")
    assert said in text
    assert all(name in text for name in arguments)
    assert not all_right([Call("f", arguments)], CASE)


def test_whole_floats_are_whole_numbers():
    assert all_right([Call("f", {"n": 2.0, "tags": ["a"]})], CASE)


@settings(deadline=None)
@given(left=JSON, right=JSON)
def test_equality_is_symmetric_and_knows_types(left, right):
    assert same(left, json.loads(json.dumps(left)))
    assert same(left, right) == same(right, left)
    if same(left, right) and not isinstance(left, int | float | dict | list):
        assert left == right


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (1, "1", False),
        (None, False, False),
        ([1], [1.0], True),
        ("e\u0301", "é", True),
        ("a", "A", False),
        ({"a": [True]}, {"a": [1]}, False),
        ([1, 2], [2, 1], False),
    ],
)
def test_values_are_compared_by_type_and_meaning(left, right, equal):
    assert same(left, right) is equal


@pytest.mark.parametrize(
    ("text", "form", "calls"),
    [
        ("", "actions", []),
        ("Action: f\n", "actions", [Call("f", fault="its Action Input is missing")]),
        (
            "Action: f\nAction: g\nAction Input: {}",
            "actions",
            [Call("f", fault="its Action Input is missing"), Call("g")],
        ),
        ("Action Input: {}", "actions", [Call("", fault="an Action Input has no Action before it")]),
        ("Action:\nAction Input: {}", "actions", [Call("", fault="it has no name")]),
        ('**Action:** `f`\n**Action Input:** ```json\n{"a": 1}\n```', "actions", [Call("f", {"a": 1})]),
        (
            'ASSISTANT Action: f.g\nASSISTANT Action Input: {\n "a": 1\n}\nObservation: x',
            "actions",
            [Call("f.g", {"a": 1})],
        ),
        ("Action: f\nAction Input: [1]", "actions", [Call("f", fault="its arguments are no JSON object but a list")]),
        ("<think>Action: f\nAction Input: {}</think>\nAction: g\nAction Input: {}", "actions", [Call("g")]),
        ('<tool_call>{"name": "f"}\n<tool_call>{"name": "g"}', "json", [Call("f"), Call("g")]),
        ('<tool_call>{"name": "f"} {"name": "g"}</tool_call>', "json", [Call("f"), Call("g")]),
        ("<tool_call>[1]</tool_call>", "json", [Call("", fault="it is no JSON object with a name and arguments")]),
        ('{"name": 3}', "json", [Call("", fault="it has no name")]),
        ('{"name": "f", "arguments": 3}', "json", [Call("f", fault="its arguments are no JSON object but a number")]),
        ("Sure [1] {x}", "json", []),
    ],
)
def test_calls_are_found_in_the_order_of_the_answer(text, form, calls):
    assert list(read_calls(text, form)) == calls


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{'a': 1}", "malformed at character 2"),
        ('{"a": 1', "malformed at its end"),
        ('{"a": 1, "a": 2}', "an argument stands twice"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": 1e999}', "is no finite number"),
        ('{"a": ' + "9" * 5_000 + "}", "too many digits"),
        ('{"a": ' + "[" * 200_000, "nested too deep"),
    ],
)
def test_unusable_json_says_where_and_why(value, said):
    for form, text in (("actions", f"Action: f\nAction Input: {value}"), ("json", f"<tool_call>{value}</tool_call>")):
        (call, *_) = read_calls(text, form)
        assert said in call.fault
        assert len(call.fault) < 200
