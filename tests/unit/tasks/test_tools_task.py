"""Tool calls are found in answers, judged one by one, and the feedback names the culprit."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_mlx.config import Config, TaskConfig
from sdpo_mlx.tasks.registry import DESCRIPTIONS, open_task
from sdpo_mlx.tasks.tools.grade import report
from sdpo_mlx.tasks.tools.parse import MOST_CALLS, read_calls
from sdpo_mlx.tasks.tools.task import ToolsTask, case_of

TASKS = {variant: ToolsTask(variant=variant) for variant in ("", "json")}
PROBLEMS = {variant: [*task.problems("train"), *task.problems("held_out")] for variant, task in TASKS.items()}
WRITERS = ("actions", "qwen", "llama", "bare", "list", "openai")


def written(calls, form="actions"):
    """The same calls as different models write them."""
    if form == "actions":
        return "".join(f"Action: {c['name']}\nAction Input: {json.dumps(c['arguments'])}\n" for c in calls)
    if form == "qwen":
        return "\n".join(f"<tool_call>\n{json.dumps(c)}\n</tool_call>" for c in calls)
    if form == "llama":
        renamed = [json.dumps({"name": c["name"], "parameters": c["arguments"]}) for c in calls]
        return "<|python_tag|>" + "; ".join(renamed)
    if form == "openai":
        return json.dumps(
            [{"type": "function", "function": {**c, "arguments": json.dumps(c["arguments"])}} for c in calls]
        )
    if form == "list":
        return f"I call these:\n```json\n{json.dumps(calls, indent=2)}\n```\nDone."
    return "\n".join(json.dumps(c) for c in calls)


def expected(problem):
    return json.loads(json.dumps(problem.private["expected"]))


def graded(problem, calls, form="actions", mode="public"):
    variant = "" if form == "actions" else "json"
    twin = next(p for p in PROBLEMS[variant] if p.id == problem.id)
    return opened(variant, mode).grade(twin, written(calls, form))


@cache
def opened(variant, mode):
    return ToolsTask(TaskConfig(name="tools", feedback=mode), variant)


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, "other@example.org"]
    return f"{value} x" if isinstance(value, str) else value + 1


def test_there_are_enough_cases_over_ten_tools_and_held_out_ones_are_of_other_families():
    problems = PROBLEMS[""]
    assert len(problems) >= 64
    assert len({call["name"] for problem in problems for call in problem.private["expected"]}) == 10
    sizes = Counter(len(problem.private["expected"]) for problem in problems)
    assert set(sizes) == {1, 2}
    assert min(sizes.values()) >= 24
    families = [{p.family for p in TASKS[""].problems(split)} for split in ("train", "held_out")]
    assert not families[0] & families[1]
    assert len(TASKS[""].problems("held_out")) >= 16
    assert len({problem.messages[-1]["content"] for problem in problems}) == len(problems)


def test_every_case_offers_more_tools_than_it_needs_and_both_forms_ask_the_same():
    for plain, structured in zip(PROBLEMS[""], PROBLEMS["json"], strict=True):
        needed = {call["name"] for call in plain.private["expected"]}
        offered = {tool["function"]["name"] for tool in structured.tools}
        assert needed < offered
        assert len(offered) >= 4
        assert plain.id == structured.id
        assert not plain.tools
        assert plain.messages[-1]["content"].endswith(structured.messages[-1]["content"])
        assert all(f"{name}: " in plain.messages[-1]["content"] for name in offered)


def test_expected_calls_are_what_their_own_schemas_allow():
    for problem in PROBLEMS[""]:
        said = report(case_of(problem).expected, case_of(problem), "error_only")
        assert said.startswith("The calls are well formed")


@pytest.mark.parametrize("form", WRITERS)
def test_reference_answer_succeeds_in_every_form(form):
    for problem in PROBLEMS[""]:
        feedback = graded(problem, expected(problem), form)
        assert (feedback.reward, feedback.success, feedback.text, feedback.kind) == (1.0, True, "", "pass")


@pytest.mark.parametrize("form", ["actions", "qwen", "llama"])
def test_wrong_value_fails_and_is_named(form):
    for problem in PROBLEMS[""]:
        for i, call in enumerate(expected(problem)):
            for name, value in call["arguments"].items():
                calls = expected(problem)
                calls[i]["arguments"][name] = other(value)
                feedback = graded(problem, calls, form)
                assert not feedback.success
                assert feedback.kind == "wrong"
                line = feedback.text.splitlines()[i]
                assert line.startswith(f"Call {i + 1}, {call['name']}: ")
                assert f"{name} has the wrong value" in line or f"{name} must be one of" in line


@pytest.mark.parametrize("form", ["actions", "qwen", "llama"])
def test_missing_argument_fails_and_is_named(form):
    for problem in PROBLEMS[""]:
        for i, call in enumerate(expected(problem)):
            for name in call["arguments"]:
                calls = expected(problem)
                del calls[i]["arguments"][name]
                line = graded(problem, calls, form).text.splitlines()[i]
                assert f"argument {name} is missing" in line or f"{name} has the wrong value" in line
                assert "which is its default" in line or "is missing" in line


@pytest.mark.parametrize("form", ["actions", "qwen", "llama"])
def test_wrong_tool_fails_and_is_named(form):
    for problem, structured in zip(PROBLEMS[""], PROBLEMS["json"], strict=True):
        calls = expected(problem)
        unused = [t["function"]["name"] for t in structured.tools if t["function"]["name"] not in str(calls)]
        for name, said in ((unused[0], "this tool is not needed here"), ("get_wether", "there is no such tool")):
            calls[0]["name"] = name
            feedback = graded(problem, calls, form)
            assert feedback.text.startswith(f"Call 1, {name}: {said}")
            assert "A call is missing" in feedback.text
            assert not feedback.success


@pytest.mark.parametrize("form", ["actions", "qwen", "llama"])
def test_extra_and_left_out_calls_fail_and_are_named(form):
    for problem in PROBLEMS[""]:
        calls = expected(problem)
        twice = graded(problem, [*calls, calls[0]], form)
        assert f"Call {len(calls) + 1}, {calls[0]['name']}: this call is one too many" in twice.text
        fewer = graded(problem, calls[1:], form)
        assert ("A call is missing" in fewer.text) == (len(calls) > 1)
        assert not fewer.success
        assert not twice.success


def test_order_of_calls_is_free_unless_the_case_says_otherwise():
    ordered = [p for p in PROBLEMS[""] if p.private["ordered"]]
    assert ordered
    for problem in PROBLEMS[""]:
        feedback = graded(problem, expected(problem)[::-1])
        assert feedback.success == (len(expected(problem)) == 1 or not problem.private["ordered"])
        assert feedback.success or feedback.text.endswith("The calls stand in the wrong order.")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_key_order_defaults_and_nulls_do_not_matter(data):
    problem = data.draw(st.sampled_from(PROBLEMS[""]))
    schemas = case_of(problem).schemas
    calls = expected(problem)
    for call in calls:
        schema = schemas[call["name"]]
        for name, part in schema["properties"].items():
            if name not in call["arguments"] and data.draw(st.booleans()):
                call["arguments"][name] = data.draw(st.sampled_from([None, part.get("default")]))
        call["arguments"] = dict(data.draw(st.permutations(list(call["arguments"].items()))))
    assert graded(problem, calls, data.draw(st.sampled_from(WRITERS))).success


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_expected_values_are_told_in_the_full_mode_only(data):
    problem = data.draw(st.sampled_from(PROBLEMS[""]))
    calls = expected(problem)
    call = data.draw(st.sampled_from(calls))
    name = data.draw(st.sampled_from(sorted(call["arguments"])))
    secret = json.dumps(call["arguments"][name], ensure_ascii=False)
    call["arguments"][name] = other(call["arguments"][name])
    told_by = {mode: graded(problem, calls, "actions", mode).text for mode in ("public", "full", "error_only", "none")}
    assert f"expected {secret}" in told_by["full"]
    assert "expected" not in told_by["public"] + told_by["error_only"]
    assert told_by["none"] == ""
    assert told_by["public"]
    assert told_by["error_only"]


def test_call_after_malformed_ones_is_still_spoken_about():
    problem = next(p for p in PROBLEMS[""] if len(p.private["expected"]) == 2)
    good = written(expected(problem)[1:])
    feedback = TASKS[""].grade(problem, f"Action: {expected(problem)[0]['name']}\nAction Input: {{a}}\n{good}")
    first, second = feedback.text.splitlines()
    assert "malformed" in first
    assert second.endswith(": right.")
    assert feedback.kind == "invalid"


def test_answer_without_a_call_is_told_the_form_it_needs():
    for variant, wanted in (("", "Action Input:"), ("json", '"arguments"')):
        problem = PROBLEMS[variant][0]
        nothing = TASKS[variant].grade(problem, "It is sunny.")
        foreign = TASKS[variant].grade(problem, written(expected(problem), "qwen" if variant == "" else "actions"))
        assert nothing.text.startswith("No tool call was found")
        assert foreign.text.startswith("The calls are not written as asked")
        assert wanted in nothing.text
        assert wanted in foreign.text
        assert nothing.kind == foreign.kind == "invalid"


def test_truncated_answer_is_told_so_unless_it_is_right():
    problem = PROBLEMS[""][0]
    assert "cut off" in TASKS[""].grade(problem, "Well,", truncated=True).text
    assert TASKS[""].grade(problem, written(expected(problem)) + "And", truncated=True).success


def test_flood_of_calls_is_short_feedback():
    problem = PROBLEMS[""][0]
    text = "Action: f\nAction Input: {}\n" * 5_000
    feedback = TASKS[""].grade(problem, text)
    assert len(read_calls(text, "actions")) == MOST_CALLS + 1
    assert "more calls are not spoken about" in feedback.text
    assert len(feedback.text) < 5_000


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(max_size=80)
    | st.lists(
        st.sampled_from(
            ["Action:", " f\n", "Action Input:", "{", "}", '"a"', ":", "<tool_call>", "1", "\n", "[", '"name"', ","]
        ),
        max_size=25,
    ).map("".join)
)
def test_any_answer_is_judged_the_same_twice_and_never_raises(text):
    for variant, task in TASKS.items():
        feedback = task.grade(PROBLEMS[variant][0], text)
        assert feedback == task.grade(replace(PROBLEMS[variant][0]), text)
        assert feedback.success or feedback.text


def test_solution_of_every_problem_succeeds():
    for variant, task in TASKS.items():
        assert all(task.grade(problem, task.solution(problem)).success for problem in PROBLEMS[variant])


def test_task_opens_by_its_names_without_a_sandbox():
    for name in ("tools", "tools:json", "tools:paper"):
        opened = open_task(Config(task=TaskConfig(name=name)))
        assert (opened.task.name, opened.sandbox) == (name, "none")
        assert name in DESCRIPTIONS
