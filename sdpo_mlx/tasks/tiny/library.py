"""The hidden library of the embedded task, and the interpreter that grades answers against it.

Twelve modules over lists of integers. Each has four plausible function names, of which exactly one
exists. An answer is one line an operation, `x = sort.quick(x)`: a line is parsed and looked up,
nothing is ever executed. Every function takes the library, so that pretraining can draw fresh ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType

from sdpo_mlx.types import Feedback, FeedbackKind

Numbers = list[int]
Library = Mapping[str, str]  # module -> the one function name that exists in it

FEEDBACK_MODES = ("full", "no_suggestion", "first_error", "none")
PRIOR = (0.50, 0.28, 0.13, 0.09)  # how likely an untrained model guesses the 1st to 4th name
MAX_LINES = 12
MAX_CHARACTERS = 2_000
MAX_VALUE = 10**15
FORMAT = "Write one line an operation, x = module.name(x), and nothing else."

_LINE = re.compile(r"x ?= ?([a-z]{1,16})\.([a-z]{1,16})\(x\)")
_CLIP = 60


@dataclass(frozen=True)
class Operation:
    """One module: what it does, its candidate names from likeliest down, and which one exists."""

    module: str
    names: tuple[str, str, str, str]
    exists: int
    apply: Callable[[Numbers], Numbers]


def _operation(module: str, names: str, exists: int, apply: Callable[[Numbers], Numbers]) -> Operation:
    first, second, third, fourth = names.split()
    return Operation(module, (first, second, third, fourth), exists, apply)


_TABLE = (
    _operation("sort", "stable quick order arrange", 1, sorted),
    _operation("reverse", "flip invert backwards mirror", 0, lambda x: x[::-1]),
    _operation("dedupe", "unique distinct uniq once", 0, lambda x: list(dict.fromkeys(x))),
    _operation("behead", "tail rest drop skip", 1, lambda x: x[1:]),
    _operation("curtail", "init front chop trim", 0, lambda x: x[:-1]),
    _operation("double", "twice times scale grow", 0, lambda x: [2 * v for v in x]),
    _operation("negate", "minus opposite neg sign", 1, lambda x: [-v for v in x]),
    _operation("square", "power squared pow area", 0, lambda x: [v * v for v in x]),
    _operation("bump", "inc succ add next", 1, lambda x: [v + 1 for v in x]),
    _operation("evens", "keep filter select pick", 0, lambda x: [v for v in x if v % 2 == 0]),
    _operation("rotate", "cycle roll shift spin", 2, lambda x: x[1:] + x[:1]),
    _operation("cumsum", "running scan accumulate prefix", 0, lambda x: list(accumulate(x))),
)
OPERATIONS: Mapping[str, Operation] = MappingProxyType({op.module: op for op in _TABLE})
LIBRARY: Library = MappingProxyType({op.module: op.names[op.exists] for op in _TABLE})


@dataclass(frozen=True)
class Line:
    """One line of an answer as read: its number, its text to show, and what it calls."""

    number: int
    text: str
    call: tuple[str, str] | None


def solution(operations: Sequence[str], library: Library = LIBRARY) -> str:
    """Return the straightforward right answer."""
    return "\n".join(f"x = {module}.{library[module]}(x)" for module in operations)


def apply(operations: Sequence[str], numbers: Sequence[int]) -> Numbers:
    """Return what the operations make of a list, one after the other.

    Raises:
        OverflowError: a value left the range of the interpreter.
    """
    x = list(numbers)
    for module in operations:
        x = OPERATIONS[module].apply(x)
        if any(abs(v) > MAX_VALUE for v in x):
            raise OverflowError("a number became too large")
    return x


def prior(operations: Sequence[str]) -> float:
    """Return how likely a model that knows only the prior of the names answers right."""
    chance = 1.0
    for module in operations:
        chance *= PRIOR[OPERATIONS[module].exists]
    return chance


def parse(text: str) -> list[Line]:
    """Return the lines of an answer, blank ones left out; `text` is short."""
    return [_parse_line(n, raw.strip()) for n, raw in enumerate(text.strip().split("\n"), 1) if raw.strip()]


def _parse_line(number: int, raw: str) -> Line:
    match = _LINE.fullmatch(raw)
    if match is None:
        # repr: what cannot be read is shown without control characters or lone surrogates.
        return Line(number, repr(raw[:_CLIP]), None)
    module, name = match.groups()
    return Line(number, f"x = {module}.{name}(x)", (module, name))


def complaint(line: Line, library: Library, suggest: bool = True) -> str:
    """Return what is wrong with one line, without its number; empty if it is right."""
    if line.call is None:
        return f"SyntaxError: {line.text}: expected x = module.name(x)"
    module, name = line.call
    if module not in library:
        return f"NameError: {line.text}: name '{module}' is not defined"
    if library[module] == name:
        return ""
    hint = f" Did you mean: {module}.{library[module]}?" if suggest else ""
    return f"AttributeError: {line.text}: module '{module}' has no attribute '{name}'.{hint}"


def mismatch(called: Sequence[str], operations: Sequence[str], inputs: Sequence[Sequence[int]]) -> str:
    """Return the first input on which the called modules do not do what was asked; empty if all agree."""
    for numbers in inputs:
        expected = apply(operations, numbers)
        try:
            returned = str(apply(called, numbers))
        except OverflowError as problem:
            returned = f"OverflowError: {problem}"
        if returned != str(expected):
            return f"f({list(numbers)}) returned {returned}, expected {expected}"
    return ""


def judge(
    operations: Sequence[str],
    inputs: Sequence[Sequence[int]],
    text: str,
    *,
    library: Library = LIBRARY,
    mode: str = FEEDBACK_MODES[0],
) -> Feedback:
    """Grade one answer against a library; the text of the feedback depends on `mode`, the grade never does."""
    refusal = _refuse(text)
    if refusal:
        return _failure("invalid", refusal, mode)
    lines = parse(text)
    complaints = [complaint(line, library, mode != "no_suggestion") for line in lines]
    wrong = "" if any(complaints) else mismatch([line.call[0] for line in lines if line.call], operations, inputs)
    if not wrong and not any(complaints):
        return Feedback(1.0, True, "", "pass")
    kind: FeedbackKind = "wrong" if wrong else "error" if all(line.call for line in lines) else "invalid"
    return _failure(kind, _report(lines, complaints, wrong, mode), mode)


def cut_off(mode: str) -> Feedback:
    """Return the grade on an answer that ran out of tokens."""
    return _failure("invalid", f"The answer was cut off at the token limit. {FORMAT}", mode)


def _refuse(text: str) -> str:
    """Return why an answer is not read at all; empty if it is."""
    if len(text) > MAX_CHARACTERS:
        return f"The answer is too long: over {MAX_CHARACTERS} characters. {FORMAT}"
    if not text.strip():
        return f"The answer is empty. {FORMAT}"
    if len(parse(text)) > MAX_LINES:
        return f"The answer is too long: over {MAX_LINES} lines. {FORMAT}"
    return ""


def _report(lines: Sequence[Line], complaints: Sequence[str], wrong: str, mode: str) -> str:
    rows = [f"line {line.number}: {bad or 'ok: ' + line.text}" for line, bad in zip(lines, complaints, strict=True)]
    if mode == "first_error":
        rows = [row for row, bad in zip(rows, complaints, strict=True) if bad][:1]
    return "\n".join([*rows, *([wrong] if wrong else [])])


def _failure(kind: FeedbackKind, text: str, mode: str) -> Feedback:
    return Feedback(0.0, False, "" if mode == "none" else text, kind)
