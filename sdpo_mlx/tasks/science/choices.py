"""Options and the right one of a multiple-choice row, in the spellings of public sets.

Options: a list of texts (MMLU), each perhaps with its letter (AQuA's `A)21`); a list of objects with text and label; an
object of both lists (ARC) or of letters (MedQA); one text (`A) 2 B) 4`, SAT; MathQA); fields A, B, C, D (C-Eval).
The right one: an index from 0, a letter or label, or the text of one option.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdpo_mlx.core.errors import DataError

LETTERS = "ABCDEFGHIJ"
FIELDS = ("options", "choices")
_GOLDS = ("answer", "answer_index", "answer_idx", "answerkey", "correct", "correct_option", "label")
_INDEXES = ("answer_index", "answer_idx", "label")  # where digits in a text are an index too
_FORM = 'a list of texts, {"A": "...", "B": "..."} or "A) ... B) ..."'
_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:]\s*(.*))?", re.DOTALL)


def options_of(row: Mapping[str, Any], where: str) -> tuple[list[str], list[str]]:
    """Return the texts of a row's options and their labels, by default letters. Raises DataError that names `where`."""
    name = next((name for name in row if name.casefold() in FIELDS), "")
    value = row.get(name) if name else {key: row[key] for key in LETTERS if row.get(key) is not None}
    pairs = _pairs(_literal(value))
    if len(pairs) < 2 or not all(isinstance(text, str | int | float) and str(text).strip() for _, text in pairs):
        what = f"{name or 'A, B, ...'} is missing or not a list of texts"
        raise DataError(what, where=where, fix=f"write {_FORM}")
    return _bare([str(text).strip() for _, text in pairs]), [label for label, _ in pairs]


def right_of(row: Mapping[str, Any], texts: Sequence[str], labels: Sequence[str], where: str) -> int:
    """Return the index of the right option; raises DataError if the row names none, or two."""
    named: dict[str, int] = {}
    for name, value in row.items():
        if name.casefold() in _GOLDS and value is not None:
            found = set(_indexes(value, texts, labels, digits=name.casefold() in _INDEXES))
            if len(found) > 1:
                what = f"{name} {value!r} is the letter of one option and the text of another"
                raise DataError(what, where=where, fix=f"write its index, 0 to {len(texts) - 1}")
            named |= dict.fromkeys([name], found.pop()) if found else {}
    if not named:
        fix = f"write a letter, the option's text, or 0 to {len(texts) - 1}"
        raise DataError("the answer names none of the options", where=where, fix=fix)
    if len(set(named.values())) > 1:
        raise DataError(f"{' and '.join(named)} name different options", where=where, fix="correct one of them")
    return next(iter(named.values()))


def normalised(option: str) -> str:
    """Return an option as it is compared: spaces, a final full stop and the spelling of accents don't count.

    Case does: `Aa` is not `aa`.
    """
    return " ".join(unicodedata.normalize("NFC", option).split()).rstrip(".").strip()


def _literal(value: Any) -> Any:
    """Return a list or object that a table holds as its text."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return ast.literal_eval(value.strip())  # JSON of texts alone is Python too
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
    return value


def _pairs(value: Any) -> list[tuple[str, Any]]:
    """Return label and text of each option."""
    if isinstance(value, str):
        return _lettered(value)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        labels, value = value.get("label"), value["text"]
        if isinstance(labels, list) and len(labels) == len(value):
            return [(str(label).strip(), text) for label, text in zip(labels, value, strict=True)]
    if isinstance(value, Mapping):
        return [(str(label).strip(), text) for label, text in value.items() if text is not None]
    if not isinstance(value, list) or len(value) > 26:
        return []
    if all(isinstance(each, Mapping) for each in value):
        return [(str(each.get("label", chr(65 + i))).strip(), each.get("text")) for i, each in enumerate(value)]
    return [(chr(65 + i), text) for i, text in enumerate(value)]


def _lettered(text: str) -> list[tuple[str, str]]:
    """Return the options of one text that gives each its letter, in order: `A) 2 B) 4`, `a ) 38 , b ) 27`."""
    first = re.match(r"\s*(\(?)([Aa])(\s?[).:])", text)
    if first is None:
        return []
    places: list[re.Match[str]] = []
    for letter in LETTERS:
        head = first[1] + (letter if first[2] == "A" else letter.lower()) + first[3]
        found = re.compile(rf"(?:^|(?<=[\s,;|])){re.escape(head)}\s*").search(text, places[-1].end() if places else 0)
        if found is None:
            break
        places.append(found)
    ends = [*(place.start() for place in places[1:]), len(text)]
    texts = [text[place.end() : end].strip().rstrip(",;|").strip() for place, end in zip(places, ends, strict=False)]
    return list(zip(LETTERS, texts, strict=False))


def _bare(texts: list[str]) -> list[str]:
    """Return options without their letters, if each begins with its own."""
    found = [_LETTER.fullmatch(text) for text in texts]
    if all(match and match[2] and match[1].upper() == chr(65 + i) for i, match in enumerate(found)):
        return [match[2].strip() for match in found if match]
    return texts


def _indexes(value: Any, texts: Sequence[str], labels: Sequence[str], *, digits: bool) -> Iterator[int]:
    """Yield every option that a value names, as its label, its index or its text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return
    said = str(value).strip()
    upper = [label.upper() for label in labels]
    match = _LETTER.fullmatch(said)
    spoken = match and (not match[2] or normalised(match[2]) in map(normalised, texts))
    label = match[1].upper() if match and spoken else said.upper()
    if upper.count(label) == 1:
        yield upper.index(label)
    elif isinstance(value, int) or (digits and said.isdecimal()):
        if 0 <= int(value) < len(texts):
            yield int(value)
        return
    same = [i for i, text in enumerate(texts) if normalised(text) == normalised(said)]
    if len(same) == 1:
        yield same[0]
