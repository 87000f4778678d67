"""Five tasks with short answers, for a small real model; the feedback says what is right.

    sdpo probe --model smollm2 --task benchmarks/short_tasks.py:people --max-tokens 32

`people`: a sentence to JSON, after an example. `sentences`: one sentence with a given word and form. `tickets`: the
code of the team for a customer's message; the codes stand nowhere but in the feedback. `codes` and
`teams`: the code or the name of the team, in a sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

ROWS = 96
NAMES = ("Anna", "Omar", "Lucia", "Kenji", "Priya", "Tom", "Sofia", "Yusuf", "Clara", "Ivan", "Maya", "Paul")
CITIES = ("Oslo", "Lima", "Cairo", "Delhi", "Kyoto", "Paris", "Quito")
FORMS = (
    "{name} lives in {city} and is {age} years old.",
    "At the age of {age}, {name} moved to {city}.",
    "In {city} I met {name}, who is {age}.",
)
EXAMPLE = 'Sentence: In Rome I met Marco, who is 44.\nJSON: {"name": "Marco", "age": 44, "city": "Rome"}'
WORDS = ("river", "lamp", "garden", "train", "window", "bread", "music", "winter", "letter", "horse", "bridge", "clock")
ENDS = {"an exclamation mark": "!", "a question mark": "?"}
TEAMS = {
    "B-17": (
        "My card was charged twice{x}.",
        "The invoice{x} is wrong.",
        "I was billed for something I never bought{x}.",
    ),
    "D-40": (
        "My parcel{x} has not arrived.",
        "The courier left the box at the wrong door{x}.",
        "Where is my package{x}?",
    ),
    "A-22": (
        "I cannot log in{x}.",
        "My password reset link is broken{x}.",
        "Please change the email of my account{x}.",
    ),
    "R-93": (
        "I want to send the shoes back{x}.",
        "The shirt is too small, can I return it{x}?",
        "How do I return a gift{x}?",
    ),
}
NICKNAMES = {"B-17": "Falcon", "D-40": "Otter", "A-22": "Maple", "R-93": "Cobalt"}
EXTRAS = (
    "",
    " since Monday",
    " again",
    " and nobody helps",
    " after your last update",
    " this week",
    " today",
    " for days",
)


class ShortTask:
    """One of the five; `variant` is its name."""

    def __init__(self, variant: str = "people") -> None:
        self.variant = variant

    def problems(self) -> Iterator[dict[str, Any]]:
        """Yield 96 rows; every fourth is held out."""
        for at in range(ROWS):
            row = getattr(self, f"_{self.variant}")(at)
            yield {"id": f"{self.variant}-{at}", "split": "held_out" if at % 4 == 3 else "train", **row}

    def grade(self, problem: dict[str, Any], answer: str) -> tuple[float, str]:
        """Return 1 or 0, and what is right."""
        return getattr(self, f"_grade_{self.variant}")(problem, answer.strip())

    def _people(self, at: int) -> dict[str, Any]:
        gold = {"name": NAMES[at * 5 % 12], "age": 19 + at * 7 % 60, "city": CITIES[at * 3 % 7]}
        ask = "Write the sentence as JSON, in one line, as in the example."
        return {"prompt": f"{ask}\n\n{EXAMPLE}\n\nSentence: {FORMS[at % 3].format(**gold)}\nJSON:", "gold": gold}

    def _grade_people(self, problem: dict[str, Any], answer: str) -> tuple[float, str]:
        right = json.dumps(problem["gold"])
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        return (1.0, "") if found == problem["gold"] else (0.0, f"The right answer is {right} and nothing else.")

    def _sentences(self, at: int) -> dict[str, Any]:
        word, (name, mark) = WORDS[at * 5 % 12], [*ENDS.items()][at // 12 % 2]
        most = 6 + at % 3
        ask = f'Write one sentence of at most {most} words with the word "{word}". It must end with {name}.'
        return {"prompt": ask, "word": word, "mark": mark, "most": most}

    def _grade_sentences(self, problem: dict[str, Any], answer: str) -> tuple[float, str]:
        words = re.findall(r"[\w'-]+", answer)
        faults = []
        if problem["word"] not in [each.lower() for each in words]:
            faults.append(f'The word "{problem["word"]}" is missing.')
        if not answer.endswith(problem["mark"]):
            faults.append(f'The last character must be "{problem["mark"]}".')
        if not 2 <= len(words) <= problem["most"]:
            faults.append(f"It has {len(words)} words, at most {problem['most']} are allowed.")
        if len(re.findall(r"[.!?]+", answer)) > 1 or "\n" in answer:
            faults.append("It must be one sentence.")
        return (1.0, "") if not faults else (0.0, " ".join(faults))

    def _tickets(self, at: int) -> dict[str, Any]:
        code = [*TEAMS][(at + at // 4) % 4]  # the held-out rows are of every team
        text = TEAMS[code][at // 4 % 3].format(x=EXTRAS[at // 12 % 8])
        return {
            "prompt": f"Message of a customer: {text}\n\nWhich team is it for? Answer with its code only.",
            "gold": code,
        }

    def _grade_tickets(self, problem: dict[str, Any], answer: str) -> tuple[float, str]:
        return (
            (1.0, "")
            if answer == problem["gold"]
            else (0.0, f"The code is {problem['gold']}. Write only {problem['gold']}.")
        )

    def _codes(self, at: int) -> dict[str, Any]:
        return self._asked_in_a_sentence(at, "the code of the team", {code: code for code in TEAMS})

    def _grade_codes(self, problem: dict[str, Any], answer: str) -> tuple[float, str]:
        return self._graded(problem, {*re.findall(r"\b[A-Z]-\d\d\b", answer)})

    def _teams(self, at: int) -> dict[str, Any]:
        return self._asked_in_a_sentence(at, "the team", NICKNAMES)

    def _grade_teams(self, problem: dict[str, Any], answer: str) -> tuple[float, str]:
        return self._graded(problem, {name for name in NICKNAMES.values() if name in answer})

    def _asked_in_a_sentence(self, at: int, what: str, names: dict[str, str]) -> dict[str, Any]:
        row = self._tickets(at)
        message = row["prompt"].partition("\n\n")[0].partition(": ")[2]
        ask = f"Which team answers this customer? Name {what} in one short sentence."
        return {"prompt": f"{ask}\n\nCustomer: {message}", "gold": names[row["gold"]]}

    def _graded(self, problem: dict[str, Any], named: set[str]) -> tuple[float, str]:
        return (1.0, "") if named == {problem["gold"]} else (0.0, f"Team {problem['gold']} answers this customer.")

    def solution(self, problem: dict[str, Any]) -> str:
        """Return a right answer."""
        if self.variant == "sentences":
            return f"See the {problem['word']}{problem['mark']}"
        return json.dumps(problem["gold"]) if self.variant == "people" else problem["gold"]
