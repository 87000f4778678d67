"""Rows of multiple-choice questions, in the native format and those of public sets.

Ours, one JSON object a line (the right option apart, so that no letter can be wrong):

    {"id": "speed-of-light", "question": "How fast ...?", "right": "3.00e8 m/s", "wrong": ["...", "...", "..."]}

- optional: `domain`, `family`, `level`, `split` ("train", "held_out"), `check` (for people; never shown), `why`
  (shown to no student; the reference answer of `references.py` begins with it).
- public layouts, known by their fields: GPQA (`Correct Answer`), SciKnowEval and ARC (`answerKey`; rows of
  SciKnowEval that are no multiple choice are left out), SciQ (`distractor1`); MMLU, MMLU-Pro, AQuA, SAT and others
  whose `options` or `choices` stand in one field, or in A, B, C, D (`choices.py`). A passage or another part of the
  question is put before it (`data/question_parts.py`).

Options are shuffled by a seed derived from the row's id, equal in every run; the right letter follows. Rows
that give their options an order keep it where an option speaks of others ("both A and B", "all of the above").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.seeding import derive, rng
from sdpo_mlx.tasks.data.fields import content_id, id_of, only_fields, split_of, text_of
from sdpo_mlx.tasks.data.question_parts import OPTIONS, whole_question
from sdpo_mlx.tasks.references import choice_reference, given
from sdpo_mlx.tasks.science.choices import FIELDS, LETTERS, normalised, options_of, right_of
from sdpo_mlx.types import Message, Problem

_ASKED = ("question", "Question", "problem", "Problem", "question_stem", "query", "prompt")
_HINT = "hint"  # ScienceQA's name for what a question refers to
_OWN = frozenset(
    ("id", "question", "right", "wrong", "domain", "family", "level", "split", "why", "check", "reference")
)
_SPEAKS_OF_OTHERS = re.compile(
    r"\b[A-J]\s*(?:,|and|or|&)\s*[A-J]\b|\b(?i:options?|answers?|choices?)\s+[A-J1-9]\b"
    r"|(?i:\b(?:all|none|both|neither|any|some)\s+of\s+(?:the\s+above|these|them)\b|\bthe\s+above\b)"
)


@dataclass(frozen=True)
class Question:
    """One row as every layout gives it; `right` is the index of the right option."""

    id: str
    text: str
    options: tuple[str, ...]
    right: int
    domain: str = ""
    family: str = ""
    level: str = ""
    split: str = ""
    why: str = ""
    lettered: bool = False  # the row itself gives an order, to which its options may refer


def question_from_row(row: dict[str, Any], where: str) -> Question | None:
    """Return the question of a row in any of the layouts; None for a row that is not multiple choice (SciKnowEval).

    Raises DataError that names `where`, for an unknown layout with the expected fields.
    """
    row = _flat(row)
    for field, read in _LAYOUTS.items():
        if field in row:
            question = read(row, where)
            if question is None:
                return None
            count = len(question.options)
            if not 2 <= count <= len(LETTERS):
                raise DataError(f"{count} options are given", where=where, fix=f"give 2 to {len(LETTERS)}")
            if len({normalised(option) for option in question.options}) != count:
                raise DataError("two options are the same", where=where, fix="make each option different")
            split = split_of(row, where)
            why = given(row, "reference", "why", "support", "Explanation") or ""
            return replace(question, split=split, why=why)
    fix = (
        'write {"id": ..., "question": ..., "right": ..., "wrong": [...]}, or rows of GPQA, MMLU-Pro, SciKnowEval, ARC'
    )
    raise DataError("no layout of multiple-choice questions is known by these fields", where=where, fix=fix)


def problem_from_row(row: dict[str, Any], where: str) -> Problem | None:
    """Return the problem of a row, None if it is not multiple choice. Raises DataError that names `where`."""
    question = question_from_row(row, where)
    return problem_from_question(question) if question else None


def problem_from_question(question: Question) -> Problem:
    """Return the prompt with shuffled options; `private` holds options (as lettered), right, domain, level, split."""
    order = shuffled(question)
    options = tuple(question.options[i] for i in order)
    letters = LETTERS[: len(options)]
    right = letters[order.index(question.right)]
    private = {
        "options": options,
        "right": right,
        "domain": question.domain,
        "level": question.level,
        "split": question.split,
    }
    message: Message = {"role": "user", "content": _prompt(question, options)}
    reference = choice_reference(question.why, right)
    return Problem(question.id, (message,), private, question.family or question.domain, reference=reference)


def shuffled(question: Question) -> list[int]:
    """Return the order in which the options are shown: a pure function of the id and the number of options."""
    order = list(range(len(question.options)))
    if question.lettered and any(_SPEAKS_OF_OTHERS.search(option) for option in question.options):
        return order
    return [int(i) for i in rng("science-options", question.id).permutation(len(order))]


def _prompt(question: Question, options: Sequence[str]) -> str:
    """Question, lettered options, form of the answer; the example's letter is random, so that it favours none."""
    letters = LETTERS[: len(options)]
    lines = "\n".join(f"{letter}: {option}" for letter, option in zip(letters, options, strict=True))
    example = letters[derive("science-example", question.id) % len(letters)]
    return (
        f"{question.text}\n\n{lines}\n\n"
        f"Exactly one of the options {letters[0]} to {letters[-1]} is right. Think it through step by step first. "
        "Then write the letter of the right option, and nothing else, between answer tags. "
        f"If you chose {example}, you would end with:\n<answer>{example}</answer>"
    )


# ---- layouts


def _question(
    row: dict[str, Any],
    where: str,
    options: Sequence[str],
    right: int = 0,
    *,
    names: tuple[str, str] = ("id", "question"),
    **labels: Any,
) -> Question:
    """Return a question; its id is the row's own, otherwise one made from what it asks and offers."""
    identity, question = names
    question = question if question in row else next((name for name in _ASKED if name in row), question)
    content = repr((row.get(question), row.get("options"), row.get("choices"), row.get("right")))
    return Question(
        id=id_of(row, identity).strip() or f"science/{content_id(content)}",
        text=_whole(row, question, where),
        options=tuple(options),
        right=right,
        **labels,
    )


def _own(row: dict[str, Any], where: str) -> Question:
    only_fields(row, _OWN, where)
    split_of(row, where)
    options = (_text(row, "right", where), *_texts(row, "wrong", where))
    labels: dict[str, Any] = {name: str(row.get(name, "")) for name in ("domain", "family", "level")}
    return _question(row, where, options, **labels)


def _gpqa(row: dict[str, Any], where: str) -> Question:
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    options = [_text(row, name, where) for name in names]
    domain, family = str(row.get("High-level domain") or ""), str(row.get("Subdomain") or "")
    return _question(row, where, options, names=("Record ID", "Question"), domain=domain, family=family)


def _sciq(row: dict[str, Any], where: str) -> Question:
    names = ("correct_answer", "distractor1", "distractor2", "distractor3")
    return _question(row, where, [_text(row, name, where) for name in names])


def _answer_key(row: dict[str, Any], where: str) -> Question | None:
    """SciKnowEval and ARC: `choices` holds `text` and `label`; ARC's labels may be digits."""
    kind = row.get("type", "mcq")
    if not str(kind).startswith("mcq"):
        return None
    choices = row.get("choices")
    if not isinstance(choices, dict):
        return _choices(row, where)
    texts, labels = _texts(choices, "text", where), _texts(choices, "label", where)
    key = str(row.get("answerKey")).strip()
    if len(texts) != len(labels) or labels.count(key) != 1:
        raise DataError(f"answerKey {key[:20]!r} is not one of the labels", where=where, fix="give each text one label")
    details = row["details"] if isinstance(row.get("details"), dict) else {}
    return _question(
        row,
        where,
        texts,
        labels.index(key),
        domain=str(row.get("domain") or ""),
        family=str(details.get("task") or ""),
        level=str(details.get("level") or ""),
        lettered=True,
    )


def _choices(row: dict[str, Any], where: str) -> Question:
    """MMLU, MMLU-Pro and others whose options stand in one field, or in A, B, C, D; see `choices.py`."""
    texts, labels = options_of(row, where)
    right = right_of(row, texts, labels, where)
    identity, field = ("question_id", "category") if "options" in row else ("id", "subject")
    domain = str(row.get(field) or "")
    return _question(
        row, where, texts, right, names=(identity, "question"), domain=domain, family=domain, lettered=True
    )


# Told apart by the first field that a row has, so the order matters: several layouts have `choices`.
_LAYOUTS: Mapping[str, Callable[[dict[str, Any], str], Question | None]] = {
    "Correct Answer": _gpqa,
    "distractor1": _sciq,
    "answerKey": _answer_key,
    "options": _choices,
    "choices": _choices,
    "right": _own,
    "wrong": _own,
    "B": _choices,
}


# ---- fields


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the object that ARC's and CommonsenseQA's own files put stem and options into."""
    asked, lower = row.get("question"), {name.casefold(): name for name in row}
    if isinstance(asked, dict) and "stem" in asked:
        return {**row, **asked, "question": asked["stem"]}
    if "options" not in lower and "choices" not in lower:
        lower["choices"] = next((lower[name] for name in OPTIONS if name in lower), "choices")
    return {**row, **{name: row[lower[name]] for name in FIELDS if lower.get(name, name) != name}}


def _whole(row: dict[str, Any], name: str, where: str) -> str:
    """Return the question in the field `name` with everything that it refers to."""
    more = {"context": row[_HINT]} if "lecture" in row and row.get(_HINT) else {}
    return whole_question({**more, **row}, _text(row, name, where), where, own=(*OPTIONS, *LETTERS))


def _text(row: dict[str, Any], name: str, where: str) -> str:
    return text_of(row, name, where).strip()


def _texts(row: dict[str, Any], name: str, where: str) -> list[str]:
    values = row.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise DataError(f"{name} is missing or not a list of texts", where=where, fix=f"give every row {name}")
    return [value.strip() for value in values]
