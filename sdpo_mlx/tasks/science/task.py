"""Multiple choice: the answer is a letter between answer tags; by default demonstrations alone teach.

What counts as an answer, thinking removed: the last complete `<answer>...</answer>`, tags in any case. Inside it
a letter in either case, bare or as `B)`, `B.`, `(B)`, `**B**`, `Option B`; a letter with its own option's text;
or the full text of exactly one option. Anything else, several letters among them, is the wrong form: no guess
is made. The paper gives no feedback here, so `none` is the default; the other modes add to one another:
`format` speaks of the form only, `letter` says that the chosen option is wrong, `full` names the right one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError, DataError
from sdpo_mlx.core.text import shorten_middle, strip_thinking
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.dataset import feedback_mode, load_rows, with_splits
from sdpo_mlx.tasks.science.choices import LETTERS, normalised
from sdpo_mlx.tasks.science.formats import problem_from_question, question_from_row
from sdpo_mlx.types import Feedback, Problem

FEEDBACK_MODES = ("none", "format", "letter", "full")
DOMAINS = ("physics", "chemistry", "biology", "materials")  # of the shipped questions
_QUOTED = 80
_OPEN = re.compile("<answer>", re.IGNORECASE)
_CLOSE = re.compile("</answer>", re.IGNORECASE)
_LETTER = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?\(?([A-Za-z])(?:\)|\.|:|(?=\s*$))\s*(.*)", re.DOTALL | re.I)


class ScienceTask(Task):
    """Choose the one right option."""

    name = "science"
    description = "multiple-choice questions; the answer is a letter between answer tags"
    feedback_modes = FEEDBACK_MODES

    def __init__(self, cfg: TaskConfig | None = None, variant: str = "") -> None:
        """`cfg.data`: rows as in `formats.py`, None for the shipped ones; `variant` keeps one domain.

        Raises ConfigError for an unknown mode or domain, DataError for bad rows.
        """
        cfg = cfg or TaskConfig(name=self.name)
        self.feedback = feedback_mode(self.name, cfg.feedback, FEEDBACK_MODES)
        problems = _load(cfg)
        self.rows = _of_domain(problems, variant) if variant else problems

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Return reward 1 for the right letter; an answer from which no letter can be read is `invalid`."""
        options: Sequence[str] = problem.private["options"]
        letter, fault = read_letter(text, options, truncated=truncated)
        if letter is None:
            return Feedback(0.0, False, self._feedback_text(fault, "", problem), "invalid")
        if letter == problem.private["right"]:
            return Feedback(1.0, True, "", "pass")
        wrong = f"Option {letter} ({_quoted(options[LETTERS.index(letter)])}) is not right."
        return Feedback(0.0, False, self._feedback_text("", wrong, problem), "wrong")

    def _feedback_text(self, fault: str, wrong: str, problem: Problem) -> str:
        level = FEEDBACK_MODES.index(self.feedback)
        right = problem.private["right"]
        option = problem.private["options"][LETTERS.index(right)]
        form = fault or "The answer has the right form."
        # One sentence more at each level of FEEDBACK_MODES.
        return " ".join(filter(None, (form, wrong, f"The right option is {right} ({_quoted(option)}).")[:level]))


def read_letter(text: str, options: Sequence[str], *, truncated: bool = False) -> tuple[str | None, str]:
    """Return the letter that an answer chooses, or None and a sentence that says what is wrong with its form."""
    inside = _last_answer(strip_thinking(text))
    if inside is None:
        return None, _no_tags(text, truncated)
    bare = inside.strip().strip("*_`$ \n\t").strip()
    letters = LETTERS[: len(options)]
    if not bare:
        return None, "The answer tags are empty; the letter of one option belongs between them."
    matched = _LETTER.fullmatch(bare)
    letter, rest = (matched[1].upper(), normalised(matched[2].strip("*_` \n\t"))) if matched else ("", "")
    if letter and letter in letters and (not rest or letter in _named(rest, options)):
        return letter, ""
    named = _named(inside, options) or _named(bare, options)
    if len(named) == 1:
        return named, ""
    if letter and not rest:
        return None, f"There is no option {letter}; the options are {letters[0]} to {letters[-1]}."
    return None, f"Between the answer tags stands {_quoted(bare)}; write one letter from {letters[0]} to {letters[-1]}."


def _named(text: str, options: Sequence[str]) -> str:
    """The letters of the options with this text; case decides only between options that differ in nothing else."""
    said = normalised(text)
    for fold in (str, str.casefold):
        found = [i for i, option in enumerate(options) if fold(normalised(option)) == fold(said)]
        if found:
            return "".join(LETTERS[i] for i in found)
    return ""


def _last_answer(text: str) -> str | None:
    """Return the text in the last complete pair of tags."""
    closings = [match.start() for match in _CLOSE.finditer(text)]
    if not closings:
        return None
    openings = [match.end() for match in _OPEN.finditer(text) if match.end() <= closings[-1]]
    if not openings:
        return None
    return text[openings[-1] : next(end for end in closings if end >= openings[-1])]


def _no_tags(text: str, truncated: bool) -> str:
    wanted = "<answer> and </answer>"
    if truncated:
        return f"The answer ran out of tokens before its letter stood between {wanted}; think more briefly."
    if not strip_thinking(text):
        return f"After the thinking there is no answer; write the letter of one option between {wanted}."
    if _OPEN.search(text):
        return f"The answer tag is never closed; write the letter of one option between {wanted}."
    return f"No answer tags were found; write the letter of one option between {wanted}."


def _quoted(text: str) -> str:
    return repr(shorten_middle(" ".join(text.split()), _QUOTED))


def _load(cfg: TaskConfig) -> list[Problem]:
    """Return problems with unique ids: public sets repeat rows, and a second copy gets `#2`."""
    seen: Counter[str] = Counter()
    problems = []
    for question in load_rows(cfg, "science/problems.jsonl", question_from_row):
        if question is not None:
            seen[question.id] += 1
            again = f"#{seen[question.id]}" if seen[question.id] > 1 else ""
            problems.append(problem_from_question(replace(question, id=question.id + again)))
    if not problems:
        fix = "give rows whose type starts with mcq"
        raise DataError("holds no multiple-choice question", where=str(cfg.data), fix=fix)
    return with_splits(problems)


def _of_domain(problems: Sequence[Problem], wanted: str) -> list[Problem]:
    kept = [problem for problem in problems if problem.private["domain"].casefold() == wanted.casefold()]
    if not kept:
        known = sorted({problem.private["domain"].casefold() for problem in problems} - {""})
        near = get_close_matches(wanted.casefold(), known, n=1)
        listed = f"choose one of {', '.join(known[:12])}" if known else "leave the variant out: the rows name no domain"
        fix = f"did you mean {near[0]}?" if near else listed
        raise ConfigError(f"science has no domain {wanted!r}", where="task.name", fix=fix)
    return kept
