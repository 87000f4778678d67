"""Layouts of the self-teacher's prompt, by the name that `teacher.template` takes.

A layout is a sequence of parts. A part whose slots all have no value is left out, so a heading goes with its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SOLUTION_HEADING = "Correct solution:"
ATTEMPT_HEADING = "Your unsuccessful earlier attempt:"
FEEDBACK_HEADING = "The following is feedback from your unsuccessful earlier attempt:"
CLOSING_LINE = "Correctly solve the original question."

DEFAULT = "paper"
TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # arXiv 2601.20802, its table of prompts
        DEFAULT: (
            "{problem}",
            f"\n\n{SOLUTION_HEADING}\n\n{{demonstration}}",
            f"\n\n{ATTEMPT_HEADING}\n\n{{attempt}}",
            f"\n\n{FEEDBACK_HEADING}\n\n{{feedback}}",
            f"\n\n{CLOSING_LINE}",
        ),
        # The line breaks of the authors' shipped configuration (`actor.yaml`): one before a heading instead of two.
        "reference": (
            "{problem}",
            f"\n{SOLUTION_HEADING}\n\n{{demonstration}}",
            f"\n{ATTEMPT_HEADING}\n\n{{attempt}}",
            f"\n{FEEDBACK_HEADING}\n\n{{feedback}}",
            f"\n\n{CLOSING_LINE}",
        ),
        # Nothing is said of an attempt: what is known comes first, and the prompt ends as the student's does.
        "facts": (
            "A correct answer to the question below:\n\n{demonstration}\n\n",
            "A wrong answer to the question below:\n\n{attempt}\n\n",
            "Facts about the answer to the question below:\n\n{feedback}\n\n",
            "{problem}",
        ),
        "requirements": (
            "{problem}",
            "\n\nExample of a correct answer:\n\n{demonstration}",
            "\n\nExample of a wrong answer:\n\n{attempt}",
            "\n\nRequirements that the answer must meet:\n\n{feedback}",
        ),
    }
)


def template_name(template: str | None) -> str:
    """Return the name of a `teacher.template`: one of `TEMPLATES`, or `custom` for a layout written out."""
    name = DEFAULT if template is None else template
    return name if name in TEMPLATES else "custom"
