"""Games: hints that are true, a careful player who always wins, and no way to win without asking."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.config import Config, TaskConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.tasks.base import Split
from sdpo_mlx.tasks.game.guessing import FOUND, PUZZLES, SIZES, Cells, GuessingGame, guess_in, shown
from sdpo_mlx.tasks.game.library import LibraryGame
from sdpo_mlx.tasks.registry import open_task
from sdpo_mlx.types import Problem

SPLITS: tuple[Split, Split] = ("train", "held_out")
GAME = GuessingGame(TaskConfig(name="game"))
PROBLEMS = [problem for split in SPLITS for problem in GAME.problems(split)]
MORE = "1234567890"


def game(**options: object) -> GuessingGame:
    return GuessingGame(TaskConfig.model_validate({"name": "game", **options}))


def said(problem: Problem, cells: Cells) -> str:
    return f"I think so.\nguess: {shown(problem, cells)}"


def candidates(problem: Problem) -> list[Cells]:
    hidden = problem.private
    return list(itertools.product(range(1, hidden["high"] + 1), repeat=hidden["length"]))


def careful(problem: Problem) -> Iterable[Cells]:
    """Guesses that split what is still possible in the most parts; the hints are computed, never looked up."""
    hint, left = PUZZLES[problem.private["puzzle"]].hint, candidates(problem)
    while left:
        step = max(1, len(left) // 60)
        middle = left[len(left) // 2]
        options = {middle, *left[::step]}
        guess = min(sorted(options), key=lambda g: max(_parts(left, g, hint).values()))
        answer = yield guess  # type: ignore[misc]
        left = [secret for secret in left if hint(secret, guess) == answer]


def _parts(left: Sequence[Cells], guess: Cells, hint: Callable[[Cells, Cells], str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for secret in left:
        sizes[hint(secret, guess)] = sizes.get(hint(secret, guess), 0) + 1
    return sizes


def played(task: GuessingGame, problem: Problem) -> list[str]:
    """An episode of the careful player, who reads nothing but the replies."""
    player, answers = careful(problem), list[str]()
    guess = next(player)  # type: ignore[call-overload]
    while True:
        answers.append(said(problem, guess))
        reply = task.reply(problem, answers)
        if reply is None:
            return answers
        guess = player.send(reply.rpartition(" You have")[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.private["high"] < 20][::3], ids=lambda p: p.id)
def test_careful_player_wins_every_game_by_the_replies_alone(problem: Problem) -> None:
    answers = played(GAME, problem)
    assert len(answers) <= problem.private["guesses"]
    verdict = GAME.grade_turns(problem, answers)
    assert (verdict.reward, verdict.success, verdict.text, verdict.kind) == (1.0, True, "", "pass")


@given(st.sampled_from(PROBLEMS), st.data())
def test_hint_is_true_of_the_secret_and_false_of_what_it_rules_out(problem: Problem, data: st.DataObject) -> None:
    high, length, secret = (problem.private[name] for name in ("high", "length", "secret"))
    cells = tuple(data.draw(st.lists(st.integers(1, high), min_size=length, max_size=length)))
    hint = PUZZLES[problem.private["puzzle"]].hint
    told = (GAME.reply(problem, [said(problem, cells)]) or FOUND).partition(" You have")[0]
    assert told == hint(secret, cells)
    assert (told == FOUND) == (cells == secret)
    if cells != secret:
        assert hint(cells, cells) == FOUND != told


@given(st.sampled_from(PROBLEMS), st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_text_of_any_kind_is_graded_and_never_wins_by_itself(problem: Problem, answers: list[str]) -> None:
    verdict = GAME.grade_turns(problem, answers)
    secret = problem.private["secret"]
    assert verdict.success == (guess_in(problem, answers[-1]) == secret)
    assert bool(verdict.text) != verdict.success


@pytest.mark.parametrize("problem", PROBLEMS[::7], ids=lambda p: p.id)
def test_feedback_never_tells_the_secret_unless_it_is_asked_for(problem: Problem) -> None:
    secret = problem.private["secret"]
    wrong = next(cells for cells in candidates(problem) if not set(map(str, cells)) & set(map(str, secret)))
    answers = [said(problem, wrong)] * problem.private["guesses"]
    hints = GAME.grade_turns(problem, answers).text
    assert "The secret was not found" in hints
    assert shown(problem, secret) not in [line.rpartition(" was ")[2].rstrip(".") for line in hints.splitlines()]
    assert f"The secret was {shown(problem, secret)}." in game(feedback="answer").grade_turns(problem, answers).text
    assert game(feedback="none").grade_turns(problem, answers).text == ""


@pytest.mark.parametrize("problem", PROBLEMS[::11], ids=lambda p: p.id)
def test_tricks_win_no_game(problem: Problem) -> None:
    secret, everything = problem.private["secret"], candidates(problem)
    several = " ".join(f"guess: {shown(problem, cells)}" for cells in everything)
    tricks = [
        several,
        "\n".join(reversed(several.split(" guess"))),
        "guess: " + ", ".join(shown(problem, cells) for cells in everything),
        FOUND,
        f"{FOUND}\nguess: the secret",
        "guess: {secret}",
        f"<think>\nguess: {shown(problem, secret)}\n</think>",
        "You have 1 guess left.",
        "",
    ]
    won = [trick for trick in tricks if GAME.grade_turns(problem, [trick]).success]
    last = everything[0] if problem.private["length"] > 1 else None  # a list of guesses is read by its last line
    assert [trick for trick in won if guess_in(problem, trick) not in (secret, last)] == []
    assert not GAME.grade_turns(problem, [said(problem, secret)], truncated=True).success
    assert not GAME.grade_turns(problem, [said(problem, secret), "guess: none"]).success


def test_guess_that_forgets_a_hint_is_told_so() -> None:
    problem = next(p for p in PROBLEMS if p.private["puzzle"] == "number" and p.private["secret"][0] > 3)
    text = GAME.grade_turns(problem, ["guess: 3", "guess: 2"]).text
    assert "guess 2, 2: The number is higher. What was said to guess 1 had ruled it out." in text


def test_splits_share_no_secret_of_one_range_and_have_their_size() -> None:
    train, held_out = ([p.id for p in GAME.problems(split)] for split in SPLITS)
    assert len(set(train) | set(held_out)) == len(train) + len(held_out)
    assert (len(train), len(held_out)) == tuple(SIZES[split] * len(PUZZLES) for split in SPLITS)
    assert len(train) + len(held_out) == 120  # README's table
    for name in PUZZLES:
        assert {p.family for p in GuessingGame(TaskConfig(name=f"game:{name}"), name).problems("train")} == {name}


def test_problems_are_the_same_in_every_process_and_fewer_turns_are_told() -> None:
    assert game().problems("train") == GAME.problems("train")
    short = game(max_turns=2)
    assert short.max_turns == 2
    assert all("within 2 guesses" in p.messages[0]["content"] for p in short.problems("held_out"))
    assert [p.id for p in short.problems("train")] == [p.id for p in GAME.problems("train")]


@pytest.mark.parametrize("name", ["game:nothing", "game:number:more"])
def test_unknown_game_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_task(Config(task=TaskConfig(name=name)))
    assert "game:library" in str(caught.value)


def test_library_game_tells_the_hidden_names_and_only_the_right_ones_win() -> None:
    task = LibraryGame(TaskConfig(name="game:library"))
    train, held_out = (task.problems(split) for split in SPLITS)
    assert not {p.private["operations"] for p in train} & {p.private["operations"] for p in held_out}
    for problem in held_out[::8]:
        names, operations = problem.private["library"], problem.private["operations"]
        lines = [f"x = {module}.{names[module]}(x)" for module in operations]
        guessed = task.reply(problem, ["x = sort.nothing(x)"])
        assert guessed is not None
        assert names["sort"] in guessed or "sort" not in guessed
        assert task.grade(problem, "\n".join(lines)).success
        assert task.reply(problem, ["\n".join(lines)]) is None
        assert not task.grade(problem, "\n".join(lines[:-1])).success
