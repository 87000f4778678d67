"""Write two sets of short Python functions with odd names, for `--task code --data`: one easy, one hard.

python benchmarks/functions.py --set hard --out hard.jsonl

Each row names the function and its two arguments, so a model has to read the sentence. Held out are other names for
the operations that are trained, and operations that are never trained.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ["quick_op", "solve_it", "do_step", "figure_out", "calc_it", "make_result"]
NAMES += ["run_job", "handle", "toolbox", "workout", "my_func", "blend"]
PAIRS = ["x y", "a b", "p q", "first second", "left right"]
TRAIN_ROWS, HELD_OUT_ROWS, NEW_ROWS = 6, 1, 4

Calls = list[tuple[Any, Any]]


@dataclass(frozen=True)
class Operation:
    """What a function returns, in words with the slots {0} and {1}, and as Python; which arguments it is tested on."""

    words: str
    apply: Callable[[Any, Any], Any]
    calls: Calls


NUMBERS: Calls = [(3, 2), (7, 5), (4, 4), (10, 3), (1, 8), (12, 6)]
RANGES: Calls = [(1, 4), (2, 2), (3, 6), (5, 9), (1, 7), (4, 5)]
TEXTS: Calls = [("abc", "d"), ("hello", "lo"), ("x", "yz"), ("banana", "an"), ("tree", "tree"), ("sun", "moon")]
LETTERS: Calls = [("banana", "a"), ("hello", "l"), ("tree", "x"), ("x", "x"), ("mississippi", "s"), ("abc", "c")]
CUTS: Calls = [("banana", 3), ("hello", 1), ("tree", 2), ("python", 4), ("xyz", 3), ("abcdef", 5)]
LISTS: Calls = [([1, 5, 2], 2), ([4, 4], 4), ([9, 0, 3, 7], 3), ([2], 1), ([6, 1, 8, 1], 1), ([5, 3], 6)]

EASY = (
    [
        Operation("the sum of {0} and {1}", lambda a, b: a + b, NUMBERS),
        Operation("the product of {0} and {1}", lambda a, b: a * b, NUMBERS),
        Operation("the larger of {0} and {1}", max, NUMBERS),
        Operation("{0} minus {1}", lambda a, b: a - b, NUMBERS),
        Operation("the remainder of {0} divided by {1}", lambda a, b: a % b, NUMBERS),
        Operation("True if {0} equals {1}, otherwise False", lambda a, b: a == b, NUMBERS),
        Operation("the square of {0} plus {1}", lambda a, b: a * a + b, NUMBERS),
        Operation("twice {0} plus {1}", lambda a, b: 2 * a + b, NUMBERS),
        Operation("the text {0} followed by the text {1}", lambda a, b: a + b, TEXTS),
        Operation("True if the text {1} occurs in the text {0}, otherwise False", lambda a, b: b in a, TEXTS),
    ],
    [
        Operation("the smaller of {0} and {1}", min, NUMBERS),
        Operation("three times {0} minus {1}", lambda a, b: 3 * a - b, NUMBERS),
        Operation("True if {0} is greater than {1}, otherwise False", lambda a, b: a > b, NUMBERS),
        Operation("the text {1} followed by the text {0}", lambda a, b: b + a, TEXTS),
    ],
)
HARD = (
    [
        Operation("the sum of the squares of {0} and {1}", lambda a, b: a * a + b * b, NUMBERS),
        Operation("the sum of the whole numbers from {0} to {1}", lambda a, b: sum(range(a, b + 1)), RANGES),
        Operation("{0} if {0} is even, otherwise {1}", lambda a, b: b if a % 2 else a, NUMBERS),
        Operation("how many numbers of the list {0} are greater than {1}", lambda a, b: sum(n > b for n in a), LISTS),
        Operation("the list {0} with {1} added to each number", lambda a, b: [n + b for n in a], LISTS),
        Operation("the list {0} without the number {1}", lambda a, b: [n for n in a if n != b], LISTS),
        Operation("how often the letter {1} occurs in the text {0}", lambda a, b: a.count(b), LETTERS),
        Operation("the first {1} letters of the text {0}", lambda a, b: a[:b], CUTS),
        Operation("the text {0} in reverse order followed by the text {1}", lambda a, b: a[::-1] + b, TEXTS),
        Operation(
            "True if the text {0} starts with the text {1}, otherwise False", lambda a, b: a.startswith(b), TEXTS
        ),
    ],
    [
        Operation("{1} if {0} is odd, otherwise {0}", lambda a, b: b if a % 2 else a, NUMBERS),
        Operation("how many numbers of the list {0} are smaller than {1}", lambda a, b: sum(n < b for n in a), LISTS),
        Operation("the last {1} letters of the text {0}", lambda a, b: a[-b:], CUTS),
        Operation("True if the text {0} ends with the text {1}, otherwise False", lambda a, b: a.endswith(b), TEXTS),
    ],
)
SETS = {"easy": EASY, "hard": HARD}


def rows(trained: Sequence[Operation], new: Sequence[Operation], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows of a set: names and arguments are drawn without repetition for each operation."""
    generator = random.Random(seed)
    forms = [(name, pair) for name in NAMES for pair in PAIRS]
    for number, operation in enumerate([*trained, *new]):
        counts = (TRAIN_ROWS, HELD_OUT_ROWS) if number < len(trained) else (0, NEW_ROWS)
        for at, (name, pair) in enumerate(generator.sample(forms, sum(counts))):
            arguments = pair.split()
            calls = generator.sample(operation.calls, len(operation.calls))
            yield {
                "id": f"{number}-{at}",
                "statement": f"Write a Python function {name}({', '.join(arguments)}) that returns "
                f"{operation.words.format(*arguments)}.",
                "entry": name,
                "split": "train" if at < counts[0] else "held_out",
                "tests": [
                    {"args": [*call], "expected": operation.apply(*call), "public": at < 2}
                    for at, call in enumerate(calls)
                ],
            }


def write(path: Path, name: str) -> None:
    """Write the set `name`, "easy" or "hard", one row a line."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows(*SETS[name])), encoding="utf-8")


def main() -> None:
    """Write one set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="hard")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write(options.out, options.set)


if __name__ == "__main__":
    main()
