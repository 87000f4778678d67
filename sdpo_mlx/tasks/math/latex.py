"""A value as math-verify's grammar has to read it, where it reads LaTeX otherwise than people do."""

from __future__ import annotations

import re
from fractions import Fraction

from sdpo_mlx.tasks.math.normalize import UnreadableError, closing
from sdpo_mlx.tasks.math.symbols import GREEK

_COMMANDS = """
frac binom sqrt sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan arccot arcsec arccsc log ln exp max min gcd
lcm lfloor rfloor lceil rceil cdot times infty sum prod int lim to mod text vec overline hat tilde pm Gamma Delta Theta
Lambda Xi Pi Sigma Phi Psi Omega ell le ge ne cup cap setminus emptyset mathbb in begin end circ
"""
_KNOWN = frozenset((*_COMMANDS.split(), *GREEK))
_NUMBER = re.compile(
    r"(?:^|(?<=\())(?P<sign>-?)(?P<mantissa>[0-9]+(?:\.[0-9]+)?)[eE](?P<power>[-+]?[0-9]{1,3})(?=$|\))"
    r"|(?<![0-9.])(?P<decimal>[0-9]*\.[0-9]+)"
)
# Two numbers side by side, an index of a number, signs of logic whose order counts.
_REFUSED = re.compile(
    r"[0-9]\s+[0-9]+(?!\s?/)|[0-9]\)?_\{|\\ldots|[0-9]_[0-9]|[,=<>#&?]$"
    r"|\\(?:(?:L|l)?eftrightarrow|Rightarrow|perp|parallel|sim|cong|land|lor)(?![a-z])|^(?!.*\\lim).*\\to(?![a-z])"
)
# In this order.
_REWRITTEN = (
    (re.compile(r"([0-9]+)\s+([0-9]+)\s?/\s?([0-9]+)(?![0-9])"), r"\1\\frac{\2}{\3}"),  # 2 1/2
    (re.compile(r"(?<![A-Za-z])C\(([0-9a-z]+),\s?([0-9a-z]+)\)"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?:\{\})?_\{([0-9a-z]+)\}C_\{([0-9a-z]+)\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\\|([^|\\]+)\\\|"), r"\\text{norm}(\1)"),
    (re.compile(r"([0-9]+|[A-Za-z])!!(?!!)"), r"\\text{doublefactorial}(\1)"),
    (re.compile(r"\(([^()]*)\)!!(?!!)"), r"\\text{doublefactorial}(\1)"),
    (re.compile(r"([A-Za-z])'{3}"), r"\1_{prime3}"),
    (re.compile(r"([A-Za-z])'{2}"), r"\1_{prime2}"),
    (re.compile(r"([A-Za-z])'"), r"\1_{prime}"),
    (re.compile(r"\^\{\s*(?:T|\\mathsf\{T\}|\\text\{T\}|\\prime)\s*\}"), r"^{\\text{T}}"),
    (re.compile(r"(?<![A-Za-z\\])([A-Z]|[fgh](?=\^\{-1\}\s?\())\^\{-1\}"), r"\1_{inv}"),  # of a matrix or a function
    (re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*\^\{\\circ\}"), r"(\\frac{\1\\pi}{180})"),
    (re.compile(r"\^\{\\circ\}"), r"\\cdot\\frac{\\pi}{180}"),
)
_FUNCTIONS = ("\\sin", "\\cos", "\\tan", "\\log", "\\ln", "\\exp")


def latex_of(text: str) -> str:
    """Return a value for math-verify's grammar. Raises UnreadableError."""
    if _REFUSED.search(text):
        raise UnreadableError("it is no single value")
    for pattern, other in _REWRITTEN:
        text = pattern.sub(other, text)
    text = re.sub(r"\\(angle|triangle)\s*([A-Z]{1,3})(?![A-Za-z])", _angle, text)
    text = _NUMBER.sub(_exact, text)
    text = re.sub(r"\\([A-Za-z]+)", lambda found: found[0] if found[1] in _KNOWN else f"\\text{{{found[1]}}}", text)
    text = _quotients(_imaginary(text))
    # The grammar adds a whole number and a fraction that follow one another.
    return re.sub(r"(?<=[0-9)])\s*(?=\()|(?<=\))\s*(?=[0-9]|\\frac)", r"\\cdot ", text)


def _angle(found: re.Match[str]) -> str:
    """One symbol; its outer points may be named in either order."""
    points = min(found[2], found[2][::-1]) if found[1] == "angle" else "".join(sorted(found[2]))
    return f"\\text{{{found[1]}{points}}}"


def _exact(found: re.Match[str]) -> str:
    """A decimal is exactly what it says."""
    number = Fraction(found["decimal"] or f"{found['mantissa']}e{found['power']}")
    sign = found["sign"] or ""
    return (
        f"{sign}(\\frac{{{number.numerator}}}{{{number.denominator}}})"
        if number.denominator > 1
        else f"{sign}({number})"
    )


def _imaginary(text: str) -> str:
    """`i` is the root of -1 unless it counts; the letter I is none."""
    text = re.sub(r"(?<![A-Za-z\\{])I(?![A-Za-z}])", r"\\text{capitalI}", text)
    if re.search(r"_\{i|\\(?:sum|prod)|\\(?:vec|hat)\{", text):
        return text
    bare = re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", lambda found: "#" * len(found[0]), text)
    return "".join("(I)" if sign == "i" else text[at] for at, sign in enumerate(bare))


def _quotients(text: str) -> str:
    """`a/bc` is a divided by b, times c: only the next factor stands below, and only whole numbers are joined first."""
    text = re.sub(r"(?<![0-9A-Za-z})!^_.])([0-9]+)\s*/\s*([0-9]+)(?![0-9]|\s*[!^.])", r"\\frac{\1}{\2}", text)
    shown, at = [], 0
    while (slash := text.find("/", at)) >= 0:
        end = _factor_end(text, slash + 1)
        if end <= slash + 1:
            raise UnreadableError("nothing stands below the stroke")
        shown.append(f"{text[at:slash]}\\cdot \\frac{{1}}{{{text[slash + 1 : end].strip()}}}")
        at = end
    return "".join(shown) + text[at:]


def _factor_end(text: str, at: int) -> int:
    """Where one factor with its powers ends."""
    while text[at : at + 1] in (" ", "-"):
        at += 1
    if text[at : at + 1] in ("(", "{"):
        at = closing(text, at) + 1
    else:
        found = re.compile(r"[0-9]+|\\?[A-Za-z]+(?=[{\[])|\\[A-Za-z]+|[A-Za-z]").match(text, at)
        at = found.end() if found else at
        if found and found[0] in _FUNCTIONS:
            at = _factor_end(text, at)
        while text[at : at + 1] in ("{", "["):
            at = closing(text, at) + 1 or len(text)
    while text[at : at + 2] in ("^{", "_{") or text[at : at + 1] == "!":
        at = at + 1 if text[at] == "!" else closing(text, at + 1) + 1 or len(text)
    return at
