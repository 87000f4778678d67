"""Checks of free text: each kind validates its value, tests an answer, and describes a failure.

    {"kind": "max_words", "value": 30, "feedback": "Keep it to 30 words.", "weight": 2}

- `feedback`: the sentence for an answer that fails; without one the check describes what it found and
  expected, its value included. `weight`: a positive number, 1 by default. `ignore_case: true`: for kinds that
  compare text.
- letters are compared in NFC: an accent of its own is the accented letter.
- kinds: see `KINDS`. Patterns are those of the package `regex`, searched anywhere in the answer (`^` and `$` are the
  answer's ends; `(?m)` makes them the lines'); a search that runs too long is a grader error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any
from unicodedata import normalize

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.text import shorten_middle
from sdpo_mlx.tasks.rubric import json_schema
from sdpo_mlx.tasks.rubric.sentences import count_sentences

_FIELDS = ("kind", "value", "feedback", "weight", "ignore_case")
_QUOTED = 80
_BULLET = re.compile(r"[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S")
Judge = Callable[[Any, str], str]
LANGUAGES: Mapping[str, str] = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "nl": "Dutch",
    "sv": "Swedish",
    "pl": "Polish",
    "ru": "Russian",
    "uk": "Ukrainian",
    "el": "Greek",
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
    "ar": "Arabic",
    "he": "Hebrew",
    "hi": "Hindi",
    "th": "Thai",
}
# Measured on 91 sentences of two to six words: the lowest confidence of a right answer is 0.45, while one word
# of no language in particular ("42", "Paris", "qwrt zxcv") reaches at most 0.27.
LEAST_CONFIDENCE = 0.4
LANGUAGE_SAMPLE = 20_000  # characters that are enough to recognise a language


@dataclass(frozen=True)
class Kind:
    """One kind of check.

    `fault(value)` describes what is wrong with a value, "" if nothing is; `judge(value, answer)` explains in a sentence
    why an answer fails, "" if it passes; `wanted(value)` describes the requirement in a few words.
    """

    fault: Callable[[Any], str]
    judge: Judge
    requirement: Callable[[Any], str]
    folds: bool = False  # may `ignore_case` be given


@dataclass(frozen=True)
class Check:
    """One validated check of a row."""

    kind: str
    value: Any
    weight: float = 1.0
    feedback: str = ""
    ignore_case: bool = False

    def failure(self, answer: str) -> str:
        """Return why the answer fails, "" if it passes. Raises RuntimeError if a pattern runs away."""
        value, answer = self.value, normalize("NFC", answer)
        if self.ignore_case:
            value, answer = _folded(value), _folded(answer)
        reason = KINDS[self.kind].judge(value, answer)
        return reason and (self.feedback or reason)

    @property
    def requirement(self) -> str:
        """The requirement in a few words."""
        return KINDS[self.kind].requirement(self.value)


def check_from_row(row: Any, where: str) -> Check:
    """One check of a row. Raises DataError that names `where` ("file:line, check 2")."""
    if not isinstance(row, dict):
        raise DataError("a check is not an object", where=where, fix='write {"kind": "max_words", "value": 30}')
    name = row.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        near = get_close_matches(str(name), KINDS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"the kinds are {', '.join(KINDS)}"
        raise DataError(f"there is no kind of check {str(name)[:40]!r}", where=where, fix=fix)
    _check_fields(row, KINDS[name], where)
    try:
        value = _composed(row.get("value"))
    except RecursionError:
        raise DataError(f"{name}: the value is nested too deep", where=where, fix="write it flatter") from None
    fault = KINDS[name].fault(value)
    if fault:
        raise DataError(f"{name}: {fault}", where=where)
    return Check(
        kind=name,
        value=value,
        weight=float(row.get("weight", 1.0)),
        feedback=str(row.get("feedback", "")).strip(),
        ignore_case=bool(row.get("ignore_case", False)),
    )


def _composed(value: Any) -> Any:
    """Return a value with every text in NFC, as answers are compared."""
    if isinstance(value, str):
        return normalize("NFC", value)
    if isinstance(value, list):
        return [_composed(item) for item in value]
    return {_composed(key): _composed(item) for key, item in value.items()} if isinstance(value, dict) else value


def _folded(text: str) -> str:
    """Return a text without case, for a canonical caseless match (Unicode, definition D145)."""
    return normalize("NFC", normalize("NFD", text).casefold())


def _check_fields(row: Mapping[str, Any], kind: Kind, where: str) -> None:
    unknown = sorted(map(str, set(row) - set(_FIELDS)))
    if unknown:
        near = get_close_matches(unknown[0], _FIELDS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(_FIELDS)}"
        raise DataError(f"a check has the unknown field {unknown[0][:40]!r}", where=where, fix=fix)
    weight = row.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1e6:
        raise DataError("weight is not a positive number", where=where, fix="write for example 2")
    if not isinstance(row.get("feedback", ""), str):
        raise DataError("feedback is not text", where=where, fix="write a sentence, or leave it out")
    if not isinstance(row.get("ignore_case", False), bool):
        raise DataError("ignore_case is neither true nor false", where=where, fix="write one of the two")
    if row.get("ignore_case") and not kind.folds:
        folding = ", ".join(name for name, one in KINDS.items() if one.folds)
        raise DataError(
            "ignore_case means nothing here", where=where, fix=f"it is for {folding}; in a regex write (?i)"
        )


# ---- what values may be


def _must(fits: Callable[[Any], bool], requirement: str) -> Callable[[Any], str]:
    return lambda value: "" if fits(value) else f"the value must be {requirement}"


_text_fault = _must(lambda value: isinstance(value, str) and bool(value.strip()), "text that isn't empty")
_count_fault = _must(lambda value: type(value) is int and 0 <= value <= 10**9, "a whole number from 0")
_json_fault = _must(lambda value: value in (None, "object", "array"), '"object", "array", or left out')
_keys_fault = _must(
    lambda value: isinstance(value, list) and bool(value) and all(isinstance(key, str) and key for key in value),
    "a list of field names",
)
_language_fault = _must(
    lambda value: isinstance(value, str) and value in LANGUAGES, f"a code of a language: {', '.join(LANGUAGES)}"
)


def _regex_fault(value: Any) -> str:
    try:
        return _text_fault(value) or json_schema.pattern_fault(value)
    except RecursionError:
        return f"the pattern {value[:60]!r} is nested too deep"


# ---- results: "" when passed, else a sentence


def _json_judge(value: str | None, answer: str) -> str:
    try:
        document = json_schema.json_in(answer)
    except json_schema.NotJsonError as error:
        return f"The answer is not JSON: {error}."
    kind = "object" if isinstance(document, dict) else "array" if isinstance(document, list) else "single value"
    return "" if value in (None, kind) else f"The JSON must be of the kind {value}, and it is: {kind}."


def _keys_judge(value: list[str], answer: str) -> str:
    if reason := _json_judge("object", answer):
        return reason
    document = json_schema.json_in(answer)
    missing = ", ".join(json.dumps(key, ensure_ascii=False) for key in value if key not in document)
    extra = ", ".join(json.dumps(key, ensure_ascii=False) for key in document if key not in value)
    parts = [f"fields are missing: {missing}"] if missing else []
    parts += [f"fields are not asked for: {shorten_middle(extra, _QUOTED)}"] if extra else []
    return f"In the JSON object {'; '.join(parts)}." if parts else ""


def _schema_judge(value: Mapping[str, Any], answer: str) -> str:
    if reason := _json_judge(None, answer):
        return reason
    faults = json_schema.schema_faults(value, json_schema.json_in(answer))
    return f"The JSON does not fit its schema: {'; '.join(faults)}." if faults else ""


def _language_judge(value: str, answer: str) -> str:
    found = language_of(answer)
    guess = f"it reads as {LANGUAGES[found]}" if found else "its language cannot be told"
    return "" if found == value else f"The answer must be in {LANGUAGES[value]}, and {guess}."


@cache
def _language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # 0.5 s and 100 MB, only when a row needs it

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=LEAST_CONFIDENCE)
    identifier.set_languages(list(LANGUAGES))
    return identifier


def language_of(text: str) -> str | None:
    """Return the code of the text's language among `LANGUAGES`, None if it is not clear."""
    found, _ = _language_identifier().classify(text[:LANGUAGE_SAMPLE])
    return found if found in LANGUAGES else None


def _count(noun: str, count: Callable[[str], int], least: bool, most: bool) -> Kind:
    """Return a kind that bounds a number from below, from above, or fixes it."""
    bound = "exactly" if least and most else "at least" if least else "at most"

    def judge(value: int, answer: str) -> str:
        found = count(answer)
        fine = (not least or found >= value) and (not most or found <= value)
        return "" if fine else f"The answer has {_number(found, noun)}; it must have {bound} {value}."

    return Kind(_count_fault, judge, lambda value: f"{bound} {_number(value, noun)}")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun if count == 1 else noun + 's'}"


def _pattern(allowed: bool, requirement: str, reason: Callable[[str], str]) -> Kind:
    """Return a kind whose pattern an answer must match, or must not."""

    def judge(value: str, answer: str) -> str:
        return "" if json_schema.searched(value, answer) == allowed else reason(value)

    return Kind(_regex_fault, judge, lambda value: f"{requirement} the pattern {value}")


def _text(passes: Callable[[str, str], bool], requirement: str, rule: Callable[[str, str], str]) -> Kind:
    """Return a kind for `passes(answer, value)`; an answer that fails must do what `rule(value, answer)` describes."""

    def judge(value: str, answer: str) -> str:
        return "" if passes(answer, value) else f"The answer must {rule(value, answer)}."

    return Kind(_text_fault, judge, lambda value: f"{requirement} {_quoted(value)}", folds=True)


def count_words(text: str) -> int:
    """Return words: runs of non-blank characters that hold a letter or a digit."""
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def count_lines(text: str) -> int:
    """Return lines that aren't blank."""
    return sum(bool(line.strip()) for line in text.split("\n"))


def count_bullets(text: str) -> int:
    """Return lines that start with a dash, star, plus, bullet or number, then a space and text."""
    return sum(_BULLET.match(line) is not None for line in text.split("\n"))


def _quoted(text: str) -> str:
    return json.dumps(shorten_middle(text, _QUOTED), ensure_ascii=False)


KINDS: Mapping[str, Kind] = {
    "regex": _pattern(True, "matches", lambda value: f"Nothing in the answer matches the pattern {value}"),
    "not_regex": _pattern(
        False,
        "does not match",
        lambda value: f"Something in the answer matches the pattern {value}, and nothing may.",
    ),
    "contains": _text(str.__contains__, "contains", lambda value, _: f"contain {_quoted(value)}"),
    "not_contains": _text(
        lambda answer, value: value not in answer, "does not contain", lambda value, _: f"not contain {_quoted(value)}"
    ),
    "starts_with": _text(
        str.startswith,
        "starts with",
        lambda value, answer: f"start with {_quoted(value)}, not with {_quoted(answer[: len(value) + 10])}",
    ),
    "ends_with": _text(
        str.endswith,
        "ends with",
        lambda value, answer: f"end with {_quoted(value)}, not with {_quoted(answer[-(len(value) + 10) :])}",
    ),
    "equals": _text(
        lambda answer, value: answer == value.strip(),
        "is",
        lambda value, _: f"be {_quoted(value.strip())} and nothing else",
    ),
    "json": Kind(_json_fault, _json_judge, lambda value: f"JSON {value}" if value else "JSON"),
    "json_keys": Kind(_keys_fault, _keys_judge, lambda value: f"JSON object with the fields {', '.join(value)}"),
    "json_schema": Kind(json_schema.check_schema, _schema_judge, lambda _: "JSON that fits its schema"),
    "language": Kind(_language_fault, _language_judge, lambda value: f"in {LANGUAGES[value]}"),
    "words": _count("word", count_words, True, True),
    "min_words": _count("word", count_words, True, False),
    "max_words": _count("word", count_words, False, True),
    "min_chars": _count("character", len, True, False),
    "max_chars": _count("character", len, False, True),
    "lines": _count("line", count_lines, True, True),
    "min_lines": _count("line", count_lines, True, False),
    "max_lines": _count("line", count_lines, False, True),
    "sentences": _count("sentence", count_sentences, True, True),
    "max_sentences": _count("sentence", count_sentences, False, True),
    "bullets": _count("list item", count_bullets, True, True),
    "min_bullets": _count("list item", count_bullets, True, False),
    "max_bullets": _count("list item", count_bullets, False, True),
}
