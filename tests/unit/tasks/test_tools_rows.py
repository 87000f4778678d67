"""Three layouts of tool-use rows become problems, and each bad row says what is wrong with it."""

import json

import pytest
from paths import DATA

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.tasks.tools.formats import problems_from_row
from sdpo_mlx.tasks.tools.task import ToolsTask

DATA = DATA / "tools"
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
ROW = {
    "id": "x",
    "messages": [{"role": "user", "content": "Call f."}],
    "tools": [TOOL],
    "expected": [{"name": "f", "arguments": {"a": "1"}}],
}
API = {
    "Name": "n",
    "Function_Description": {"f": 'd\nParameters: {"a": "Required. string. x"}'},
    "Instructions": ["Call f."],
    "Golden_Answers": [[{"Action": "f", "Action_Input": '{"a": "1"}'}]],
}


def opened(name, variant=""):
    task = ToolsTask(TaskConfig(name="tools", data=str(DATA / f"{name}.jsonl")), variant)
    return task, [*task.problems("train"), *task.problems("held_out")]


def asked(problem):
    return problem.messages[-1]["content"]


def action(tool, /, **arguments):
    return f"Thought: so.\nAction: {tool}\nAction Input: {json.dumps(arguments)}\n"


def test_toolalpaca_rows_give_a_problem_an_instruction():
    task, problems = opened("toolalpaca")
    found = {problem.id: problem for problem in problems}
    assert set(found) == {"Town Library/1", "Town Library/2", "Town Library/3", "Bus Times/1"}
    text = asked(found["Town Library/2"])
    assert "- loanId (integer, required): Number of the loan." in text
    assert "- tags (array, optional): Marks." in text
    assert "components" not in text
    assert text.endswith("Request: Renew loan 17 and loan 21 for 14 days each.")
    both = action("renewLoan", loanId=21, days=14) + action("renewLoan", days=14, loanId=17)
    assert task.grade(found["Town Library/2"], both).success
    said = task.grade(found["Town Library/2"], action("renewLoan", loanId="17", days=14)).text
    assert "loanId must be a whole number, not text" in said
    assert task.grade(found["Town Library/3"], action("openingHours")).success


def test_toolalpaca_rows_give_schemas_to_the_chat_template():
    _, problems = opened("toolalpaca", "json")
    problem = next(p for p in problems if p.id == "Bus Times/1")
    assert asked(problem) == "When does the next bus leave at Mill Lane?"
    function = problem.tools[0]["function"]
    assert function["parameters"]["properties"] == {"stop": {"type": "string", "description": "Name of the stop."}}
    assert function["parameters"]["required"] == ["stop"]


def test_paper_rows_keep_their_prompt_as_it_is():
    task, problems = opened("paper")
    found = {problem.id: problem for problem in problems}
    assert asked(found["0"]).startswith("You have these tools:")
    assert [m["role"] for m in found["1"].messages] == ["system", "user"]
    assert len(found) == 3
    assert task.grade(found["0"], action("nextBus", stop="Mill Lane")).success
    assert task.grade(found["0"], action("nextbus", stop="Mill Lane")).text.startswith("Call 1, nextbus: this tool")
    assert "stop is not needed" in task.grade(problems_by_length(problems), action("nextBus", stop="x")).text


def problems_by_length(problems):
    return min(problems, key=lambda problem: len(asked(problem)))


def test_paper_rule_compares_merged_inputs_and_ours_each_call():
    swapped = action("addStop", name="b") + action("addStop", name="b", zone=2)
    for variant, right in (("", False), ("paper", True)):
        task, problems = opened("paper", variant)
        problem = next(p for p in problems if p.id == "1")
        assert task.grade(problem, swapped).success is right
        assert task.grade(problem, action("addStop", name="b", zone=2) + action("addStop", name="a")).success
        for wrong in (action("addStop", name="b", zone=2), swapped + action("addStop", name="b", zone=3)):
            assert task.grade(problem, wrong).text


def test_paper_rows_have_nothing_for_the_chat_template():
    with pytest.raises(DataError, match=r"paper.jsonl:1.*no schemas.*--task tools"):
        opened("paper", "json")


def test_our_rows_are_read_in_both_forms():
    for variant in ("", "json"):
        task, problems = opened("ours", variant)
        first = next(p for p in problems if p.id == "t1")
        second = next(p for p in problems if p.id != "t1")
        assert task.problems("held_out") == [second]
        assert second.family == "two"
        assert first.messages[0]["content"] == "You work in a restaurant."
        assert bool(first.tools) == (variant == "json")
        assert ("list_dishes: All dishes." in asked(first)) == (variant == "")
        assert first.private["expected"][0]["arguments"] == {"people": 4, "when": "19:30"}


def test_order_counts_where_the_row_says_so():
    task, _ = opened("ours")
    problem = task.problems("held_out")[0]
    calls = [action("list_dishes"), action("book_table", people=2, when="20:00", outside=True)]
    assert task.grade(problem, "".join(calls)).success
    assert "wrong order" in task.grade(problem, "".join(reversed(calls))).text


def test_instruction_that_no_described_tool_can_answer_is_left_out(tmp_path):
    golden = [*API["Golden_Answers"], [{"Action": "g", "Action_Input": "{}"}], []]
    file = tmp_path / "api.jsonl"
    row = {**API, "Instructions": ["Call f.", "Call g.", "Call none."], "Golden_Answers": golden}
    file.write_text(json.dumps(row), encoding="utf-8")
    task = ToolsTask(TaskConfig(name="tools", data=str(file)))
    assert [p.id for p in task.problems("train")] == ["n/1"]


def test_repeated_ids_are_told_apart(tmp_path):
    file = tmp_path / "two.jsonl"
    file.write_text(f"{json.dumps(API)}\n{json.dumps(API)}\n", encoding="utf-8")
    task = ToolsTask(TaskConfig(name="tools", data=str(file)))
    assert sorted(p.id for p in task.problems("train")) == ["n/1", "n/1#2"]


BAD = [
    ({"x": 1}, "no known layout"),
    ({**ROW, "extra": 1}, "unknown field 'extra'"),
    ({k: v for k, v in ROW.items() if k != "tools"}, "tools is missing, empty or not a list"),
    ({**ROW, "tools": []}, "tools is missing, empty or not a list"),
    ({**ROW, "tools": [{"description": "x"}]}, "a tool is not an object with a name"),
    ({**ROW, "tools": [{**TOOL, "parameters": {"properties": [1]}}]}, "not the JSON schema of an object"),
    ({**ROW, "tools": [{**TOOL, "parameters": {"properties": {}, "required": ["z"]}}]}, "not a property"),
    ({**ROW, "tools": [{**TOOL, "parameters": {"properties": {"a": {"enum": 3}}}}]}, "enum is not a list"),
    ({**ROW, "tools": [{**TOOL, "description": 3}]}, "a description is not text"),
    ({**ROW, "expected": []}, "expected is missing, empty or not a list"),
    ({**ROW, "expected": [{"arguments": {}}]}, "expected call cannot be used: it has no name"),
    ({**ROW, "expected": [{"name": "f", "arguments": [1]}]}, "no JSON object but a list"),
    ({**ROW, "expected": [{"name": "g", "arguments": {}}]}, "'g' names no tool"),
    ({**ROW, "messages": [{"role": "tool", "content": "x"}]}, "no known role"),
    ({**ROW, "messages": [{"role": "user", "content": 3}]}, "no known role or no text"),
    ({**ROW, "messages": [{"role": "assistant", "content": "x"}]}, "last message is not the user's"),
    ({**ROW, "ordered": "yes"}, "ordered is neither"),
    ({**ROW, "split": "tset"}, "split is neither"),
    ({**API, "Golden_Answers": []}, "differ in length"),
    ({**API, "Function_Description": "f"}, "not an object of texts"),
    ({**API, "Golden_Answers": [[]]}, "no instruction can be answered"),
    ({**API, "Golden_Answers": [[{"Action": "f"}]]}, "no Action and Action_Input"),
    ({**API, "Golden_Answers": [[{"Action": "f", "Action_Input": "{a}"}]]}, "is not JSON"),
    ({**API, "Golden_Answers": [[{"Action": "g", "Action_Input": "{}"}]]}, "no instruction can be answered"),
    ({**API, "Instructions": [" "]}, "Instructions is missing or not text"),
    ({"prompt": "x", "answer": "{"}, "is not JSON"),
    ({"prompt": "x", "answer": {}}, "not a list of calls"),
    ({"prompt": 3, "answer": []}, "prompt is missing or not text"),
    ({"prompt": "x", "answer": []}, "no calls are expected"),
]


@pytest.mark.parametrize(("row", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_row_names_its_line_and_the_fault(tmp_path, row, said):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps({**ROW, 'id': 1})}\n{json.dumps(row)}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        ToolsTask(TaskConfig(name="tools", data=str(file)))
    assert f"{file}:2" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [None], [{}], {"a": None}])
@pytest.mark.parametrize("form", ["actions", "json"])
def test_any_json_in_any_field_is_a_data_error_and_no_traceback(value, form):
    refused = 0
    for whole in (ROW, API, {"prompt": "x", "answer": []}):
        for field in whole:
            try:
                problems_from_row({**whole, field: value}, "f:1", form)
            except DataError:
                refused += 1
    assert refused >= 6


def test_unknown_variant_and_mode_are_configuration_errors():
    with pytest.raises(ConfigError, match="tools:json"):
        ToolsTask(variant="xml")
    with pytest.raises(ConfigError, match="error_only"):
        ToolsTask(TaskConfig(name="tools", feedback="loud"))
