"""Any data set of reasoning-gym as a task, its name behind the file's:

    pip install reasoning-gym
    sdpo tasks check examples/reasoning_gym_task.py:leg_counting
    sdpo train --model qwen --task examples/reasoning_gym_task.py:leg_counting

reasoning-gym (Apache-2.0) generates the problems and scores the answers, some of them in part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import reasoning_gym

TRAIN, HELD_OUT = 400, 100
FORMAT = "Put your final answer, and nothing else, between <answer> and </answer>."


class ReasoningGym:
    """One data set; `variant` is its name."""

    def __init__(self, variant: str = "leg_counting") -> None:
        # One data set, cut in two: entry i draws with seed + i, so that neighbouring seeds would share entries.
        self.data = reasoning_gym.create_dataset(variant, size=TRAIN + HELD_OUT, seed=0)

    def problems(self) -> Iterator[dict[str, Any]]:
        """Every question once; where the data set repeats itself, the first one counts."""
        seen = set[str]()
        for number, entry in enumerate(self.data):
            if entry["question"] not in seen:
                seen.add(entry["question"])
                split = "train" if number < TRAIN else "held_out"
                yield {"id": str(number), "prompt": f"{entry['question']}\n\n{FORMAT}", "split": split, "entry": entry}

    def grade(self, problem: dict[str, Any], text: str) -> tuple[float, str]:
        """The data set's own score, and what it was given for; the right answer is not told."""
        found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        if not found:
            return 0.0, f"No answer was found. {FORMAT}"
        answer = found[-1].strip()
        score = float(self.data.score_answer(answer=answer, entry=problem["entry"]))
        if score >= 1:
            return 1.0, ""
        part = f"partly right ({score:.2f} of 1)" if score > 0 else "not right"
        return score, f"The answer {answer!r} is {part}."

    def solution(self, problem: dict[str, Any]) -> str:
        """An answer known to be right, for `sdpo tasks check`."""
        return f"<answer>{problem['entry']['answer']}</answer>"
