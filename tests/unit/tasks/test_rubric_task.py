"""Checks of free answers: each kind, what is said, hostile answers, and rows that are wrong."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.tasks.grading import grade
from sdpo_mlx.tasks.rubric import json_schema
from sdpo_mlx.tasks.rubric.checks import KINDS, check_from_row
from sdpo_mlx.tasks.rubric.task import LONGEST_ANSWER, RubricTask
from sdpo_mlx.types import Problem

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "n": {"$ref": "#/$defs/count"}},
    "patternProperties": {"^x_": {"type": "number"}},
    "additionalProperties": False,
    "required": ["name"],
    "$defs": {"count": {"type": "integer", "minimum": 0}},
}


def opened(folder: Path, *rows: Any, mode: str | None = None) -> RubricTask:
    """A task on rows written to a file."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return RubricTask(TaskConfig(name="rubric", data=str(path), feedback=mode))


def one(folder: Path, *checks: dict[str, Any], mode: str | None = None) -> tuple[RubricTask, Problem]:
    """A task with a single row of these checks."""
    task = opened(folder, {"prompt": "Say it.", "checks": list(checks)}, mode=mode)
    return task, task.problems("train")[0]


def failure(answer: str, kind: str, value: Any = None, **more: Any) -> str:
    """What one check says about an answer."""
    return check_from_row({"kind": kind, "value": value, **more}, "f:1").failure(answer)


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad", "said"),
    [
        ("regex", r"\d{3}", "call 123", "call", "matches the pattern"),
        ("not_regex", r"\d", "none", "one 1", "nothing may"),
        ("contains", "Paris", "in Paris.", "in paris.", 'must contain "Paris"'),
        ("not_contains", "sorry", "fine", "so sorry", 'must not contain "sorry"'),
        ("starts_with", "Dear", "Dear all", "Hi Dear", 'not with "Hi Dear"'),
        ("ends_with", "?", "why?", "why? Well", 'not with "why? Well"'),
        ("equals", "yes", "yes", "yes!", '"yes" and nothing else'),
        ("json", None, "[1]", "[1,]", "The answer is not JSON: "),
        ("json", "object", '{"a": 1}', "[1]", "kind object, and it is: array"),
        ("json", "array", "text\n```json\n[1]\n```\nmore", "7", "it is: single value"),
        (
            "json_keys",
            ["a", "b"],
            '{"b": 1, "a": 2}',
            '{"a": 1, "c": 2}',
            'missing: "b"; fields are not asked for: "c"',
        ),
        ("json_schema", SCHEMA, '{"name": "Ada", "n": 3, "x_1": 0.5}', '{"name": "ada"}', "$.name: "),
        ("language", "de", "Das ist nicht der Weg, den wir gehen.", "This is not the way to it.", "reads as English"),
        ("language", "ja", "これは日本語の文です。", "这是中文的句子。", "reads as Chinese"),
        ("language", "en", "This is the house that he built.", "42", "cannot be told"),
        ("words", 2, "two words", "three more words", "has 3 words; it must have exactly 2"),
        ("min_words", 2, "two - words", "one -", "has 1 word; it must have at least 2"),
        ("max_words", 2, "two words", "three more words", "at most 2"),
        ("min_chars", 3, "abc", "ab", "has 2 characters"),
        ("max_chars", 3, "abc", "abcd", "has 4 characters"),
        ("lines", 2, "a\n\nb", "a", "has 1 line;"),
        ("min_lines", 2, "a\nb", "a", "at least 2"),
        ("max_lines", 1, "a\n\n", "a\nb", "at most 1"),
        ("sentences", 2, "One. Two!", "One", "has 1 sentence;"),
        ("max_sentences", 1, "Is 3.5 more?", "No. Yes.", "has 2 sentences"),
        ("bullets", 2, "list:\n- a\n* b", "-a\n- b", "has 1 list item;"),
        ("min_bullets", 2, "1. a\n2) b", "1 a\n2. b", "has 1 list item;"),
        ("max_bullets", 1, "- a", "- a\n- b", "has 2 list items"),
    ],
)
def test_check_passes_the_good_answer_and_tells_the_bad_one(
    kind: str, value: Any, good: str, bad: str, said: str
) -> None:
    assert failure(good, kind, value) == ""
    assert said in failure(bad, kind, value)
    assert failure(bad, kind, value, feedback="Do better.") == "Do better."


def test_every_kind_is_tested_above() -> None:
    cases = test_check_passes_the_good_answer_and_tells_the_bad_one.pytestmark[0].args[1]
    assert {case[0] for case in cases} == set(KINDS)


def test_case_is_ignored_when_asked() -> None:
    assert failure("in PARIS", "contains", "Paris", ignore_case=True) == ""
    assert failure("STRASSE", "contains", "straße", ignore_case=True) == ""
    with pytest.raises(DataError, match=r"in a regex write \(\?i\)"):
        failure("x", "regex", "x", ignore_case=True)


def test_reward_is_the_weighted_share_and_every_check_is_spoken_of(tmp_path: Path) -> None:
    checks = (
        {"kind": "max_words", "value": 3, "feedback": "Be short.", "weight": 3},
        {"kind": "contains", "value": "tea"},
    )
    task, problem = one(tmp_path, *checks)
    short = task.grade(problem, "coffee")
    assert (short.reward, short.success, short.kind) == (0.75, False, "wrong")
    assert short.text == 'ok: at most 3 words\nThe answer must contain "tea".'
    long = task.grade(problem, "a cup of tea please")
    assert (long.reward, long.text) == (0.25, 'Be short.\nok: contains "tea"')
    both = task.grade(problem, "tea")
    assert (both.reward, both.success, both.kind, both.text) == (1.0, True, "pass", "")


def test_modes_say_all_or_failures_or_nothing(tmp_path: Path) -> None:
    checks = ({"kind": "max_words", "value": 3}, {"kind": "contains", "value": "tea"})
    told = {}
    for mode in ("checks", "failed", "none"):
        task, problem = one(tmp_path, *checks, mode=mode)
        told[mode] = task.grade(problem, "coffee").text
    assert told["checks"].splitlines()[1:] == [told["failed"]]
    assert told["none"] == ""
    assert RubricTask().feedback == "checks"


@pytest.mark.parametrize("text", ["", " \n", "<think>long thoughts", "<think>a</think>"])
def test_empty_answer_earns_nothing_though_checks_would_hold(text: str, tmp_path: Path) -> None:
    task, problem = one(tmp_path, {"kind": "max_words", "value": 3}, {"kind": "not_contains", "value": "x"})
    verdict = task.grade(problem, text)
    assert (verdict.reward, verdict.kind) == (0.0, "invalid")
    assert "empty" in verdict.text


def test_thinking_is_not_checked(tmp_path: Path) -> None:
    task, problem = one(tmp_path, {"kind": "equals", "value": "yes"})
    assert task.grade(problem, "<think>maybe no</think>\nyes").success


def test_truncated_failure_is_told_so(tmp_path: Path) -> None:
    task, problem = one(tmp_path, {"kind": "contains", "value": "tea"})
    assert "ran out of tokens" in task.grade(problem, "cof", truncated=True).text


def test_overlong_answer_is_not_read(tmp_path: Path) -> None:
    task, problem = one(tmp_path, {"kind": "contains", "value": "a"})
    assert task.grade(problem, "a" * (LONGEST_ANSWER + 1)).kind == "invalid"


def test_pattern_that_runs_away_is_the_graders_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "SECONDS", 0.05)
    for check in (
        {"kind": "regex", "value": "(a|aa)+$"},
        {"kind": "json_schema", "value": {"items": {"pattern": "(a|aa)+$"}}},
        {"kind": "json_schema", "value": {"items": {"patternProperties": {"(a|aa)+$": True}}}},
        {
            "kind": "json_schema",
            "value": {"items": {"patternProperties": {"(a|aa)+$": True}, "additionalProperties": False}},
        },
    ):
        task, problem = one(tmp_path, check)
        long = "a" * 80 + "b"
        answer = json.dumps([{long: 1}] if "Properties" in json.dumps(check) else [long])
        verdict = grade(task, problem, answer if check["kind"] == "json_schema" else long)
        assert verdict.kind == "grader_error"
        assert grade(task, problem, "aa" if check["kind"] == "regex" else '["aa"]').kind == "pass"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("[" * 100_000, "deeper than 64"),
        ("[" * 70 + "]" * 70, "deeper than 64"),
        ("NaN", "not a number that JSON knows"),
        ("1e999", "not a number that JSON knows"),
        ("9" * 5000, "too many digits"),
        ("```json\n{}", "not JSON"),
        ("Here: {}", "not JSON"),
    ],
)
def test_answer_that_is_no_json_is_told_why(answer: str, said: str) -> None:
    assert said in failure(answer, "json")


def test_last_fence_marked_json_is_read() -> None:
    text = '```json\n{"a": 1}\n```\nthen\n```\n[2]\n```\nand\n```python\nx\n```'
    assert json_schema.json_in(text) == [2]


def test_schema_faults_are_named_by_place_in_a_fixed_order() -> None:
    said = failure('{"n": -1, "x_1": "a", "zz": 0, "yy": 0}', "json_schema", SCHEMA)
    assert said.index("$: ") < said.index("$.n: ")
    assert 'not allowed: "zz", "yy"' in said
    assert "'name' is a required property" in said


def test_reference_to_elsewhere_is_refused_and_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(urllib.request, "urlopen", fetched)
    for target in ("https://example.com/schema.json", "other.json", "file:///etc/passwd", "#/$defs/none", "#anchor"):
        with pytest.raises(DataError, match="points"):
            failure("{}", "json_schema", {"properties": {"a": {"$ref": target}}})
    assert failure("{}", "json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}) == ""


def test_schema_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ConfigError, match=r"sdpo-mlx\[rubric\]"):
        failure("{}", "json_schema", {})
    assert RubricTask().problems("train")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x"}, "checks is not a list"),
        ({"prompt": "x", "checks": []}, "checks is not a list"),
        ({"checks": [{"kind": "json"}]}, "either a prompt or messages"),
        ({"prompt": " ", "checks": [{"kind": "json"}]}, "prompt is missing or not text"),
        ({"messages": [{"role": "tool", "content": "x"}], "checks": [{"kind": "json"}]}, "no known role"),
        ({"messages": [{"role": "assistant", "content": "x"}], "checks": [{"kind": "json"}]}, "not the user's"),
        ({"prompt": "x", "check": []}, "unknown field 'check'"),
        ({"prompt": "x", "checks": [{"kind": "json"}], "split": "devil"}, "split is neither"),
        ({"prompt": "x", "checks": [7]}, "check 1, a check is not an object"),
        ({"prompt": "x", "checks": [{"kind": "json"}, {"kind": "max_word", "value": 3}]}, "did you mean max_words?"),
        ({"prompt": "x", "checks": [{"kind": "qqq"}]}, "the kinds are regex, "),
        ({"prompt": "x", "checks": [{"kind": "max_words", "values": 3}]}, "did you mean value?"),
        ({"prompt": "x", "checks": [{"kind": "max_words", "value": "3"}]}, "must be a whole number"),
        ({"prompt": "x", "checks": [{"kind": "max_words", "value": True}]}, "must be a whole number"),
        ({"prompt": "x", "checks": [{"kind": "contains", "value": ""}]}, "must be text"),
        ({"prompt": "x", "checks": [{"kind": "regex", "value": "a(b"}]}, "missing ) at character 4"),
        ({"prompt": "x", "checks": [{"kind": "language", "value": "xx"}]}, "a code of a language: en, de"),
        ({"prompt": "x", "checks": [{"kind": "language", "value": ["en"]}]}, "a code of a language"),
        ({"prompt": "x", "checks": [{"kind": "json_keys", "value": "a"}]}, "a list of field names"),
        ({"prompt": "x", "checks": [{"kind": "json", "value": "list"}]}, '"object", "array"'),
        (
            {"prompt": "x", "checks": [{"kind": "json_schema", "value": {"type": "text"}}]},
            "the schema is wrong at type",
        ),
        ({"prompt": "x", "checks": [{"kind": "json_schema", "value": {"pattern": "("}}]}, "missing )"),
        ({"prompt": "x", "checks": [{"kind": "json_schema", "value": 3}]}, "a JSON schema is an object"),
        ({"prompt": "x", "checks": [{"kind": "json", "weight": 0}]}, "weight is not a positive number"),
        ({"prompt": "x", "checks": [{"kind": "json", "feedback": 3}]}, "feedback is not text"),
    ],
)
def test_bad_row_is_named_by_line_and_check(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, {"prompt": "x", "checks": [{"kind": "json"}]}, row)
    assert "rows.jsonl:2: " in str(caught.value)
    assert said in str(caught.value)


@given(st.text(max_size=80))
def test_any_answer_gets_a_verdict_from_every_kind(answer: str) -> None:
    for kind, value in (("language", "de"), ("json_schema", SCHEMA), ("json", None), ("bullets", 1), ("sentences", 1)):
        assert isinstance(failure(answer, kind, value), str)


def test_chat_rows_keep_their_turns(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be {brief}."}, {"role": "user", "content": "Hi"}]
    task = opened(tmp_path, {"messages": turns, "checks": [{"kind": "json"}]})
    assert list(task.problems("train")[0].messages) == turns
