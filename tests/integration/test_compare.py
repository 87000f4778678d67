"""Two evaluations side by side: what is paired, what is significant, and how many more problems it would take."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from command import sdpo
from hypothesis import given
from hypothesis import settings as pace
from hypothesis import strategies as st
from sdpo_cli.commands.compare import as_document, as_lines
from small_runs import settings, trained

from sdpo_mlx.core.errors import DataError
from sdpo_mlx.evaluation import compare as module
from sdpo_mlx.evaluation.compare import Comparison
from sdpo_mlx.evaluation.evaluate import EvalDocument, read_evaluation

UNIT = st.floats(0, 1)


def saved(rewards: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    problems = [{"id": name, "family": "", "rewards": row} for name, row in rewards.items()]
    return {"target": "t", "task": "tiny", "seed": 0, "problems": problems, **more}


def compare(first: dict[str, Any], second: dict[str, Any]) -> Comparison:
    return module.compare(EvalDocument.from_document(first), EvalDocument.from_document(second))


def made(changes: list[float]) -> Comparison:
    """A comparison in which each problem changes so."""
    first = {str(i): [0.5] for i in range(len(changes))}
    return compare(saved(first), saved({str(i): [0.5 + change] for i, change in enumerate(changes)}))


def test_difference_is_paired_and_problems_are_named() -> None:
    first = saved({"a": [0, 0], "b": [1, 1], "c": [1, 0], "only": [1]})
    second = saved({"c": [0, 1], "b": [1, 0], "a": [1, 1], "new": [0], "newer": [0]})
    found = compare(first, second)
    assert found.difference == pytest.approx((1 - 0.5 + 0) / 3)
    assert [(p.id, p.change) for p in found.won] == [("a", 1.0)]
    assert [(p.id, p.change) for p in found.lost] == [("b", -0.5)]
    assert found.left_out == (1, 2, 0)
    assert found.scores[0].score == pytest.approx(0.5)
    lines = as_lines(["A", "B"], found)
    assert "B won 1, lost 1, even 1" in lines
    assert "problems left out: 1 only in A, 2 only in B" in lines
    document = as_document(["A", "B"], found)
    assert (document["problems"], document["even"], document["sentence"]) == (3, 1, lines[-1])


def test_scores_have_the_intervals_of_their_evaluations() -> None:
    sides = [saved({str(i): [float(i % k == 0), 0.5] for i in range(12)}) for k in (2, 3)]
    evaluations = [EvalDocument.from_document(side).scores for side in sides]
    for score, evaluation in zip(compare(*sides).scores, evaluations, strict=True):
        assert (score.score, score.low, score.high) == pytest.approx((evaluation.score, *evaluation.interval))


def test_a_problem_of_another_content_is_left_out() -> None:
    first, second = saved({"a": [1], "b": [1]}), saved({"a": [0], "b": [1]})
    for side, content in ((first, "x"), (second, "y")):
        side["problems"][0]["sha256"] = content
    found = compare(first, second)
    assert ([p.id for p in found.pairs], found.left_out) == (["b"], (0, 0, 1))


def test_nothing_in_common_is_one_clear_line() -> None:
    with pytest.raises(DataError, match="no problem in common") as caught:
        compare(saved({"a": [1]}), saved({"b": [1]}, task="code"))
    assert "tiny and code" in caught.value.line()


def test_notes_name_conditions_that_differ() -> None:
    found = compare(saved({"a": [1]}, samples=4), saved({"a": [1]}, samples=8))
    assert found.notes == ("samples differs: 4 and 8",)


def test_sentence_has_a_caveat_if_sampling_differs() -> None:
    rows = {str(i): [0.0] for i in range(12)}
    first = saved(rows, sampling={"temperature": 0.0})
    second = saved({name: [1.0] for name in rows}, sampling={"temperature": 1.0})
    assert (
        compare(first, second)
        .sentence()
        .endswith("sampled with different settings, and that alone may make a difference.")
    )
    assert "different settings" not in compare(first, {**second, "sampling": first["sampling"]}).sentence()


def test_difference_is_significant_for_a_clear_gain_and_a_clear_loss() -> None:
    gain, loss = made([0.3, 0.4, 0.5] * 8), made([-0.3, -0.4, -0.5] * 8)
    assert gain.significant
    assert loss.significant
    assert gain.needed == loss.needed == 0
    assert gain.sentence().startswith("The difference is significant")


def test_sentence_names_the_problems_needed_if_not_significant() -> None:
    found = made([0.5, -0.5, 0.5, -0.5, 0.5, 0.0, 0.0, 0.0])
    assert not found.significant
    spread, d = stdev([p.change for p in found.pairs]), found.difference
    assert found.needed == math.ceil((2.8 * spread / d) ** 2) - 8
    assert f"about {found.needed:,} more problems" in found.sentence()


@pace(deadline=None, max_examples=40)
@given(st.lists(UNIT, min_size=2, max_size=30), st.data())
def test_needed_problems_reach_the_power_formula(first: list[float], data: Any) -> None:
    second = data.draw(st.lists(UNIT, min_size=len(first), max_size=len(first)))
    sides = [saved({str(i): [value] for i, value in enumerate(each)}) for each in (first, second)]
    found = compare(*sides)
    changes = [b - a for a, b in zip(first, second, strict=True)]
    assert len(found.won) == sum(change > 1e-12 for change in changes)
    if found.needed is None:
        assert abs(fmean(changes)) < 1e-12
        assert "no difference" in found.sentence()
    elif found.needed:
        total = len(first) + found.needed
        assert 2.8 * stdev(changes) / math.sqrt(total) <= abs(found.difference) * (1 + 1e-6)
        assert "is not significant" in found.sentence()
    else:
        assert found.interval.low > 0 or found.interval.high < 0


def test_needed_problems_show_a_difference_with_80_percent_power() -> None:
    """Drawn at the size that `needed` gives for the true difference, most comparisons are significant, not half."""
    draw, mean, spread = np.random.default_rng(1), 0.15, 0.5
    total = math.ceil((2.8 * spread / mean) ** 2)
    believed = sum(made(list(draw.normal(mean, spread, total))).significant for _ in range(60))
    assert 40 <= believed <= 56  # 48 expected; at (1.96 s / d)^2 problems it would be 30


def test_difference_is_never_significant_with_fewer_than_six_different_problems() -> None:
    few, enough = made([0.5] * 5), made([0.5] * 6)
    assert few.interval.low > 0
    assert (few.significant, few.needed) == (False, 1)
    assert "chance" in few.sentence()
    assert enough.significant


def test_difference_is_rarely_significant_by_chance() -> None:
    draw, believed = np.random.default_rng(0), 0
    for _ in range(25):
        before, after = draw.random((2, 40)).round(2)
        believed += made([float(b - a) / 2 for a, b in zip(before, after, strict=True)]).significant
    assert believed <= 5  # more than 5 of 25 at 5 % each is one case in a thousand


def test_sentence_draws_no_conclusion_from_too_few_problems() -> None:
    one, none = made([0.5]), made([0.0, 0.0, 0.0])
    assert (one.needed, one.significant) == (None, False)
    assert "at least two" in one.sentence()
    assert none.needed is None
    assert "no problem was won or lost over these 3" in none.sentence()
    assert "even if 63% of all such problems differ" in none.sentence()  # 1 - 0.05 ** (1 / 3)
    assert "even out" in made([0.5, -0.5]).sentence()
    assert math.isnan(one.interval.low)
    assert all("nan" not in line for line in as_lines(["A", "B"], one))


DAMAGED = {
    "no json": "{",
    "no document": "[]",
    "no problems": "{}",
    "a reward of text": json.dumps(saved({"a": ["1"]})),
    "no number": '{"problems": [{"id": "a", "rewards": [NaN]}]}',
    "no rewards": json.dumps(saved({"a": []})),
    "an id that is none": '{"problems": [{"id": 3, "rewards": [1]}]}',
    "twice": '{"problems": [{"id": "a", "rewards": [1]}, {"id": "a", "rewards": [1]}]}',
    "a seed of text": json.dumps(saved({"a": [1]}, seed="x")),
    "deep": "[" * 50_000,
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_file_that_is_no_evaluation_is_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(DAMAGED[what])
    with pytest.raises(DataError, match=r"not a saved evaluation .*e\.json"):
        read_evaluation(tmp_path / "e.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small runs on different tasks."""
    folder = tmp_path_factory.mktemp("compare")
    small = {"train": {"steps": 1, "eval_every": 0}, "eval": {"problems": 2, "samples": 1}}
    rollout = {"problems_per_step": 1, "group_size": 2, "max_tokens": 12}
    for name, task in (("run", "tiny"), ("other", "tiny:mid")):
        cfg = settings(**small, rollout=rollout, task={"name": task})
        trained(folder / name, cfg)
        from sdpo_mlx.runs.folder import RunFolder

        RunFolder(folder / name).write_config(cfg)
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("SDPO_HOME", str(place / "home"))


def test_a_run_alone_is_compared_with_its_base_and_models_are_asked_like_the_run() -> None:
    code, out, err = sdpo("compare", "run", "--json", "--plain")
    assert code == 0, err
    found = json.loads(out)
    assert (found["first"]["name"], found["second"]["name"]) == ("the base of run", "run")
    assert found["problems"] == 2
    code, again, err = sdpo("compare", "tiny", "run", "--json", "--plain")
    assert err.count("2 rollouts from the cache") == 2  # the base's are those of the model
    assert {**json.loads(again), "first": {**json.loads(again)["first"], "name": "the base of run"}} == found
    assert list((Path("home") / "evals").iterdir())
    assert list((Path("run") / "evals").iterdir())
    assert sdpo("eval", "run", "--out", "saved.json", "--plain")[0] == 0
    code, out, _ = sdpo("compare", "saved.json", "run", "--json", "--plain")
    assert (code, json.loads(out)["difference"]["mean"]) == (0, 0.0)


def test_an_adapter_is_compared_with_its_model() -> None:
    code, out, err = sdpo(
        "compare", "tiny", "tiny", "--adapter-b", "run", "--task", "tiny", "--problems", "2", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["second"]["name"] == "tiny with run"


MISTAKES = [
    (["tiny"], 2, "nothing to compare it with"),
    (["run", "other"], 2, "different tasks (tiny and tiny:mid)"),
    (["run", "--adapter-a", "run"], 2, "own adapter"),
    (["config.yaml", "run"], 3, "not a saved evaluation"),
    (["run", "absent"], 2, "absent"),
]


@pytest.mark.parametrize(("words", "code", "told"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_is_one_line(words: list[str], code: int, told: str) -> None:
    Path("config.yaml").write_text("model: {name: tiny}\n")
    found, out, err = sdpo("compare", *words)
    assert (found, out) == (code, "")
    assert told in err.splitlines()[-1]
