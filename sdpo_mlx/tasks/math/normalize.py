"""One spelling for an answer before math-verify sees it: signs of Unicode, fonts, spaces, braces, words, numbers.

The result is LaTeX in which every argument has braces, every word is `\\text{word}`, every font and size is gone, and
a number has no marks between its thousands. Commas between digits are left: `read.py` knows whether they part a list.
"""

from __future__ import annotations

import re
import unicodedata

from sdpo_mlx.tasks.math.symbols import (
    COMMANDS,
    FONTS,
    GREEK_LETTERS,
    SHORT_WORDS,
    SIGNS,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    TEXT,
    WORDS,
)
from sdpo_mlx.tasks.math.units import known_unit

LONGEST = 1_000
DEEPEST = 20
_MOST_REPEATING = 60  # digits; the search for what repeats is cubic

_RAISED = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(SUBSCRIPTS)}]+")
_ROOT = re.compile(r"([√∛∜])\s*(?=([0-9]+(?:\.[0-9]+)?|[^\W\d_])?)")
_THOUSANDS = re.compile(
    r"(?<![0-9.,])([1-9][0-9]{0,2})((?:(?:\{,\}(?:\\!)?|,\\[!,;: ]|\\[,;: !]|'|~|\s)\s?[0-9]{3})+)(?![0-9])"
)
_COMMAND = re.compile(r"\\([A-Za-z]+)(?:\s*(\{))?|\\.", re.DOTALL)
_SPACE = re.compile(
    r"(?<!\\)\\[!,;:> ]|~|\\(?:(?:neg)?(?:thin|med|thick)space|enspace|nobreakspace)(?![A-Za-z])"
    r"|\\(?:left|right)\s?\.|\\[hv]?(?:space|phantom)\*?\s?\{[^{}]*\}"
)
_FONT = re.compile(rf"\\(?:{'|'.join(FONTS.split())})(?![A-Za-z])\s*|\\(?:text)?color\s?\{{[^{{}}]*\}}")
_TEXT = re.compile(rf"\\(?:{'|'.join(TEXT.split())})(?![A-Za-z])\*?\s*\{{([^{{}}]*)\}}")
_LETTERS = re.compile(r"\\[A-Za-z]+\s*\{[^{}]*\}|\\[A-Za-z]+|\\.|[^\W\d_]+(?:'[^\W\d_]+)?", re.DOTALL)
_MERIDIEM = re.compile(r"(?<![A-Za-z\\])([AaPp])\.\s?[Mm]\.?(?![A-Za-z])")
_REPEATING = re.compile(
    r"([0-9]*)\.([0-9]*)(?:\\(?:overline|bar|dot)\s?\{([0-9]+)\}|\(([0-9]+)\)|(?:\.\.\.|\\ldots)(?![\w.]))"
)
_ASIDE = re.compile(r"(?<=[0-9})])\s?\(\s?((?:\\text\{[^{}]*\}\s?)+)\)$")  # 12 (cups)
_MATRIX_ROW = re.compile(r"\\\\\s?\[[^\[\]]{1,12}\]|\\(?:cr|newline)(?![A-Za-z])|\\\\\*")
_OVER = re.compile(r"\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}")


class UnreadableError(ValueError):
    """An answer that is no mathematical expression, or too long or too deep to be read."""


def normalize(text: str) -> str:
    """Return an answer in one spelling. Raises UnreadableError."""
    if len(text) > LONGEST:
        raise UnreadableError("the answer is too long")
    if _depth(text) > DEEPEST:
        raise UnreadableError("the answer is nested too deep")
    text = _without_dollars(_signs(text))
    text = _MERIDIEM.sub(lambda found: f" {found[1].casefold()}m ", text)
    text = _THOUSANDS.sub(lambda found: found[1] + re.sub(r"[^0-9]", "", found[2]), text)
    text = _MATRIX_ROW.sub(r"\\\\", text)
    text = _SPACE.sub(" ", text)
    text = _TEXT.sub(lambda found: _plain_text(found[0], found[1]), text)
    text = _FONT.sub(" ", text)
    text = _COMMAND.sub(_command, text)
    text = re.sub(r"(?<=[0-9.])\s?[xX]\s?(?=10\s?\^)", r"\\times ", text)
    text = _words(text)
    text = _ended(" ".join(text.split()).strip("*`"))
    text = _ASIDE.sub(r" \1", text)
    for _ in range(3):
        text = _OVER.sub(_fraction, text)
    text = _REPEATING.sub(_repeating, text)
    return " ".join(arguments(text).split())


def _depth(text: str) -> int:
    level = deepest = 0
    for sign in text:
        level += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, level)
    return deepest


def _signs(text: str) -> str:
    """LaTeX for signs of Unicode; raised and lowered digits keep their place, `3½` is three and a half."""
    text = _RAISED.sub(lambda found: f"^{{{''.join(SUPERSCRIPTS[sign] for sign in found[0])}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{''.join(SUBSCRIPTS[sign] for sign in found[0])}}}", text)
    text = _ROOT.sub(_root, text)
    shown = []
    for sign in text:
        parts = unicodedata.decomposition(sign)
        if parts.startswith("<fraction>"):
            over, under = "".join(chr(int(code, 16)) for code in parts.split()[1:]).split("⁄")
            shown.append(f"\\frac{{{over}}}{{{under}}}")
        elif sign in SIGNS:
            shown.append(SIGNS[sign])
        elif sign in GREEK_LETTERS:
            shown.append(f"\\{GREEK_LETTERS[sign]} ")
        elif unicodedata.category(sign) == "Nd":
            shown.append(str(unicodedata.decimal(sign)))
        elif unicodedata.category(sign) not in ("Cf", "Cc", "Cs", "Co", "Cn") or sign.isspace():
            shown.append(unicodedata.normalize("NFKC", sign))
    return unicodedata.normalize("NFC", "".join(shown))


def _root(found: re.Match[str]) -> str:
    degree = {"√": "", "∛": "[3]", "∜": "[4]"}[found[1]]
    return f"\\sqrt{degree}" + ("" if found[2] else " ")


def _without_dollars(text: str) -> str:
    """Dollar signs around mathematics go, those of money become a word."""
    text = text.replace("\\$", "\\text{dollar}")
    money = re.findall(r"(?<![0-9}])\$(?=[0-9])", text)
    if len(re.findall(r"\$+", text)) % 2 == 0 and len(money) != text.count("$"):
        return re.sub(r"\$+", " ", text)
    return text.replace("$", "\\text{dollar}")


def _plain_text(whole: str, content: str) -> str:
    """Words of a text as one `\\text{}` each; what is no letter in it stands outside."""
    if whole.startswith("\\mathrm") and content.strip() in ("e", "i", "d", "T"):
        return f" {content.strip()} "
    if content.strip() in WORDS and len(content.strip()) > 2:
        return f" {WORDS[content.strip()]} "
    return " " + re.sub(r"[^\W\d_]+(?:['-][^\W\d_]+)*", lambda found: f"\\text{{{found[0]}}}", content) + " "


def _command(found: re.Match[str]) -> str:
    name = found[1]
    if name is None:
        return {"\\%": "%", "\\#": "#", "\\_": "_", "\\&": "&", "\\/": ""}.get(found[0], found[0])
    if name in ("quad", "qquad"):
        return "\\quad "
    return COMMANDS.get(name, f"\\{name}") + (found[2] or " ")


def _words(text: str) -> str:
    """Plain letters that are a word or a unit become `\\text{}`; names of functions and constants commands."""
    only_words = re.fullmatch(r"[^\W\d_]+(?:[ '-]+[^\W\d_]+)*[.!]?", text.strip()) is not None
    shown, end, last = [], 0, ""
    for found in _LETTERS.finditer(text):
        between = text[end : found.start()]
        before = (last + between).rstrip()[-7:]
        last = _word(found[0], before, between[-1:], only_words)
        shown += [between, last]
        end = found.end()
    return "".join(shown) + text[end:]


def _word(letters: str, before: str, gap: str, only_words: bool) -> str:
    if letters.startswith("\\") or len(letters) == 1:
        return letters
    if before.endswith("/") and known_unit(letters):
        return f"\\text{{{letters}}}"
    if letters.casefold() in WORDS and (letters.islower() or len(letters) > 3):
        return WORDS[letters.casefold()] + " "
    for name in ("pi", "sqrt"):  # `2pir`
        if letters.startswith(name) and len(letters) == len(name) + 1:
            return f"\\{name} {letters[len(name) :]}"
    after_value = bool(before) and (before[-1] in "0123456789)}/%" or before.endswith(("\\pi", "\\cdot", "\\times")))
    unit = after_value and known_unit(letters)
    word = (
        len(letters) > 3
        or unit
        or letters.casefold() in SHORT_WORDS
        or (len(letters) == 3 and ((letters[0].isupper() and letters[1:].islower()) or (after_value and gap == " ")))
        or (only_words and letters[1:].islower() and letters.casefold() in ("no", "yes"))
    )
    return f"\\text{{{letters}}}" if word else letters


def _ended(text: str) -> str:
    """Without the marks that end a sentence."""
    while text.endswith((".", ",", ";", ":", "\\quad", "\\\\")) and not text.endswith(("..",)):
        text = text.removesuffix("\\quad").removesuffix("\\\\").rstrip(".,;: ") if text else text
    return re.sub(r"(?<![0-9.])\.(?=[0-9])", "0.", text.strip(" \\") if text.endswith("\\") else text.strip())


def _fraction(found: re.Match[str]) -> str:
    name = "\\frac" if found[2] == "over" else "\\binom"
    return f"{name}{{{found[1].strip()}}}{{{found[3].strip()}}}"


def _repeating(found: re.Match[str]) -> str:
    """A decimal whose digits repeat for ever, as its fraction; `0.333...` repeats what stands there at least twice."""
    whole, head, tail = found[1] or "0", found[2], found[3] or found[4]
    if tail is None:
        block = re.fullmatch(r"([0-9]*?)([0-9]+?)\2+", head) if len(head) <= _MOST_REPEATING else None
        if block is None or (len(block[2]) == 1 and block[1] and not head.endswith(block[2] * 3)):
            return found[0]
        head, tail = block[1], block[2]
    under = (10 ** len(tail) - 1) * 10 ** len(head)
    over = int(whole + head + tail) - int(whole + head)
    return f"\\frac{{{over}}}{{{under}}}"


def arguments(text: str, depth: int = 0) -> str:
    """Braces around every argument of a fraction, a root, a power and an index."""
    if depth > DEEPEST:
        raise UnreadableError("the answer is nested too deep")
    shown: list[str] = []
    at = 0
    while at < len(text):
        command = re.compile(r"\\(?:frac|binom|sqrt|overline|vec|hat)(?![A-Za-z])|\*\*|[\^_]").match(text, at)
        if command is None:
            shown.append(text[at])
            at += 1
            continue
        name, at = command[0].replace("**", "^"), command.end()
        shown.append(name)
        if name == "\\sqrt" and (degree := re.compile(r"\s*\[([^\[\]]*)\]").match(text, at)):
            shown.append(f"[{arguments(degree[1], depth + 1)}]")
            at = degree.end()
        for _ in range(2 if name in ("\\frac", "\\binom") else 1):
            argument, at = _argument(text, at, name)
            shown.append(f"{{{arguments(argument, depth + 1).strip()}}}")
    return "".join(shown)


def _argument(text: str, at: int, name: str) -> tuple[str, int]:
    """The argument at a place and where it ends: braces, a bracket after a root or a power, digits, else one sign."""
    while at < len(text) and text[at] == " ":
        at += 1
    if text[at : at + 1] == "{" or (text[at : at + 1] == "(" and name in ("\\sqrt", "^")):
        end = closing(text, at)
        if end < 0:
            raise UnreadableError("a brace is not closed")
        return text[at + 1 : end], end + 1
    pattern = r"\\(?:text|mathbb|mathrm)\s?\{[^{}]*\}|\\[A-Za-z]+|\\?."
    if name in ("^", "_", "\\sqrt"):
        pattern = r"-?[0-9]+(?:\.[0-9]+)?|-?[A-Za-z]|-?\\(?!text)[A-Za-z]+|" + pattern
    found = re.compile(pattern, re.DOTALL).match(text, at)
    if found is None:
        raise UnreadableError("an argument is missing")
    end = found.end()
    if found[0] in ("\\frac", "\\sqrt", "\\binom"):
        for _ in range(1 if found[0] == "\\sqrt" else 2):
            _, end = _argument(text, end, found[0])
    elif found[0] == "\\circ":
        return "\\circ", end
    return text[at:end], end


def closing(text: str, at: int) -> int:
    """Where the bracket at a place is closed, -1 if it is not; kinds may be mixed, as in `[0, 1)`."""
    level = 0
    for found in re.compile(r"\\?[()\[\]{}]|\\.", re.DOTALL).finditer(text, at):
        level += (found[0][-1] in "([{") - (found[0][-1] in ")]}")
        if level <= 0:
            return found.start()
    return -1
