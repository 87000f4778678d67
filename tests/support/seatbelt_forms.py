"""Read the text of a Seatbelt profile as nested lists."""

from __future__ import annotations

import re

# One word of the profile: a bracket, a text literal with its escapes, or an atom.
WORDS = re.compile(r'\s*(\(|\)|"(?:[^"\\]|\\.)*"|[^\s()"]+)', re.S)

Form = list["Form | str"]


def forms(text: str) -> list[Form]:
    """The profile as nested lists; fails on text that is not well formed."""
    stack: list[Form] = [[]]
    position = 0
    while text[position:].strip():
        word = WORDS.match(text, position)
        assert word is not None
        position = word.end()
        if word[1] == "(":
            stack.append([])
        elif word[1] == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(word[1])
    assert len(stack) == 1
    return [form for form in stack[0] if isinstance(form, list)]


def rules(verdict: str, operation: str, text: str) -> list[Form]:
    """The matchers of all rules of one verdict that name an operation."""
    found = [form for form in forms(text) if form[0] == verdict and operation in form]
    return [matcher for form in found for matcher in form[1:] if isinstance(matcher, list)]
