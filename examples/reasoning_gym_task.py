"""Use any dataset of reasoning-gym as a task; its name follows the file's:

    pip install reasoning-gym
    sdpo tasks check examples/reasoning_gym_task.py:leg_counting
    sdpo train --model qwen --task examples/reasoning_gym_task.py:leg_counting

reasoning-gym (Apache-2.0) generates the problems and scores the answers, some with partial credit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import reasoning_gym

TRAIN, HELD_OUT = 400, 100
FORMAT = "Put your final answer, and nothing else, between <answer> and </answer>."


class ReasoningGym:
    """One dataset; `variant` is its name."""

    def __init__(self, variant: str = "leg_counting") -> None:
        # One dataset in two parts: entry i uses seed + i, so datasets with neighbouring seeds would share entries
        self.data = reasoning_gym.create_dataset(variant, size=TRAIN + HELD_OUT, seed=0)

    def problems(self) -> Iterator[dict[str, Any]]:
        """Yield every question once, the first of equal ones."""
        seen = set[str]()
        for number, entry in enumerate(self.data):
            if entry["question"] not in seen:
                seen.add(entry["question"])
                split = "train" if number < TRAIN else "held_out"
                yield {"id": str(number), "prompt": f"{entry['question']}\n\n{FORMAT}", "split": split, "entry": entry}

    def grade(self, problem: dict[str, Any], text: str) -> tuple[float, str]:
        """Return the dataset's score and feedback, without the right answer."""
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
        """Return a right answer, for `sdpo tasks check`."""
        return f"<answer>{problem['entry']['answer']}</answer>"
