"""Time of a grade of the task `math`, one thread and eight, hostile answers too.

    python benchmarks/math_grades.py

Prints seconds until the first grade, then milliseconds per grade over the pairs of tests/data/math/pairs.jsonl as they
are, exchanged and with another sign (so that no verdict is remembered), over wrong whole numbers, and seconds of
hostile answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sdpo_mlx.tasks.math.formats import problem_from_row
from sdpo_mlx.tasks.math.task import MathTask

PAIRS = Path(__file__).resolve().parents[1] / "tests" / "data" / "math" / "pairs.jsonl"
HOSTILE = (
    "9^{9^{9^9}}",
    "(x+y+z+a+b)^{300}",
    "\\sum_{k=1}^{10^{10}} k^{k}",
    "e^{e^{e^{e^{e}}}}",
    "(" * 300 + "1" + ")" * 300,
    "-" * 600 + "1",
    "\\int_0^1 e^{x^x} dx",
    "100000000!",
)


def main() -> None:
    """Measure and print a table."""
    task = MathTask()
    print(f"first grade         {_seconds(task, [('1', '2')], 1):8.2f} s")
    pairs = [(row["gold"], row["answer"]) for row in map(json.loads, PAIRS.read_text(encoding="utf-8").splitlines())]
    _line("pairs, cold", task, pairs, 1)
    _line("pairs, warm", task, [(given, right) for right, given in pairs if "nswer" not in given], 1)
    _line("pairs, 8 threads", task, [(right, f"-({given})") for right, given in pairs], 8)
    _line("numbers", task, [("4711", str(number)) for number in range(500)], 1)
    _line("numbers, 8 threads", task, [("4712", str(number)) for number in range(500)], 8)
    took = _seconds(task, [("17", text) for text in HOSTILE], 1)
    print(f"hostile             {took / len(HOSTILE):8.2f} s a grade")
    mixed = [("18", text) for text in HOSTILE] + [("4713", str(number)) for number in range(500)]
    print(f"hostile + numbers   {_seconds(task, mixed, 8):8.2f} s for {len(mixed)}, 8 threads")


def _line(title: str, task: MathTask, questions: Sequence[tuple[str, str]], threads: int) -> None:
    print(f"{title:20}{1000 * _seconds(task, questions, threads) / len(questions):8.2f} ms a grade")


def _seconds(task: MathTask, questions: Sequence[tuple[str, str]], threads: int) -> float:
    rows = [(problem_from_row({"question": "?", "answer": right}, "x:1"), given) for right, given in questions]
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda row: task.grade(row[0], f"\\boxed{{{row[1]}}}"), rows):
            pass
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
