"""Kept answers: never another result than without them, whatever became of the file, and never for another question."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from command import sdpo
from hypothesis import given
from hypothesis import settings as pace
from hypothesis import strategies as st
from small_runs import settings

from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.evaluation.cache import CachedRollout, RolloutCache, problem_key, problem_sha256, rollout_cache
from sdpo_mlx.evaluation.evaluate import EvalDocument, Evaluation, _parts, evaluate, read_evaluation
from sdpo_mlx.evaluation.spec import EvalSpec, eval_spec
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.types import Feedback

SETTINGS = settings(
    rollout={"max_tokens": 12, "concurrency": 3}, eval={"problems": 4, "samples": 2}, model={"adapter": {"rank": 2}}
)


@cache
def setup() -> Components:
    return build_components(SETTINGS)


@cache
def plainly(samples: int = 2) -> Evaluation:
    """The result without anything kept, all at once."""
    return evaluate(setup().policy, setup().task, setup().chat, replace(eval_spec(setup()), samples=samples))


class Counted:
    """The policy, which counts the answers that it was asked for."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.asked, self.calls = policy, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def generate(self, prompts: Any, sampling: Any, seeds: Any, interrupted: Any) -> Iterator[Any]:
        self.asked, self.calls = self.asked + sum(map(len, seeds)), self.calls + 1
        return self.policy.generate(prompts, sampling, seeds, interrupted)


def score(path: Path, exam: EvalSpec | None = None, task: Any = None, **options: Any) -> tuple[Evaluation, int]:
    """The result with what the file holds, and how many answers were sampled for it."""
    parts = setup()
    policy: Any = Counted(parts.policy)
    exam = exam or eval_spec(parts)
    return evaluate(policy, task or parts.task, parts.chat, exam, cache=RolloutCache(path), **options), policy.asked


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of all answers of the exam."""
    path = tmp_path_factory.mktemp("kept") / "deep" / "answers.jsonl"
    found, asked = score(path)
    assert (found, asked) == (plainly(), 8)
    return path.read_bytes()


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "answers.jsonl"
    path.write_bytes(content)
    return path


def test_a_repeated_exam_samples_nothing_and_is_the_same(kept: bytes, tmp_path: Path) -> None:
    path = file_of(tmp_path, kept)
    assert score(path) == (plainly(), 0)
    assert path.read_bytes() == kept
    assert len(RolloutCache(path)) == 8


def test_more_answers_and_more_problems_only_add(kept: bytes, tmp_path: Path) -> None:
    path = file_of(tmp_path, kept)
    assert score(path, replace(eval_spec(setup()), samples=4)) == (plainly(4), 8)
    assert path.read_bytes().startswith(kept)
    assert score(path) == (plainly(), 0)  # and fewer take theirs


@pytest.mark.parametrize("share", [0.0, 0.3, 0.62, 0.999])
def test_a_cut_off_file_gives_the_same_result(share: float, kept: bytes, tmp_path: Path) -> None:
    path = file_of(tmp_path, kept[: int(share * len(kept))])
    whole = path.read_bytes().count(b"\n")
    assert score(path) == (plainly(), 8 - whole)
    assert score(path) == (plainly(), 0)  # what came after the torn line is readable


@pace(deadline=None, max_examples=50)
@given(st.data())
def test_no_damaged_byte_changes_an_answer(data: Any) -> None:
    answer = CachedRollout(7, ("first\n", "x = \ud800"), 0.5, True, "pass", "\x1b[31m", "stop", 3)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        RolloutCache(path).add([("k", "p", answer)])
        line = bytearray(path.read_bytes())
        assert RolloutCache(path).find("k", 7) == answer
        line[data.draw(st.integers(0, len(line) - 2))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(line)
        assert RolloutCache(path).find("k", 7) in (None, answer)


def test_foreign_lines_are_passed_over(kept: bytes, tmp_path: Path) -> None:
    noise = b'\x00\xff\n{}\n[]\n3\n{"sha256": 1}\n' + b"[" * 20_000 + b"\n"
    assert score(file_of(tmp_path, noise + kept)) == (plainly(), 0)


def test_an_interrupted_exam_goes_on_where_it_was(tmp_path: Path) -> None:
    path, told = tmp_path / "answers.jsonl", []
    with pytest.raises(KeyboardInterrupt):
        score(path, interrupted=lambda: told.count((6, 8)) >= 2, on_progress=lambda *how: told.append(how))
    assert told == [(n, 8) for n in (0, 0, 1, 2, 3, 4, 5, 6, 6, 6)]
    assert score(path) == (plainly(), 2)


def test_what_could_not_be_graded_is_asked_again(tmp_path: Path) -> None:
    class Broken(Task):
        def grade(self, problem: Any, text: str, *, truncated: bool = False) -> Feedback:
            if problem.id == first:
                raise RuntimeError("the judge is away")
            return setup().task.grade(problem, text, truncated=truncated)

    first = eval_spec(setup()).problems[0].id
    found, _ = score(tmp_path / "answers.jsonl", task=Broken())
    assert found.problems[0].answers[0].kind == "grader_error"
    assert score(tmp_path / "answers.jsonl") == (plainly(), 2)


def test_another_content_of_a_problem_misses(kept: bytes, tmp_path: Path) -> None:
    exam = eval_spec(setup())
    problems = list(exam.problems)
    problems[0] = replace(problems[0], messages=({"role": "user", "content": "Write f(x): negate"},))
    problems[1] = replace(problems[1], private={**problems[1].private, "more": 1})
    assert score(file_of(tmp_path, kept), replace(exam, problems=problems))[1] == 4


def test_a_problem_is_told_by_what_it_holds_not_by_where_it_lies() -> None:
    problem = eval_spec(setup()).problems[0]
    one, two = (replace(problem, private={"value": object(), "set": {2, 1}}) for _ in range(2))
    assert problem_sha256(one) == problem_sha256(two) != problem_sha256(problem)
    ids = np.arange(5, dtype=np.int32)
    assert problem_key(one, ids) == problem_key(two, ids) != problem_key(one, ids[:4])


CHANGES: dict[str, dict[str, Any]] = {
    "temperature": {"eval": {"temperature": 0.5}},
    "top_p": {"eval": {"top_p": 0.9}},
    "max_tokens": {"eval": {"max_tokens": 5}},
    "task": {"task": {"name": "tiny:mid"}},
    "feedback": {"task": {"feedback": "none"}},
    "thinking": {"model": {"thinking": True}},
    "sandbox": {"sandbox": {"seconds": 1.0}},
    "judge": {"judge": {"endpoint": "http://127.0.0.1:1/v1"}},
}
EQUAL: dict[str, dict[str, Any]] = {
    "seed": {"train": {"seed": 5}},  # part of each answer's own place
    "samples": {"eval": {"samples": 9}},
    "concurrency": {"rollout": {"concurrency": 64}},
    "rank of an untouched adapter": {"model": {"adapter": {"rank": 4}}},
}


def changed(sections: dict[str, Any]) -> Config:
    tree = SETTINGS.model_dump()
    for section, keys in sections.items():
        for key, value in keys.items():
            tree[section][key] = {**tree[section][key], **value} if isinstance(value, dict) else value
    return Config.model_validate(tree)


def name_of(cfg: Config, adapter: Path | None = None, **parts: Any) -> str:
    other = replace(setup(), cfg=cfg, **parts)
    return rollout_cache(other, eval_spec(other), adapter).path.name


@pytest.mark.parametrize("what", [*CHANGES, *EQUAL])
def test_answers_are_kept_apart_by_what_they_depend_on(what: str) -> None:
    same = name_of(changed(EQUAL[what])) if what in EQUAL else name_of(changed(CHANGES[what]))
    assert (same == name_of(SETTINGS)) == (what in EQUAL)


def test_other_weights_tokenizers_and_adapters_are_kept_apart(tmp_path: Path) -> None:
    model, names = setup().model, [name_of(SETTINGS)]
    names.append(name_of(SETTINGS, model=replace(model, weights_sha256="another")))
    for weights in (b"one", b"two"):
        (tmp_path / "adapter_config.json").write_text("{}")
        (tmp_path / "adapters.safetensors").write_bytes(weights)
        names.append(name_of(SETTINGS, tmp_path))
    names.append(name_of(changed({"model": {"adapter": {"scale": 1.0}}}), tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"a": 1}')
    names.append(name_of(SETTINGS, tmp_path))
    assert len(set(names)) == 6
    assert name_of(SETTINGS) == names[0]


@pace(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 5), max_size=12), st.integers(1, 9))
def test_parts_hold_every_place_once_and_problems_whole(sizes: list[int], size: int) -> None:
    places = [(at, n) for at, count in enumerate(sizes) for n in range(count)]
    parts = list(_parts(places, size))
    assert [place for part in parts for place in part] == places
    owners = [{at for at, _ in part} for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners))
    assert all(len(part) - sum(at == part[-1][0] for at, _ in part) < size for part in parts)


def test_the_command_keeps_saves_and_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDPO_HOME", str(tmp_path / "home"))
    words = [
        "eval",
        "tiny",
        "--problems",
        "3",
        "--group-size",
        "2",
        "--set",
        "rollout.max_tokens=12",
        "--plain",
        "--json",
    ]
    code, out, _ = sdpo(*words, "--no-cache")
    assert code == 0
    assert not (tmp_path / "home").exists()
    assert sdpo(*words, "--out", "absent/e.json")[0] == StorageError.exit_code
    first, second = (json.loads(sdpo(*words, "--out", "e.json")[1]) for _ in range(2))
    assert (first["kept"]["answers"], second["kept"]["answers"]) == (0, 6)
    apart = ("kept", "seconds")
    for found in (first, second):
        assert {k: v for k, v in found.items() if k not in apart} == {
            k: v for k, v in json.loads(out).items() if k not in apart
        }
    assert sum(family["n"] for family in first["families"]) == 3
    saved = read_evaluation(tmp_path / "e.json")
    document = json.loads((tmp_path / "e.json").read_bytes())
    assert EvalDocument.from_document(document) == saved
    assert {**json.loads(json.dumps(saved.to_document())), "answers": document["answers"]} == document
    lines = [json.loads(line) for line in Path(document["answers"]).read_bytes().splitlines()]
    assert len(lines) == 6
    assert set(lines[0]) == {"problem", "seed", "answer", "reward", "success", "kind", "feedback", "finish", "tokens"}
    assert [line["reward"] for line in lines] == [reward for p in saved.scores.problems for reward in p.rewards]
    greedy = json.loads(sdpo("eval", "tiny", "--greedy", "--problems", "2", "--plain", "--json")[1])
    assert (greedy["samples"], greedy["sampling"]["temperature"]) == (1, 0.0)
    assert sdpo("eval", "tiny", "--greedy", "--group-size", "3")[0] == 2
