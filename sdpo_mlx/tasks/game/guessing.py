"""Text puzzles with a hidden state: the model guesses, the environment replies, until the secret is found.

Three puzzles for any chat model: a hidden number (higher, lower), a hidden code (right place, wrong place) and a
treasure on a map (compass directions). A secret and a guess are tuples of whole numbers, and a hint is a pure
function of both; so the reply can name what an earlier hint has ruled out without revealing the secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdpo_mlx.config import TaskConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.seeding import rng
from sdpo_mlx.core.text import strip_thinking
from sdpo_mlx.tasks.base import SPLITS, Split, Task
from sdpo_mlx.tasks.dataset import feedback_mode
from sdpo_mlx.types import Feedback, Problem

Cells = tuple[int, ...]

FEEDBACK_MODES = ("hints", "answer", "none")
SIZES: Mapping[Split, int] = {"train": 32, "held_out": 8}  # problems a puzzle
FOUND = "That is it."
FORMAT = "End your answer with one line like this: guess: {}"

_GUESS = re.compile(r"guess\s*[:=]\s*([^\n]*)", re.IGNORECASE)
_DIGITS = re.compile(r"-?\d{1,9}")
_SHOWN = 40


@dataclass(frozen=True)
class Puzzle:
    """One kind of secret: its sizes, its statement, and the hint for a guess."""

    name: str
    size: str  # what the statement calls it; {high} and {length} are numbers of the problem
    example: str
    lengths: tuple[int, ...]
    highs: tuple[int, ...]
    hint: Callable[[Cells, Cells], str]  # (secret, guess) -> what the environment says; FOUND where both are equal
    guesses: Callable[[int, int], int]  # (length, high) -> how many a careful player needs at most
    joined: bool = False  # whether a guess is written without separators


def _number_hint(secret: Cells, guess: Cells) -> str:
    if guess == secret:
        return FOUND
    return "The number is higher." if secret > guess else "The number is lower."


def _code_hint(secret: Cells, guess: Cells) -> str:
    if guess == secret:
        return FOUND
    placed = sum(a == b for a, b in zip(secret, guess, strict=True))
    shared = sum(min(secret.count(digit), guess.count(digit)) for digit in set(guess))
    return f"Right digit in the right place: {placed}. Right digit in a wrong place: {shared - placed}."


def _map_hint(secret: Cells, guess: Cells) -> str:
    if guess == secret:
        return FOUND
    down, right = secret[0] - guess[0], secret[1] - guess[1]
    vertical = "south" if down > 0 else "north" if down < 0 else ""
    horizontal = "east" if right > 0 else "west" if right < 0 else ""
    return f"The treasure lies {'-'.join(part for part in (vertical, horizontal) if part)} of there."


PUZZLES: Mapping[str, Puzzle] = {
    each.name: each
    for each in (
        Puzzle(
            "number",
            "I think of a whole number from 1 to {high}. After each guess I say whether it is higher or lower.",
            "12",
            (1,),
            (15, 31, 63, 127),
            _number_hint,
            lambda _, high: high.bit_length(),
        ),
        Puzzle(
            "code",
            "I have a secret code of {length} digits, each from 1 to {high}; a digit may stand in it more than once. "
            "After each guess I say how many of its digits are right and in the right place, and how many are right "
            "but in a wrong place.",
            "1" * 3,
            (3,),
            (3, 4, 5),
            _code_hint,
            lambda _, high: high + 3,
            joined=True,
        ),
        Puzzle(
            "map",
            "A treasure lies on a map of {high} rows and {high} columns. Rows count from 1 in the north, columns "
            "from 1 in the west. After each guess, row and then column, I say in which direction it lies.",
            "2, 3",
            (2,),
            (7, 15, 31),
            _map_hint,
            lambda _, high: high.bit_length(),
        ),
    )
}


class GuessingGame(Task):
    """Find what is hidden within a number of guesses; variants are the names of single puzzles."""

    feedback_modes = FEEDBACK_MODES

    def __init__(self, cfg: TaskConfig, variant: str = "") -> None:
        """Raises ConfigError for an unknown puzzle or feedback mode."""
        if variant and variant not in PUZZLES:
            choices = ", ".join(f"game:{name}" for name in (*PUZZLES, "library"))
            raise ConfigError(f"no variant {variant!r} of task game", where="task.name", fix=f"choose one of {choices}")
        names = [variant] if variant else list(PUZZLES)
        self.name = f"game:{variant}" if variant else "game"
        self.description = f"find what is hidden by asking: {', '.join(names)}"
        self.feedback = feedback_mode(self.name, cfg.feedback, FEEDBACK_MODES)
        self._splits = _splits(names, cfg.max_turns)
        self.max_turns = max(problem.private["guesses"] for split in SPLITS for problem in self._splits[split])

    def problems(self, split: Split) -> Sequence[Problem]:
        """Return the rows of one split; no secret of one range stands in both."""
        return self._splits[split]

    def reply(self, problem: Problem, answers: Sequence[str]) -> str | None:
        """Return the hint about the latest guess and how many are left; None if it was right or the last."""
        replies, left = _replies(problem, answers)[-1], problem.private["guesses"] - len(answers)
        if replies == FOUND or left <= 0:
            return None
        return f"{replies} You have {left} {'guess' if left == 1 else 'guesses'} left."

    def grade(self, problem: Problem, text: str, *, truncated: bool = False) -> Feedback:
        """Grade an episode of one answer."""
        return self.grade_turns(problem, (text,), truncated=truncated)

    def grade_turns(self, problem: Problem, answers: Sequence[str], *, truncated: bool = False) -> Feedback:
        """Return reward 1 if the last guess is right; the feedback covers every guess."""
        replies = _replies(problem, answers)
        if not truncated and replies[-1] == FOUND:
            return Feedback(1.0, True, "", "pass")
        unread = truncated or guess_in(problem, answers[-1]) is None
        return Feedback(
            0.0, False, self._report(problem, answers, replies, truncated), "invalid" if unread else "wrong"
        )

    def _report(self, problem: Problem, answers: Sequence[str], replies: Sequence[str], truncated: bool) -> str:
        if self.feedback == "none":
            return ""
        lines = [
            f"guess {n}, {_quoted(problem, a)}: {s}" for n, (a, s) in enumerate(zip(answers, replies, strict=True), 1)
        ]
        if truncated:
            lines[-1] = f"answer {len(answers)} was cut off at the token limit. {_format(problem)}"
        else:
            lines.append(f"The secret was not found within {len(answers)} of {problem.private['guesses']} guesses.")
        if self.feedback == "answer":
            lines.append(f"The secret was {shown(problem, problem.private['secret'])}.")
        return "\n".join(lines)


def guess_in(problem: Problem, answer: str) -> Cells | None:
    """The guess of the last line that has one, or of an answer that is nothing else; None if none can be read."""
    puzzle, length = PUZZLES[problem.private["puzzle"]], problem.private["length"]
    text = strip_thinking(answer)
    written = (_GUESS.findall(text) or [text if len(text) <= _SHOWN else ""])[-1]
    if puzzle.joined:
        digits = re.sub(r"[\s,.*-]", "", written)
        return tuple(int(d) for d in digits) if re.fullmatch(rf"[0-9]{{{length}}}", digits) else None
    found = tuple(int(number) for number in _DIGITS.findall(written))
    return found if len(found) == length else None


def shown(problem: Problem, cells: Cells) -> str:
    """Return a guess or a secret as it is written."""
    return ("" if PUZZLES[problem.private["puzzle"]].joined else ", ").join(map(str, cells))


def _replies(problem: Problem, answers: Sequence[str]) -> list[str]:
    """Return the reply to each answer; it names an earlier hint that a guess ignores."""
    hidden = problem.private
    hint = PUZZLES[hidden["puzzle"]].hint
    made, replies = list[tuple[int, Cells]](), []
    for number, answer in enumerate(answers, 1):
        guess = guess_in(problem, answer)
        if guess is None:
            replies.append(f"No guess can be read in that. {_format(problem)}")
            continue
        if not all(1 <= cell <= hidden["high"] for cell in guess):
            replies.append(f"That is outside: each number goes from 1 to {hidden['high']}.")
            continue
        broken = [n for n, before in made if hint(guess, before) != hint(hidden["secret"], before)]
        forgot = f" What was said to guess {broken[0]} had ruled it out." if broken else ""
        replies.append(hint(hidden["secret"], guess) + forgot)
        made.append((number, guess))
    return replies


def _quoted(problem: Problem, answer: str) -> str:
    guess = guess_in(problem, answer)
    return "unreadable" if guess is None else shown(problem, guess)


def _format(problem: Problem) -> str:
    return FORMAT.replace("{}", PUZZLES[problem.private["puzzle"]].example)


def _splits(names: Sequence[str], most: int | None) -> dict[Split, tuple[Problem, ...]]:
    """Return both splits, the puzzles mixed: a pure function of its arguments."""
    made: dict[Split, list[Problem]] = {"train": [], "held_out": []}
    for name in names:
        drawn = _draw(PUZZLES[name], most)
        for split, size in SIZES.items():
            made[split] += [next(drawn) for _ in range(size)]
    orders = {split: rng("game-order", split, *names).permutation(len(rows)) for split, rows in made.items()}
    return {split: tuple(made[split][int(i)] for i in order) for split, order in orders.items()}


def _draw(puzzle: Puzzle, most: int | None) -> Iterator[Problem]:
    """Yield different secrets without end, as long as there are any."""
    generator, seen = rng("game", puzzle.name), set[str]()
    while True:
        problem = _problem(puzzle, generator, most)
        if problem.id not in seen:
            seen.add(problem.id)
            yield problem


def _problem(puzzle: Puzzle, generator: np.random.Generator, most: int | None) -> Problem:
    length, high = int(generator.choice(puzzle.lengths)), int(generator.choice(puzzle.highs))
    secret = tuple(int(cell) for cell in generator.integers(1, high + 1, size=length))
    needed = puzzle.guesses(length, high)
    guesses = min(needed, most or needed)
    rules = puzzle.size.replace("{high}", str(high)).replace("{length}", str(length))
    text = f"{rules} Find it within {guesses} guesses, one in each answer. {FORMAT.replace('{}', puzzle.example)}"
    return Problem(
        id=f"{puzzle.name}-{high}-" + "-".join(map(str, secret)),
        messages=({"role": "user", "content": text},),
        private={"puzzle": puzzle.name, "secret": secret, "length": length, "high": high, "guesses": guesses},
        family=puzzle.name,
    )
