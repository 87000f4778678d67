"""Feedback on a program: the first error, otherwise the first timeout, otherwise up to two wrong cases."""

from __future__ import annotations

from collections.abc import Sequence

from sdpo_mlx.tasks.code.compare import show
from sdpo_mlx.tasks.code.harness import decode
from sdpo_mlx.tasks.code.runner import Failure, Test, TestOutcome

FEEDBACK_MODES = ("public", "full", "error_only", "none")
_PART_CHARS, _PART_LINES, _TOTAL_CHARS = 250, 8, 2_000
_BLOCK_HINT = "Wrong Format: the answer needs one complete code block that starts with ```python and ends with ```."
_CUT_OFF = "The answer was cut off because it was too long; answer more briefly."
_HIDDEN = "some hidden tests fail."


def no_program_text(truncated: bool) -> str:
    """For an answer without a program."""
    return f"{_CUT_OFF}\n{_BLOCK_HINT}" if truncated else _BLOCK_HINT


def failure_text(
    tests: Sequence[Test], outcomes: Sequence[TestOutcome], entry: str | None, *, cases: bool, truncated: bool
) -> str:
    """Describe what went wrong in the visible tests; `cases` allows their inputs and expected values.

    If all of these passed, only the failure of hidden tests is mentioned.
    """
    description = _description(tests, outcomes, entry, cases)
    if not description:
        description = f"All visible tests pass, but {_HIDDEN}" if tests else _HIDDEN.capitalize()
    return _clip(f"{description}\n{_CUT_OFF}" if truncated else description, _TOTAL_CHARS, _TOTAL_CHARS)


def _description(tests: Sequence[Test], outcomes: Sequence[TestOutcome], entry: str | None, cases: bool) -> str:
    for test, outcome in zip(tests, outcomes, strict=True):
        if outcome.verdict == "error" and outcome.failure is not None:
            shown = [f"Input: {_clip(_input(test, entry))}", *_printed(outcome)] if cases else []
            return _error_text(outcome.failure, shown)
    for test, outcome in zip(tests, outcomes, strict=True):
        if outcome.verdict == "timeout":
            which = f" ({outcome.output})" if outcome.output else ""
            return f"Time Limit Exceeded{which}" + (f"\nInput: {_clip(_input(test, entry))}" if cases else "")
    wrong = [index for index, outcome in enumerate(outcomes) if outcome.verdict == "wrong"]
    if not cases:
        return "Wrong Answer" if wrong else ""
    shortest = sorted(wrong, key=lambda index: (len(_input(tests[index], entry)), index))[:2]
    return "\n\n".join(_case_text(index, tests[index], outcomes[index], entry) for index in shortest)


def _error_text(failure: Failure, shown: list[str]) -> str:
    """Type, message, the answer's own lines, then the input it happened on and what was printed before."""
    parts = ["Runtime Error", _clip(f"{failure.type}: {failure.message}".rstrip(": "))]
    for number, name, source in failure.lines:
        place = f" in {name}" if name and not name.startswith("<") else ""
        parts.append(f"  line {number}{place}: {source}")
    if not failure.type.endswith(("SyntaxError", "IndentationError", "TabError")):
        parts += shown
    return "\n".join(parts)


def _case_text(index: int, test: Test, outcome: TestOutcome, entry: str | None) -> str:
    lines = [f"Test Case {index + 1}: Wrong Answer", f"Input: {_clip(_input(test, entry))}"]
    lines.append(f"Output: {_clip(outcome.output)}")
    if test["kind"] != "code":
        expected = test["output"] if test["kind"] == "stdin" else show(decode(test["expected"]))
        lines.append(f"Expected: {_clip(expected)}")
    if outcome.difference:
        lines.append(_clip(f"{outcome.difference[0].upper()}{outcome.difference[1:]}."))
    if outcome.changed:
        lines.append(f"The call changed its argument {' and '.join(map(str, outcome.changed))} in place.")
    return "\n".join(lines + _printed(outcome))


def _printed(outcome: TestOutcome) -> list[str]:
    text = outcome.printed.strip()
    return [f"Printed: {_clip(text)}"] if text else []


def _input(test: Test, entry: str | None) -> str:
    """Return the call, the text on standard input, or the assertions."""
    if test["kind"] == "functional":
        return f"{entry}({', '.join(show(decode(argument)) for argument in test['args'])})"
    return str(test["input" if test["kind"] == "stdin" else "code"])


def _clip(text: str, chars: int = _PART_CHARS, lines: int = _PART_LINES) -> str:
    """Return the head, at most so many characters and lines, with `...` where something was cut."""
    text = text.strip("\n")
    kept = "\n".join(text.split("\n")[:lines])[:chars]
    return text if kept == text else kept[: chars - 3] + "..."
