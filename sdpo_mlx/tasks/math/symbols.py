"""Tables of signs and words that stand for the same thing in LaTeX."""

from __future__ import annotations

_SAME_SIGNS = {
    "\\times ": "×✕",
    "\\cdot ": "·⋅∙•",
    "/": "÷⁄∕",
    "-": "−–—‐‑‒―﹣",
    "'": "′’‘ʹ",
    "''": "″",
    "\\le ": "≤⩽",
    "\\ge ": "≥⩾",
    "\\ne ": "≠",
    "\\approx ": "≈",
    "\\equiv ": "≡",
    "\\in ": "∈",
    "\\notin ": "∉",
    "\\cup ": "∪",
    "\\cap ": "∩",
    "\\subset ": "⊂",
    "\\subseteq ": "⊆",
    "\\supset ": "⊃",
    "\\supseteq ": "⊇",
    "\\setminus ": "∖",
    "\\emptyset ": "∅Ø",
    "\\land ": "∧",
    "\\lor ": "∨",
    "\\neg ": "¬",
    "\\to ": "→",
    "\\Rightarrow ": "⇒",
    "\\leftrightarrow ": "↔",
    "\\Leftrightarrow ": "⇔",
    "\\angle ": "∠",
    "\\triangle ": "△",
    "\\perp ": "⊥",
    "\\parallel ": "∥",
    "\\infty ": "∞",
    "\\pm ": "±",
    "\\mp ": "∓",
    "\\sum ": "∑",
    "\\prod ": "∏",
    "\\int ": "∫",
    "\\partial ": "∂",
    "\\lfloor ": "⌊",
    "\\rfloor ": "⌋",
    "\\lceil ": "⌈",
    "\\rceil ": "⌉",
    "(": "⟨",
    ")": "⟩",
    "\\mathbb{R}": "ℝ",
    "\\mathbb{Z}": "ℤ",
    "\\mathbb{N}": "ℕ",
    "\\mathbb{Q}": "ℚ",
    "\\mathbb{C}": "ℂ",
    "^{\\circ}": "°º",
    "^{\\circ}C": "℃",
    "^{\\circ}F": "℉",
    "\\ldots ": "…⋯",
    "\\text{euro}": "€",
    "\\text{pound}": "£",
    "\\text{yen}": "¥￥",
    "\\text{rupee}": "₹",
    "\\text{ruble}": "₽",
    "\\text{won}": "₩",
    "\\text{shekel}": "₪",
    "\\text{cent}": "¢",
    "\\text{ohm}": "Ω",
    "\\mu ": "µ",
    "\\%": "％",
    "\\$": "＄",
}
SIGNS = {sign: latex for latex, signs in _SAME_SIGNS.items() for sign in signs}
SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵃᵇᵏᵐᵗ", "0123456789+-=()nixyabkmt", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₕₖₗₘₙₚₛₜᵢⱼ", "0123456789+-=()aeoxhklmnpstij", strict=True))

_GREEK = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega
"""
GREEK = _GREEK.split()
_CAPITALS = dict(zip("ΓΔΘΛΞΠΣΦΨΩ", (GREEK[place] for place in (2, 3, 7, 10, 13, 14, 16, 19, 21, 22)), strict=True))
GREEK_LETTERS = {
    **dict(zip("αβγδεζηθικλμνξπρστυφχψω", GREEK, strict=True)),
    **{letter: name.capitalize() for letter, name in _CAPITALS.items()},
    **{"ϵ": "epsilon", "ϕ": "phi", "ϑ": "theta"},
}

# Other names of commands; a blank value removes the command.
_SAME_COMMANDS = {
    "\\frac": "dfrac tfrac cfrac sfrac nicefrac xfrac flatfrac",
    "\\binom": "dbinom tbinom",
    "\\le": "leq leqslant leqq",
    "\\ge": "geq geqslant geqq",
    "\\ne": "neq",
    "<": "lt",
    ">": "gt",
    "/": "div slash",
    "*": "ast",
    ":": "colon",
    "\\ldots": "dots cdots dotsc dotsb hdots",
    "\\emptyset": "varnothing O",
    "\\lor": "vee",
    "\\land": "wedge",
    "\\neg": "lnot",
    "\\to": "rightarrow longrightarrow",
    "\\Rightarrow": "implies Longrightarrow",
    "\\Leftrightarrow": "iff Longleftrightarrow",
    "\\setminus": "backslash smallsetminus",
    "\\{": "lbrace",
    "\\}": "rbrace",
    "(": "langle",
    ")": "rangle",
    "[": "lbrack",
    "]": "rbrack",
    "|": "vert lvert rvert mid",
    "\\|": "Vert lVert rVert",
    "\\mod": "bmod mod",
    "^{\\circ}": "degree",
    "\\epsilon": "varepsilon",
    "\\phi": "varphi",
    "\\theta": "vartheta",
    "\\mathbb{R}": "R Reals reals",
    "\\mathbb{Z}": "Z",
    "\\arctan": "arctg",
    "\\tan": "tg",
    "\\cot": "ctg",
    "i": "imath",
    "\\vec": "overrightarrow",
    "\\hat": "widehat",
    "\\overline": "bar",
    "T": "top intercal",
    "\\infty": "infin",
    "": """
        left right middle bigl bigr Bigl Bigr biggl biggr Biggl Biggr big Big bigg Bigg displaystyle textstyle
        scriptstyle limits nolimits bf rm it sf cal mathstrut strut nonumber notag hfill noindent normalsize large
        Large LARGE huge small
    """,
}
COMMANDS = {name: latex for latex, names in _SAME_COMMANDS.items() for name in names.split()}
FONTS = """
mathbf mathit mathsf mathtt mathcal mathscr boldsymbol bm pmb underline boxed fbox mathop mathbin ensuremath
"""
TEXT = "text textbf textit textrm textsf texttt textnormal mbox hbox mathrm operatorname emph textup"

# Words of three letters and more that are commands, and those that are words although they are short.
_COMMAND_WORDS = """
alpha beta gamma delta epsilon zeta theta iota kappa lambda pi sigma upsilon omega sin cos tan cot sec csc sinh cosh
tanh arcsin arccos arctan arccot arcsec arccsc log ln exp sqrt max gcd lcm mod
"""
WORDS = {name: f"\\{name}" for name in _COMMAND_WORDS.split()} | {
    "inf": "\\infty",
    "infinity": "\\infty",
    "oo": "\\infty",
    "deg": "^{\\circ}",
    "lg": "\\log",
}
_SHORT_WORDS = """
a an and or of the is are in on at per by to if no not yes one two six ten red few all any off out up only am pm st nd
rd th sq cu jan feb mar apr may jun jul aug sep oct nov dec mon tue wed thu fri sat sun
"""
SHORT_WORDS = frozenset(_SHORT_WORDS.split())
