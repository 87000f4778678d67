"""Rows of tool-use problems, in three formats that are detected by their fields.

Ours, close to what chat interfaces log:

    {"id": "w1", "messages": [{"role": "user", "content": "..."}], "tools": [{"type": "function", "function":
     {"name": "get_weather", "description": "...", "parameters": {JSON schema}}}],
     "expected": [{"name": "get_weather", "arguments": {"city": "Oslo"}}], "ordered": false}

- optional: `id`, `ordered` (true: the calls must stand in the order of `expected`), `split` ("train", "held_out"),
  `family`. `arguments` may be JSON in a text, `parameters` may be left out for a tool without arguments.

ToolAlpaca's evaluation files: one row an API, with `Name`, `Function_Description` (name to text), `Instructions`
and `Golden_Answers` (for each instruction a list of `Action` and `Action_Input`): one problem an instruction. The
public files shorten some descriptions: an instruction whose answer calls what is not described is left out.

The paper's: `prompt` (text that already holds the tools and the format), `answer` or `golden_answer` (a list of
`Action` and `Action_Input`, or the same as JSON in a text), optionally `system`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.data.fields import (
    content_id,
    flag_of,
    json_of,
    list_of,
    messages_of,
    only_fields,
    split_of,
    text_of,
)
from sdpo_mlx.tasks.data.question_parts import refuse_parts
from sdpo_mlx.tasks.tools.parse import Form
from sdpo_mlx.tasks.tools.values import Call, call_from
from sdpo_mlx.types import Message, Problem

_OURS = {"messages", "tools", "expected"}
_OURS_OPTIONAL = {"id", "ordered", "split", "family"}
_TOOLALPACA = {"Name", "Function_Description", "Instructions", "Golden_Answers"}
_FORMAT = (
    "Answer the request with the tool calls that it needs, and with nothing else. Write each call as two lines:\n"
    "Action: the name of the tool\n"
    "Action Input: its arguments as one JSON object"
)
_DESCRIBED = re.compile(r"\s*(Required\.)?\s*(\w+)?(?:\[[^\]]*\])?[.\s]*(.*)", re.DOTALL)
_TYPES = ("string", "integer", "number", "boolean", "array", "object")


def problems_from_row(row: dict[str, Any], where: str, form: Form = "actions") -> list[Problem]:
    """Return the problems of one row; `private` holds the calls expected, ordered and split.

    In the form `actions` the tools stand in the question, their schemas in `private`; in the form `json` they are
    the problem's `tools`.
    Raises DataError that names `where`.
    """
    if row.keys() >= _TOOLALPACA:
        return [_in_split(problem, row, where) for problem in _toolalpaca(row, where, form)]
    if "prompt" in row and ("answer" in row or "golden_answer" in row):
        problem = _papers(row, where, form)
        refuse_parts(row, problem.messages, where)
        return [_in_split(problem, row, where)]
    if row.keys() & _OURS:
        return [_ours(row, where, form)]
    wanted = "messages, tools, expected (ours), prompt, answer (the paper's)"
    fix = f"the fields are {wanted} or {', '.join(sorted(_TOOLALPACA))} (ToolAlpaca's)"
    raise DataError("no known layout of tool-use rows", where=where, fix=fix)


def _in_split(problem: Problem, row: dict[str, Any], where: str) -> Problem:
    split = split_of(row, where)
    return replace(problem, private={**problem.private, "split": split}) if split else problem


def _ours(row: dict[str, Any], where: str, form: Form) -> Problem:
    only_fields(row, _OURS | _OURS_OPTIONAL, where)
    tools = [tool_from(tool, f"{where}, tool {i + 1}") for i, tool in enumerate(list_of(row, "tools", where))]
    expected = list_of(row, "expected", where)
    calls = [_readable(call_from(call), f"{where}, call {i + 1}") for i, call in enumerate(expected)]
    settings = {"ordered": flag_of(row, "ordered", where), "split": split_of(row, where)}
    problem = _problem(row.get("id"), messages_of(row.get("messages"), where), tools, calls, where)
    private, family = {**problem.private, **settings}, str(row.get("family", ""))
    return _asked(replace(problem, private=private, family=family, tools=tuple(tools)), form)


def _toolalpaca(row: dict[str, Any], where: str, form: Form) -> list[Problem]:
    described, asked, golden = row["Function_Description"], row["Instructions"], row["Golden_Answers"]
    if not isinstance(described, dict) or not all(isinstance(text, str) for text in described.values()):
        raise DataError("Function_Description is not an object of texts", where=where, fix="write name: description")
    if not isinstance(asked, list) or not isinstance(golden, list) or len(asked) != len(golden):
        raise DataError("Instructions and Golden_Answers differ in length", where=where, fix="give each its answer")
    tools = [_described(name, text) for name, text in described.items() if name != "components"]
    problems = []
    for i, (question, answer) in enumerate(zip(asked, golden, strict=True)):
        here = f"{where}, instruction {i + 1}"
        message: Message = {"role": "user", "content": text_of({"Instructions": question}, "Instructions", here)}
        calls = _golden(answer, here)
        if not calls or any(call.name not in described for call in calls):
            continue
        made = _problem(f"{row['Name']}/{i + 1}", (message,), tools, calls, here)
        problems.append(_asked(replace(made, family=str(row["Name"]), tools=tuple(tools)), form))
    if not problems:
        raise DataError("no instruction can be answered with the tools described", where=where, fix="describe them")
    return problems


def _papers(row: dict[str, Any], where: str, form: Form) -> Problem:
    if form == "json":
        fix = "choose --task tools or tools:paper, which read tools from the question"
        raise DataError("this layout has no schemas for the chat template", where=where, fix=fix)
    messages: tuple[Message, ...] = ({"role": "user", "content": text_of(row, "prompt", where)},)
    if row.get("system"):
        messages = ({"role": "system", "content": text_of(row, "system", where)}, *messages)
    calls = _golden(row["answer"] if "answer" in row else row["golden_answer"], where)
    identity = row.get("id", row.get("idx"))
    return _problem(identity, messages, (), calls, where)


def _problem(
    identity: Any, messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]], calls: list[Call], where: str
) -> Problem:
    schemas = schemas_of(tools)
    if not calls:
        raise DataError("no calls are expected", where=where, fix="give at least one, or leave the row out")
    unknown = [call.name for call in calls if schemas and call.name not in schemas]
    if unknown:
        raise DataError(f"the expected call {unknown[0]!r} names no tool of the row", where=where, fix="offer the tool")
    if identity is None:
        identity = content_id(json.dumps(messages))
    expected = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    return Problem(str(identity), messages, {"expected": expected, "ordered": False})


def _asked(problem: Problem, form: Form) -> Problem:
    """Return the problem with its tools as the form requires: written into the last question, or beside it."""
    if form == "json":
        return problem
    last = max(i for i, message in enumerate(problem.messages) if message["role"] == "user")
    question = problem.messages[last]["content"]
    text = f"These tools can be called:\n\n{described(problem.tools)}\n\n{_FORMAT}\n\nRequest: {question}"
    messages = (*problem.messages[:last], Message(role="user", content=text), *problem.messages[last + 1 :])
    private = {**problem.private, "schemas": schemas_of(problem.tools)}
    return replace(problem, messages=messages, private=private, tools=())


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the JSON schema of each tool's arguments, by its name."""
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}


def described(tools: Sequence[Mapping[str, Any]]) -> str:
    """Return tools and their arguments as a text, a line each."""
    return "\n\n".join(_described_tool(tool["function"]) for tool in tools)


def _described_tool(function: Mapping[str, Any]) -> str:
    schema = function["parameters"]
    required = schema.get("required", ())
    lines = [f"{function['name']}: {function['description']}".rstrip(": ")]
    for name, part in schema.get("properties", {}).items():
        facts = [str(part["type"])] if "type" in part else []
        facts += ["required" if name in required else "optional"]
        facts += [f"one of {', '.join(map(str, part['enum']))}"] if "enum" in part else []
        facts += [f"default {json.dumps(part['default'], ensure_ascii=False)}"] if "default" in part else []
        lines.append(f"- {name} ({', '.join(facts)}): {part.get('description', '')}".rstrip(": "))
    return "\n".join(lines)


def tool_from(value: Any, where: str) -> dict[str, Any]:
    """Return a tool as chat templates take it; bare functions are wrapped. Raises DataError that names `where`."""
    inner = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        fix = 'write {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        raise DataError("a tool is not an object with a name", where=where, fix=fix)
    schema = inner.get("parameters", {"type": "object", "properties": {}})
    parts = schema.get("properties", {}) if isinstance(schema, dict) else None
    required = schema.get("required", []) if isinstance(schema, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise DataError("parameters are not the JSON schema of an object", where=where, fix="give it properties")
    if not isinstance(required, list) or not all(name in parts for name in required):
        raise DataError("required names something that is not a property", where=where, fix="list names of properties")
    if not all(isinstance(part.get("enum", []), list) for part in parts.values()):
        raise DataError("an enum is not a list", where=where, fix="list the choices")
    text = inner.get("description", "")
    if not isinstance(text, str):
        raise DataError("a description is not text", where=where, fix="say what the tool does")
    function = {"name": inner["name"], "description": text, "parameters": schema}
    return {"type": "function", "function": function}


def _described(name: str, text: str) -> dict[str, Any]:
    """Return a tool from ToolAlpaca's text: its first part, and `Parameters: {"name": "Required. string. ..."}`."""
    head, _, rest = text.partition("Parameters:")
    try:
        parts, _ = json.JSONDecoder().raw_decode(rest.lstrip())
    except ValueError:
        parts = {}
    properties, required = {}, []
    for key, described in parts.items() if isinstance(parts, dict) else ():
        if match := _DESCRIBED.fullmatch(str(described)):
            word, more = match[2] or "", match[3]
            typed = {"type": word.lower(), "description": more.strip()}
            properties[key] = typed if word.lower() in _TYPES else {"description": f"{word} {more}".strip()}
            required += [key] if match[1] else []
    schema = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": head.strip(), "parameters": schema}}


def _golden(value: Any, where: str) -> list[Call]:
    """Return calls from a list of `Action` and `Action_Input`, each of which may be JSON in a text."""
    value = json_of(value, "the answer", where)
    if not isinstance(value, list):
        raise DataError("the answer is not a list of calls", where=where, fix="write [{Action, Action_Input}, ...]")
    calls = []
    for i, item in enumerate(value):
        here = f"{where}, call {i + 1}"
        if not isinstance(item, dict) or "Action" not in item or "Action_Input" not in item:
            raise DataError("a call has no Action and Action_Input", where=here, fix="give both")
        written = {"name": item["Action"], "arguments": json_of(item["Action_Input"] or "{}", "Action_Input", here)}
        calls.append(_readable(call_from(written), here))
    return calls


def _readable(call: Call, where: str) -> Call:
    if call.fault:
        fix = 'write {"name": ..., "arguments": {...}}'
        raise DataError(f"an expected call cannot be used: {call.fault}", where=where, fix=fix)
    return call
