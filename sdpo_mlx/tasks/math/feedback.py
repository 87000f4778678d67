"""What the environment says about a wrong final answer, part by part, without giving the right one away."""

from __future__ import annotations

from sdpo_mlx.core.text import display
from sdpo_mlx.tasks.math.extract import Found
from sdpo_mlx.tasks.math.formats import FORMAT_LINE

FEEDBACK_MODES = ("verdict", "answer", "none")
_QUOTED = 80
_CUT_OFF = "The answer was cut off at the length limit."


def no_answer_text(truncated: bool) -> str:
    """For an answer without a final answer: how to give one."""
    if truncated:
        return f"{_CUT_OFF} It had no final answer by then: be shorter. {FORMAT_LINE}"
    return f"No final answer was found. {FORMAT_LINE}"


def wrong_text(found: Found, form: str, truncated: bool) -> str:
    """Where the answer was read, what is wrong with its form; never the right value, its sign or its size."""
    place = "the last box" if found.where == "box" else "the last answer line"
    said = [f"The final answer `{_quoted(found.text)}`, read from {place}, is not correct."]
    if found.others:
        said.append(f"There were {found.others + 1} different final answers; only the last one counts.")
    said.append(form or "Its form is right, its value is not equal to the right answer.")
    if truncated:
        said.append(_CUT_OFF)
    return " ".join(said)


def right_answer_text(right: str) -> str:
    """For the mode `answer`."""
    return f"The right answer is `{_quoted(right)}`."


def _quoted(text: str) -> str:
    shown = " ".join(display(text, _QUOTED * 4).split())
    return shown if len(shown) <= _QUOTED else shown[: _QUOTED - 3] + "..."
