"""The parts of an answer: names, lists, brackets, units and words around what math-verify will compare.

Nothing is computed here. A value keeps its LaTeX; what it is worth is asked in `values.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sdpo_mlx.tasks.math import leaves
from sdpo_mlx.tasks.math.answer import Answer, Kind, bare, letters, split, tight, without_commands
from sdpo_mlx.tasks.math.normalize import DEEPEST, UnreadableError, closing

_MOST_PARTS = 60
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])")
_SEPARATOR = re.compile(
    r"\s*(?:[,;](?:\s*\\text\{(?:and|or)\})?|\\text\{(?:and|or)\}|\\l(?:or|and)(?![A-Za-z])|\\quad|\\\\|&&|\|\|)\s*"
)
_FOR_ALL = r"(?:\\text\{(?:where|with|for)\}|\\forall)?\s*(?:\\text\{(?:all|some|any|every|each|integers?)\}\s*){0,2}"
_IS_INTEGER = r"\\in\s*\\mathbb\s?\{?[ZNQR]\}?(?:\^\{[+*]\})?|\\text\{is\}\s*(?:\\text\{an?\}|a)\s*\\text\{integer\}"
_CONDITIONS = (
    re.compile(rf"(?:[,;:]|\\quad|\()?\s*{_FOR_ALL}(?P<letter>[A-Za-z])\s*(?:{_IS_INTEGER})\)?$"),
    re.compile(r"(?:[,;:]|\\quad|\s)\s*\\text\{(?:where|with|for)\}.{1,80}\\text\{integers?\}\s*[a-z]?$"),
)
_RELATION = re.compile(
    r"<=|>=|!=|\\(?:le|ge|ne|in|notin|approx|equiv|subset|subseteq|supset|supseteq|sim|cong)(?![A-Za-z])|[<>=]"
)
_ORDER = ("<", ">", "<=", ">=", "\\le", "\\ge", "!=", "\\ne", "\\in", "\\notin")
_SET_SIGN = re.compile(r"\\(?:cup|cap|setminus)(?![A-Za-z])|(?<=[)\]}])\s*U\s*(?=[(\[])")
_NAME = re.compile(
    r"\\?[A-Za-z]+'*(?:_\{[^{}]*\})?(?:\^\{-1\})?'*(?:\([^()=]*(?:=[^()=]*)?\))?"  # x, f(x), a_n, P(X=3), f^{-1}(x)
    r"|(?:m\s?)?(?:\\(?:angle|triangle|text\{[^{}]*\}|vec\{[^{}]*\}|overline\{[^{}]*\})\s*)+[A-Z]*(?:\([^()]*\))?"
    r"|[|](?:[A-Z]{1,3}|\\vec\{[^{}]*\})[|]|\([a-z](?:,\s?[a-z]){1,4}\)"  # |AB|, (x,y)
    r"|\\frac\{(?:d|\\partial)[^{}]{0,9}\}\{(?:d|\\partial)[^{}]{0,9}\}\s?[a-zA-Z]?(?:\([^()]*\))?"
    r"|(?:[A-Za-z]\s)?(?:\\text\{[^{}]*\}\s?)+(?:[A-Za-z]|\([^()]*\))?"  # Total area
)
_UNKNOWN = re.compile(r"(?<!\\)[A-Za-z](?![A-Za-z]*\{)")
_APPLIED = re.compile(r"\\(?:sin|cos|tan|log|ln|exp|max|min|gcd)\(.*")
_MATRIX = re.compile(
    r"^[\[(|]?\s*\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\}\s*[\])|]?$", re.DOTALL
)
_LINES = r"(?:cases|aligned|array|gathered|align\*?)"
_CASES = re.compile(rf"^(?:\\\{{\s*)?\\begin\{{{_LINES}\}}(?:\{{[lcr| ]*\}})?(.*)\\end\{{{_LINES}\}}$", re.DOTALL)
_COMMA = re.compile("[,;]")
_LABEL = re.compile(
    r"\\text\{(?:exactly|only|precisely)\}\s*|(?:\\text\{[^{}]*\}\s*)+(?::|(?<=\\text\{is\})|(?<=\\text\{is\}\s))\s*(?=[-+0-9\\$(])"
)
_REVERSED = re.compile(r"([\[\](])([^\[\]()]*[,;][^\[\]()]*)([\[\])])")


def read(text: str, joined: bool = True, depth: int = 0) -> Answer:
    """Return the parts of a normalised text; `joined`: `1,234` is a number. Raises UnreadableError."""
    text = text.strip()
    if not text or depth > DEEPEST:
        raise UnreadableError("nothing is left to read")
    if joined and depth == 0:
        text = _join_thousands(text)
    if depth == 0 and (label := _LABEL.match(text)) and not leaves.telling(label[0]):
        text = text[label.end() :]
    if cases := _CASES.match(text):
        text = cases[1].replace("&", " ").strip().removesuffix("\\\\")
    text = _REVERSED.sub(_turned, bare(_without_condition(text)))
    answer = leaves.congruence(text) or leaves.compound(text)
    if answer is not None:
        return answer
    for reader in (_listed, _related, _set_of, _matrix, _bracketed, _both_signs):
        answer = leaves.word(text) if reader is _bracketed else None
        answer = answer or reader(text, depth)
        if answer is not None:
            return answer
    return leaves.ratio(text) or leaves.based(text) or leaves.value(text)


def ambiguous(text: str) -> bool:
    """Whether a comma between digits may part two numbers as well."""
    return any(not re.search(r",0", found[0]) for found in _THOUSANDS.finditer(text))


def _join_thousands(text: str) -> str:
    level, joined, end = 0, [], 0
    for found in _THOUSANDS.finditer(text):
        between = text[end : found.start()]
        level += sum(between.count(sign) for sign in "([") + between.count("\\{")
        level -= sum(between.count(sign) for sign in ")]") + between.count("\\}")
        joined += [between, found[0] if level else found[0].replace(",", "")]
        end = found.end()
    return "".join(joined) + text[end:]


def bound_variable(text: str) -> str:
    """Return the letter that a condition at the end lets run over a set (`k\\pi, k \\in \\mathbb{Z}`); else blank."""
    found = _CONDITIONS[0].search(text)
    return found["letter"] if found else ""


def _without_condition(text: str) -> str:
    for pattern in _CONDITIONS:
        found = pattern.search(text)
        if found and found.start() and text[found.start()] in ",;:\\( ":
            return text[: found.start()].strip()
    return text


def _turned(found: re.Match[str]) -> str:
    """`]0, 5[` is `(0, 5)`."""
    return {"]": "(", "[": "[", "(": "("}[found[1]] + found[2] + {"[": ")", "]": "]", ")": ")"}[found[3]]


def _listed(text: str, depth: int) -> Answer | None:
    pieces = [(sign, piece) for sign, piece in split(text, _SEPARATOR) if piece]
    if len(pieces) < 2 or (depth == 0 and leaves.is_sentence(text)):
        return None
    if len(pieces) > _MOST_PARTS:
        raise UnreadableError("the answer has too many parts")
    signs = {"or" if "or" in sign else "and" if "and" in sign else "," for sign, _ in pieces[1:]}
    if all(_is_inequality(piece) for _, piece in pieces) and len(set(letters(text))) == 1:
        return Answer("solutions", text)
    mark = "or" if signs <= {"or", ","} and "or" in signs else "and" if signs == {"and"} else ","
    if mark != "," and any(sign.startswith("\\l") for sign, _ in pieces):
        mark = {"or": "∨", "and": "∧"}[mark]
    return _list([read(piece, False, depth + 1) for _, piece in pieces], mark)


def _is_inequality(text: str) -> bool:
    signs = [sign for sign, _ in split(text, _RELATION)][1:]
    return bool(signs) and all(sign in _ORDER for sign in signs)


def _list(parts: Sequence[Answer], mark: str) -> Answer:
    """`x = 2 or x = 3` and `\\pm 2, 5` hold what their parts hold; the name of `n = 4, 5` is that of the whole."""
    flat = [inner for part in parts for inner in (part.parts if part.kind == "list" else (part,))]
    name = "" if parts[0].kind == "group" or any(part.name for part in parts[1:]) else parts[0].name
    return Answer("list", parts=tuple(replace(part, name="") if name else part for part in flat), mark=mark, name=name)


def _related(text: str, depth: int) -> Answer | None:
    pieces = split(text, _RELATION)
    signs = [sign for sign, _ in pieces[1:]]
    if not signs:
        return None
    sides = [side for _, side in pieces]
    if set(signs) <= {"=", "\\approx"} and "\\approx" not in signs[:-1]:
        return _equation(sides, signs[-1] == "\\approx", depth)
    if signs == ["\\in"] and _is_name(sides[0]):
        return _member(sides[1], depth)
    if all(sign in _ORDER for sign in signs) and all(sides):
        return Answer("solutions", text)
    return Answer("word", tight(text), mark="relation")


def _member(text: str, depth: int) -> Answer:
    held = read(text, False, depth + 1)
    return replace(held, kind="solutions", text=text) if held.kind == "group" and len(held.parts) == 2 else held


def _equation(sides: list[str], rough: bool, depth: int) -> Answer:
    """Names are left out, a rounded value after an exact one too; the last side is the value, all numbers are kept."""
    if rough and sides[-2] and not _is_name(sides[-2]):
        sides, rough = sides[:-1], False
    sides = sides if sides[0] else sides[1:]
    if not all(sides):
        raise UnreadableError("a side is missing")
    if len(sides) == 1:
        return replace(read(sides[0], False, depth + 1), rough=rough)
    names = [side for side in sides if _is_name(side)]
    sides = [side for side in sides if side not in names] or sides[-1:]
    if not names and len(sides) == 2 and _UNKNOWN.search(without_commands(" ".join(sides))):
        return Answer("equation", sides[1], left=sides[0])
    last = replace(read(sides[-1], False, depth + 1), name=tight(names[0]) if names else "", rough=rough)
    # Every number in the chain has to be the value.
    others = tuple(Answer("value", side) for side in sides[:-1] if not letters(side))
    return replace(last, parts=others) if last.kind == "value" else last


def _is_name(text: str) -> bool:
    constant = tight(text) in ("e", "i", "\\pi", "\\infty", "\\emptyset")
    return _NAME.fullmatch(text) is not None and not constant and not _APPLIED.fullmatch(text)


def _set_of(text: str, depth: int) -> Answer | None:
    pieces = split(text, _SET_SIGN)
    finite = all(re.fullmatch(r"\\\{[^{}]*\\\}", piece) for _, piece in pieces)
    if len(pieces) > 1 and finite and all(sign == "\\cup" for sign, _ in pieces[1:]):
        inner = [read(piece, False, depth + 1) for _, piece in pieces]
        return Answer("set", parts=tuple(part for one in inner for part in one.parts))
    if len(pieces) > 1 or re.fullmatch(r"\\mathbb\{[A-Z]\}(?:\^\{[+*-]\})?", text):
        return Answer("solutions", text)
    if text in ("\\emptyset", "\\{\\}", "\\{ \\}"):
        return Answer("set")
    built = re.fullmatch(r"\\\{\s*[A-Za-z](?:\s*\\in\s*\\mathbb\{[A-Z]\})?\s*[|:](.*)\\\}", text)
    return Answer("solutions", built[1].strip()) if built else None


def _matrix(text: str, depth: int) -> Answer | None:
    found = _MATRIX.match(text)
    if not found:
        return None
    rows = [row for row in found[2].split("\\\\") if row.strip()]
    shape = "x".join(str(row.count("&") + 1) for row in rows)
    determinant = "det " if found[1] == "vmatrix" or text.startswith("|") else ""
    return _parts("group", [cell for row in rows for cell in row.split("&")], depth, f"{determinant}matrix {shape}")


def _bracketed(text: str, depth: int) -> Answer | None:
    r"""`(1, 2)`, `[0, 1)`, `\{1, 2\}`, `A(1, 2)`; brackets around one expression only group it."""
    for opening, ending in (("\\{", "\\}"), ("{", "}")):
        if text.startswith(opening) and text.endswith(ending) and closing(text, 0) == len(text) - len(ending):
            inner = text[len(opening) : -len(ending)]
            return _parts("set", [piece for _, piece in split(inner, _COMMA) if piece], depth)
    if (label := re.match(r"([A-Z])'?\s?(?=\()", text)) and closing(text, label.end()) == len(text) - 1:
        point = _bracketed(text[label.end() :], depth + 1)
        return replace(point, left=text, name=label[1]) if point and point.kind == "group" else None
    if text[0] not in "([" or closing(text, 0) != len(text) - 1:
        return None
    if text[0] == "(" and "\\pm" in text:
        return _both_signs(text, depth)
    pieces = [piece for _, piece in split(text[1:-1], _COMMA)]
    if len(pieces) > 1:
        return _parts("group", pieces, depth, text[0] + text[-1])
    inside = pieces[0] if text[0] == "(" and _RELATION.search(text) else ""
    return read(inside, False, depth + 1) if inside else None


def _parts(kind: Kind, pieces: Sequence[str], depth: int, mark: str = "") -> Answer:
    if len(pieces) > _MOST_PARTS:
        raise UnreadableError("the answer has too many parts")
    parts = [read(piece, False, depth + 1) for piece in pieces]
    if kind == "set":
        parts = [inner for part in parts for inner in (part.parts if part.kind == "list" else (part,))]
    return Answer(kind, parts=tuple(parts), mark=mark)


def _both_signs(text: str, depth: int) -> Answer | None:
    if "\\pm" not in text and "\\mp" not in text:
        return None
    if text.startswith("(") and closing(text, 0) == len(text) - 1 and len(split(text[1:-1], _COMMA)) < 2:
        text = text[1:-1]
    upper = re.sub(r"\\pm(?![a-z])", "+", re.sub(r"\\mp(?![a-z])", "-", text))
    lower = re.sub(r"\\pm(?![a-z])", "-", re.sub(r"\\mp(?![a-z])", "+", text))
    return Answer("list", parts=(read(upper, False, depth + 1), read(lower, False, depth + 1)), mark="±")
