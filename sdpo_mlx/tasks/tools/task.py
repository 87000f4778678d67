"""Tool use: the model writes the calls that a request needs. Nothing is executed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.data.sources import collect_rows
from sdpo_mlx.tasks.dataset import feedback_mode, load_problems, with_splits
from sdpo_mlx.tasks.tools.formats import problems_from_row, schemas_of
from sdpo_mlx.tasks.tools.grade import FEEDBACK_MODES, Case, all_right, merged_right, report
from sdpo_mlx.tasks.tools.parse import Form, read_calls
from sdpo_mlx.tasks.tools.values import Call
from sdpo_mlx.types import Feedback, FeedbackKind, Problem

if TYPE_CHECKING:
    from sdpo_mlx.models.chat_template import Chat

VARIANTS = ("", "json", "paper")
_CUT_OFF = "The answer was cut off because it was too long; write the calls at once, and nothing else."
_FORMATS = {
    "actions": "each call is a line `Action: NAME` and a line `Action Input: {...}` with its arguments as JSON",
    "json": 'each call is JSON with a name and its arguments, such as {"name": "NAME", "arguments": {...}}',
}


_SAMPLE = Call("get_weather", {"city": "Oslo", "days": 3})
_PROPERTIES = {"city": {"type": "string", "description": "Name."}, "days": {"type": "integer", "description": "Count."}}
_SCHEMA = {"type": "object", "properties": _PROPERTIES, "required": ["city"]}
_SAMPLE_TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Forecast for a city.", "parameters": _SCHEMA},
}
_UNREADABLE = (
    "tools:json cannot read tool calls in the notation of the model's chat template; answers must be JSON calls, "
    "or choose the task tools"
)


class ToolsTask(Task):
    """Call the right tools with the right arguments.

    The variant `` asks for `Action:` lines, `json` for the JSON calls of the model's own chat template, `paper`
    for `Action:` lines graded by the paper's looser rule: the same names, and equal inputs once merged.
    """

    description = "requests to answer with tool calls"
    feedback_modes = FEEDBACK_MODES

    def __init__(self, cfg: TaskConfig | None = None, variant: str = "") -> None:
        """`cfg.data`: rows as in `formats.py`, None for the shipped problems.

        Raises ConfigError for an unknown mode or variant, DataError for bad rows.
        """
        cfg = cfg or TaskConfig(name="tools")
        if variant not in VARIANTS:
            fix = f"choose one of {', '.join(f'tools:{name}' if name else 'tools' for name in VARIANTS)}"
            raise ConfigError(f"no variant {variant!r} of task tools", where="task.name", fix=fix)
        self.name = f"tools:{variant}" if variant else "tools"
        self.feedback = feedback_mode("tools", cfg.feedback, FEEDBACK_MODES)
        self.form: Form = "json" if variant == "json" else "actions"
        self._merged = variant == "paper"
        if cfg.data is None:
            rows = load_problems(cfg, "tools/problems.jsonl", lambda row, where: self._parsed(row, where)[0])
        else:
            found = collect_rows(cfg.data, self._parsed, cfg.on_error).items
            rows = with_splits([*_with_unique_ids([problem for problems in found for problem in problems])])
        # The expected calls are the answer that a self-teacher may be shown.
        self.rows = [replace(problem, reference=self.solution(problem)) for problem in rows]

    def warnings(self, chat: Chat) -> tuple[str, ...]:
        """Warn if a call that the chat template writes is not read as this call."""
        if self.form != "json":
            return ()
        schemas = schemas_of([_SAMPLE_TOOL])
        written = chat.written_calls(_SAMPLE.name, _SAMPLE.arguments, [_SAMPLE_TOOL])
        readable = any(read_calls(text, "json", schemas) == (_SAMPLE,) for text in written)
        return (_UNREADABLE,) if written and not readable else ()

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Return reward 1 for exactly the expected calls, else 0 and what differs."""
        case = case_of(problem)
        calls = read_calls(text, self.form, case.schemas)
        if all_right(calls, case) or (self._merged and merged_right(calls, case)):
            return Feedback(1.0, True, "", "pass")
        if calls:
            explanation = report(calls, case, self.feedback)
        else:
            other: Form = "actions" if self.form == "json" else "json"
            found = "The calls are not written as asked" if read_calls(text, other) else "No tool call was found"
            explanation = f"{found}: {_FORMATS[self.form]}."
        explanation = f"{explanation}\n{_CUT_OFF}" if truncated else explanation
        kind: FeedbackKind = "invalid" if not calls or any(call.fault for call in calls) else "wrong"
        return Feedback(0.0, False, "" if self.feedback == "none" else explanation, kind)

    def solution(self, problem: Problem) -> str:
        """Return the expected calls as an answer writes them, for checks of the task."""
        calls = problem.private["expected"]
        if self.form == "json":
            return "\n".join(f"<tool_call>\n{_written(call)}\n</tool_call>" for call in calls)
        return "\n".join(f"Action: {call['name']}\nAction Input: {_written(call['arguments'])}" for call in calls)

    def _parsed(self, row: dict[str, Any], where: str) -> list[Problem]:
        return problems_from_row(row, where, self.form)


def case_of(problem: Problem) -> Case:
    """Return what a problem expects, as the grader takes it."""
    private = problem.private
    expected = tuple(Call(call["name"], call["arguments"]) for call in private["expected"])
    schemas = schemas_of(problem.tools) if problem.tools else private.get("schemas", {})
    return Case(expected, schemas, private["ordered"])


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _with_unique_ids(problems: Sequence[Problem]) -> Iterator[Problem]:
    """Public files repeat questions and names of tools: number the later ones."""
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.id] += 1
        count = seen[problem.id]
        yield problem if count == 1 else replace(problem, id=f"{problem.id}#{count}")
