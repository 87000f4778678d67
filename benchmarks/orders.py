"""A task of one's own that a small model cannot do: orders in plain words to a JSON object, with feedback on each key.

    sdpo train --model smollm2 --task benchmarks/orders.py --steps 8

SmolLM2-135M never writes one, neither alone nor with feedback, so that there is nothing to distil. docs/results.md has
what the probe says beforehand and which warnings the run gives.
"""

from __future__ import annotations

import json
from typing import Any

ITEMS = ("apples", "candles", "chairs", "books", "lamps", "mugs", "pens", "shirts")
CITIES = ("Paris", "Oslo", "Lima", "Cairo", "Delhi", "Kyoto")
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMS = (
    "Please send {word} {item} to {city} by {day}.",
    "We need {word} {item} in {city}, delivered on {day}.",
    "{city} is waiting for {word} {item}; they must arrive on {day}.",
)
ASK = 'Write the order as a JSON object with the keys "item", "quantity" (a number), "city" and "day".'


def problems() -> list[dict[str, Any]]:
    """Return 96 orders; every fourth is held out."""
    rows = []
    for at in range(96):
        item, city, day = (names[(at * step) % len(names)] for names, step in ((ITEMS, 3), (CITIES, 5), (DAYS, 7)))
        word = (at * 5 + at // 8) % len(NUMBERS)
        order = FORMS[at % len(FORMS)].format(word=NUMBERS[word], item=item, city=city, day=day)
        gold = {"item": item, "quantity": word + 2, "city": city, "day": day}
        split = "held_out" if at % 4 == 3 else "train"
        rows.append({"id": f"order-{at}", "prompt": f"{order}\n{ASK}", "gold": gold, "split": split})
    return rows


def grade(problem: dict[str, Any], answer: str) -> tuple[float, str]:
    """Return the reward, and what is wrong with each key."""
    try:
        found = json.loads(answer.strip())
    except ValueError:
        return 0.0, "The answer is not a JSON object and nothing else."
    if not isinstance(found, dict):
        return 0.0, "The answer is JSON, but not an object."
    wrong = [f'"{key}" is missing.' for key in problem["gold"] if key not in found]
    wrong += [f'"{key}" is not asked for.' for key in found if key not in problem["gold"]]
    for key, value in problem["gold"].items():
        if key in found and found[key] != value:
            wrong.append(f'"{key}" is {json.dumps(found[key])[:40]}, but the order says {json.dumps(value)}.')
    return (1.0, "") if not wrong else (0.0, " ".join(wrong))
