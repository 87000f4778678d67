"""Each shipped rubric row can be met, and is not met by saying nothing or anything."""

from __future__ import annotations

import pytest

from sdpo_mlx.tasks.rubric.task import RubricTask

GOOD = {
    "capital-json": '{"country": "France", "capital": "Paris"}',
    "primes-json": "```json\n[2, 3, 5, 7, 11]\n```",
    "contact-json": '{"name": "Mira", "age": 31, "city": "Lisbon"}',
    "todo-json": '["buy a cake", "invite friends", "blow up balloons"]',
    "sky-30": "Molecules of air scatter the short waves of blue light far more than the long waves of red light.",
    "moon-one-sentence": "The Moon takes as long to rotate once as it takes to orbit the Earth.",
    "haiku-lines": "Rain taps on the roof\nA quiet gutter answers\nThe garden drinks deep",
    "tea-50": "Boil fresh water, pour it over a bag of tea in a cup, wait for three or four minutes, take the bag out, "
    "and add milk or sugar.",
    "one-word": "Mercury",
    "tweet": "Our little bookshop opens on Friday at noon. Come by, stay for a story!",
    "greeting-german": "Ich mag am Herbst die bunten Blätter und die klare Luft. Es ist nicht mehr so heiß.",
    "weather-french": "Il fait beau et le ciel est bleu, mais un vent froid souffle sur la ville.",
    "recipe-spanish": "Pon el huevo en agua con un poco de sal y cuécelo durante ocho minutos. Luego se enfría.",
    "stay-english": "My favourite meal is a bowl of soup with bread, because it is warm and simple.",
    "fruit-bullets": "- apple\n- pear\n- plum\n- cherry\n- fig",
    "steps-numbered": "1. Dig a hole.\n2. Put the tree in.\n3. Fill the hole with earth.\n4. Water it.",
    "comma-list": "violin, flute, drum, harp",
    "table": "| Animal | Legs |\n|---|---|\n| Cat | 4 |\n| Hen | 2 |\n| Ant | 6 |",
    "end-question": "A garden pays you back for every hour that you spend in it. What do you grow?",
    "start-dear": "Dear Ana,\nthank you for the plums.\nKind regards",
    "upper-case": "CAUTION: WET PAINT! DO NOT TOUCH.",
    "no-letter-e": "A big dog ran past my door.",
    "verdict-line": "91 is 7 times 13.\nVerdict: no",
    "polite-short": "We open at 9 o'clock. You are welcome then.",
}
NEAR = {
    "capital-json": '{"country": "France", "capital": "Lyon"}',
    "primes-json": "[1, 2, 3, 5, 7]",
    "contact-json": '{"name": "Mira", "age": "31", "city": "Lisbon"}',
    "moon-one-sentence": "The Moon rotates. It also orbits.",
    "one-word": "Mercury.",
    "greeting-german": "I like the colours of the leaves in autumn and the clear air.",
    "comma-list": "violin, flute, drum",
    "verdict-line": "91 has no small factors.\nVerdict: yes",
    "no-letter-e": "The dog ran past my big door.",
    "start-dear": "Dear Ana,\nthank you.\nKind regards\nBo",
}


def test_rows_are_enough_and_a_fifth_is_held_out() -> None:
    task = RubricTask()
    train, held_out = task.problems("train"), task.problems("held_out")
    assert len(train) + len(held_out) >= 24
    assert 4 <= len(held_out) <= 6
    assert {problem.id.removeprefix("rubric/") for problem in [*train, *held_out]} == set(GOOD)


@pytest.mark.parametrize("name", GOOD)
def test_good_answer_meets_every_check_of_its_row(name: str) -> None:
    task = RubricTask()
    problem = next(p for p in [*task.problems("train"), *task.problems("held_out")] if p.id == f"rubric/{name}")
    verdict = task.grade(problem, GOOD[name])
    assert (verdict.text, verdict.reward, verdict.success) == ("", 1.0, True)
    for other, answer in GOOD.items():
        if other != name:
            assert not task.grade(problem, answer).success, other


@pytest.mark.parametrize("name", NEAR)
def test_near_miss_earns_a_share_and_a_sentence(name: str) -> None:
    task = RubricTask()
    problem = next(p for p in task.problems("train") if p.id == f"rubric/{name}")
    verdict = task.grade(problem, NEAR[name])
    assert not verdict.success
    assert 0 < verdict.reward < 1
    lines = verdict.text.splitlines()
    assert len(lines) == len(problem.private["checks"])
    assert any(line.startswith("ok: ") for line in lines)
    assert any(not line.startswith("ok: ") for line in lines)
