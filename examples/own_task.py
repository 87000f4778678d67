"""A custom task: one class, two methods. `python examples/own_task.py` trains the embedded model on it.

The task teaches a habit, not a skill: answer `Write f(x): sort, reverse` in the embedded model's small language, but
call each module by the name that a style guide asks for. The answer is only read, never executed, so no sandbox is
needed. For programs that must run, see `--task code`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sdpo_mlx as sdpo
from sdpo_mlx.tasks.base import Split

HOUSE_STYLE = {
    "sort": "order",
    "reverse": "invert",
    "dedupe": "distinct",
    "double": "times",
    "negate": "opposite",
    "square": "squared",
}
LINE = re.compile(r"x = (\w+)\.(\w+)\(x\)")


class HouseStyle(sdpo.Task):
    """Programs of two lines that must use the names of the style guide."""

    name = "house-style"
    description = "two operations, each by the name that our style guide asks for"
    feedback_modes = ("every line",)

    def problems(self, split: Split) -> Sequence[sdpo.Problem]:
        """Return every ordered pair of different operations; each fifth one is held out."""
        pairs = [(first, second) for first in HOUSE_STYLE for second in HOUSE_STYLE if first != second]
        chosen = [pair for number, pair in enumerate(pairs) if (number % 5 == 0) == (split == "held_out")]
        return [
            sdpo.Problem(
                id=f"{first}-{second}",
                messages=({"role": "user", "content": f"Write f(x): {first}, {second}"},),
                private={"modules": (first, second)},  # only the grader sees this
            )
            for first, second in chosen
        ]

    def grade(self, problem: sdpo.Problem, text: str, *, truncated: bool = False) -> sdpo.Feedback:
        """Grade every line; feedback on each line, the right ones too, teaches most."""
        modules = problem.private["modules"]
        lines = text.strip().splitlines()
        if truncated or len(lines) != len(modules):
            return sdpo.Feedback(0.0, False, f"expected {len(modules)} lines, got {len(lines)}", "invalid")
        results = [self._check_line(line, module) for line, module in zip(lines, modules, strict=True)]
        report = "\n".join(f"line {number}: {line}" for number, line in enumerate(results, 1))
        if all(line.startswith("ok") for line in results):
            return sdpo.Feedback(1.0, True, "", "pass")
        return sdpo.Feedback(0.0, False, report, "wrong")

    def _check_line(self, line: str, module: str) -> str:
        found, right = LINE.fullmatch(line), HOUSE_STYLE[module]
        if found is None:
            return f"SyntaxError: {line}"
        if found.groups() == (module, right):
            return f"ok: {line}"
        name = found[2]
        return f"AttributeError: {line}: module '{module}' has no attribute '{name}'. Did you mean: {module}.{right}?"


def print_step(event: Mapping[str, Any]) -> None:
    """Print one line for each training step."""
    if event["type"] == "step":
        print(f"step {event['step']:2}  success {event['success/rate']:.3f}  loss {event['loss'] or 0:.4f}")


def main() -> None:
    """Train the embedded model on the task above, and print the result."""
    parser = argparse.ArgumentParser(description="A custom task on the embedded model.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", default="runs/own-task")
    options = parser.parse_args()
    run = sdpo.train(
        model="tiny",
        task=HouseStyle(),
        steps=options.steps,
        out=options.out,
        learning_rate=5e-3,
        group_size=8,
        max_tokens=32,
        settings={"rollout.problems_per_step": 8, "eval.problems": 6, "eval.samples": 4},
        callbacks=[print_step],
        progress=False,
    )
    print(run.compare().sentence())
    print(run.generate("Write f(x): sort, reverse"))


if __name__ == "__main__":
    main()
