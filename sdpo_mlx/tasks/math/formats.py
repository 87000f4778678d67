"""Rows of mathematical problems: the native format and public ones, detected by their fields.

    ours       {"question", "answer"} and, as wanted, "id", "level" ("easy", "medium", "hard"), "family", "split"
    GSM8K      {"question", "answer"}, the answer a solution that ends with `#### 42`
    MATH       {"problem", "solution", "level": "Level 3", "type"}, the solution's last \\boxed{...} is the answer;
               MATH-500 adds "answer", "subject", "unique_id"
    AIME       {"problem" or "Problem", "answer" or "Answer", ...}
    DeepMath   {"question", "final_answer", "difficulty": 1 to 10, "topic", "r1_solution_1", ...}
    SVAMP      {"Body", "Question", "Answer": 145.0, ...}, also in small letters: ASDiv, whose golds are `9 (apples)`
    verl       {"prompt": [messages], "reward_model": {"ground_truth"}, "data_source", "extra_info": {"index", "split"}}

`reference` or a worked solution is what a self-teacher may be shown (`references.py`). Fields that carry a part of the
question are put before it (`data/question_parts.py`), and rows with options are refused: they are for the task science.
Other fields are left alone. If a row has no id, its line number is used.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.tasks.data.fields import id_of, messages_of, split_of, text_of
from sdpo_mlx.tasks.data.question_parts import whole_chat, whole_question
from sdpo_mlx.tasks.math.extract import last_boxed, tidied
from sdpo_mlx.tasks.references import math_reference
from sdpo_mlx.types import Message, Problem

LEVELS = ("easy", "medium", "hard")
FORMAT_LINE = "End with the final answer inside \\boxed{}, for example \\boxed{42}."
_LAYOUTS = (
    "question and answer (ours, GSM8K), problem and solution (MATH), problem and answer (AIME), "
    "Body, Question and Answer (SVAMP, ASDiv), question and final_answer (DeepMath), or prompt and reward_model (verl)"
)
_GSM8K_MARK = "####"
_FAMILIES = ("family", "type", "Type", "solution_type", "subject", "topic", "data_source")
# In rows that have lost their layout's other fields; `7 (mod 9)` and `101 (base two)` count nothing.
_COUNTED_BY_WORDS = re.compile(r"\s*(-?\d[\d.,/ ]*?)\s+\((?!mod\b|base\b)[^\W\d_]{2,}(?:[ -][^\W\d_]+)*\)\s*")
_COUNTED = re.compile(r"\s*([^()]*\d[^()]*?)\s*\([^()]*\)\s*")


def problem_from_row(row: dict[str, Any], where: str) -> Problem:
    """One checked problem; `private` holds answer, level (None when unknown) and split ("" if unknown).

    Raises DataError that names `where`.
    """
    question, answer = _question(row, where), _answer(row, where)
    extra = row.get("extra_info")
    extra = extra if isinstance(extra, dict) else {}
    split = split_of(row if "split" in row else extra, where)
    private = {"answer": answer, "level": _level(row, where), "split": split}
    family = next((str(row[name]) for name in _FAMILIES if row.get(name)), "")
    reference = math_reference(row, answer, _GSM8K_MARK)
    return Problem(_name(row, extra, where), question, private, family, reference=reference)


def _question(row: dict[str, Any], where: str) -> tuple[Message, ...]:
    if "prompt" in row and "reward_model" in row:
        return _messages(row, where)
    name = next((name for name in ("question", "problem", "Problem", "Question") if name in row), None)
    if name is None:
        raise DataError("the row has no known layout", where=where, fix=f"give it the fields {_LAYOUTS}")
    question = whole_question(row, text_of(row, name, where), where)
    return ({"role": "user", "content": f"{question}\n\n{FORMAT_LINE}"},)


def _messages(row: dict[str, Any], where: str) -> tuple[Message, ...]:
    """The messages as they are: FORMAT_LINE is added if they do not state the answer's format themselves."""
    messages = list(whole_chat(row, messages_of(row["prompt"], where, name="prompt"), where))
    if not any(mark in message["content"] for message in messages for mark in ("boxed", _GSM8K_MARK)):
        messages[-1] = {"role": "user", "content": f"{messages[-1]['content'].strip()}\n\n{FORMAT_LINE}"}
    return tuple(messages)


def _answer(row: dict[str, Any], where: str) -> str:
    value: Any = None
    if isinstance(row.get("reward_model"), dict):
        value = row["reward_model"].get("ground_truth")
    else:
        value = next((row[name] for name in ("final_answer", "answer", "Answer") if name in row), None)
        if value is None and isinstance(row.get("solution"), str):
            value = last_boxed(row["solution"])
            if value is None:
                raise DataError(
                    "solution has no \\boxed{...}", where=where, fix="box its answer, or add a field answer"
                )
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        fix = f"the layouts are {_LAYOUTS}"
        raise DataError("the right answer is missing or neither text nor a number", where=where, fix=fix)
    text = _number(value) if isinstance(value, int | float) else value
    text = _uncounted(text, _COUNTED if any(name.casefold() == "body" for name in row) else _COUNTED_BY_WORDS)
    answer = tidied(text.rpartition(_GSM8K_MARK)[2])
    if not answer or len(answer) > 1_000:
        raise DataError("the right answer is empty or too long", where=where, fix="write only the final value")
    return answer


def _number(value: float) -> str:
    """Return a JSON number as it is written in a text: `145`, not `145.0` or `1.45e+02`."""
    text = format(Decimal(str(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _uncounted(answer: str, form: re.Pattern[str]) -> str:
    """Return ASDiv's `9 (apples)` without what is counted; several, as `6 (red); 8 (blue)`, become a list."""
    found = [form.fullmatch(part) for part in answer.split(";")]
    return ", ".join(part[1].strip() for part in found if part) if all(found) else answer


def _level(row: dict[str, Any], where: str) -> str | None:
    """`easy`, `medium` or `hard`; levels 1 to 5 (MATH) and difficulties 1 to 10 (DeepMath) are put in three parts."""
    level = row.get("level")
    if isinstance(level, str) and level.startswith("Level "):
        level = int(level[6:]) if level[6:].isdecimal() else None  # MATH has rows with `Level ?`
    if isinstance(level, bool) or (isinstance(level, str) and level not in LEVELS):
        fix = f"write {', '.join(LEVELS)}, 1 to 5, or `Level 1` to `Level 5`"
        raise DataError("level is not known", where=where, fix=fix)
    if isinstance(level, str):
        return level
    if isinstance(level, int | float):
        return LEVELS[0 if level < 3 else 1 if level < 4 else 2]
    difficulty = row.get("difficulty")
    if isinstance(difficulty, int | float) and not isinstance(difficulty, bool):
        return LEVELS[0 if difficulty < 4 else 1 if difficulty < 7 else 2]
    return None


def _name(row: dict[str, Any], extra: dict[str, Any], where: str) -> str:
    if name := id_of(row, "id", "ID", "unique_id"):
        return name
    index = extra.get("index")
    if isinstance(index, int | str) and not isinstance(index, bool):
        return f"{row.get('data_source', 'row')}-{extra.get('split', 'row')}-{index}"
    return f"row-{where.rpartition(':')[2]}"
